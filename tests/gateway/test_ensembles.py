"""Requests for several models that answer together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from tests.gateway.scripted import CONTEXT, ByteTokenizer, scripted_model
from unisono.errors import RequestError
from unisono.gateway.requests import Ask, read_chat, read_text
from unisono.gateway.served import ServedModel, ServedModels
from unisono.gateway.settings import GatewaySettings
from unisono.types import ModelId

OTHER, THIRD = ModelId("c0" * 32), ModelId("c1" * 32)


class OtherTokenizer(ByteTokenizer):
    vocabulary_hash = "b8" * 32


def models(**changes: Any) -> ServedModels:
    other: dict[str, Any] = {"name": "other-1b", "id": OTHER, "aliases": ()}
    foreign = scripted_model(OtherTokenizer(), name="foreign", id=THIRD, aliases=())
    return ServedModels([scripted_model(), scripted_model(**(other | changes)), foreign])


def asked(served: ServedModels | None = None, **fields: Any) -> Ask:
    body = {"model": "default", "prompt": "Hi", "ensemble": ["default", "other-1b"], **fields}
    return read_text(msgspec.json.encode(body), served or models(), GatewaySettings())


def names(members: tuple[ServedModel, ...]) -> list[str]:
    return [each.name for each in members]


def test_the_canonical_request_names_all_models_in_the_order_that_was_asked() -> None:
    ask = asked(ensemble=["other-1b", "default"], n=2)
    assert names(ask.ensemble) == ["other-1b", "scripted-1b"]
    for request in ask.requests:
        assert request.model == ask.model.id
        assert request.ensemble == (OTHER, ask.model.id)
    assert ask.answers == 4


def test_one_model_alone_is_no_ensemble() -> None:
    ask = asked(ensemble=None)
    assert (ask.ensemble, ask.answers) == ((), 1)
    assert ask.requests[0].ensemble is UNSET


def test_a_chat_may_ask_for_an_ensemble_too() -> None:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Hi"}],
        "ensemble": ["default", "other-1b"],
    }
    ask = read_chat(msgspec.json.encode(body), models(), GatewaySettings())
    assert ask.requests[0].ensemble == (ask.model.id, OTHER)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ensemble": ["default"]}, "it names 1 models: expected 2 to 8"),
        ({"ensemble": ["default"] * 9}, "it names 9 models"),
        ({"ensemble": ["default", "scripted-1b"]}, "names a model twice"),
        ({"ensemble": ["default", "nobody"]}, "'nobody' does not exist here"),
        ({"model": "foreign"}, "must name 'foreign', the request's own model"),
        ({"ensemble": ["default", "foreign"]}, "different vocabularies"),
        ({"quorum": 3}, "cannot go with 'quorum'"),
        ({"logprobs": 2}, "log probabilities are one model's"),
        ({"n": 8, "ensemble": ["default", "other-1b"], "prompt": ["a"] * 5}, "by 2 chains each"),
    ],
)
def test_what_cannot_be_an_ensemble_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        asked(**fields)


def test_every_model_must_have_room_for_the_answer() -> None:
    served = models(context_length=8)
    with pytest.raises(RequestError, match="maximum context length is 8 tokens"):
        asked(served, max_tokens=CONTEXT // 2)
