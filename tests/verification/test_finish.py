"""The finish reason is the gateway's word, but it must fit the tokens."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import request_for
from tests.verification.answers import Made, make
from unisono.models.tokenizer import Tokenizer
from unisono.types import request_hash
from unisono.verification.replay import verify
from unisono.verification.verdict import Verdict
from unisono.wire.claims import tokens_root


@pytest.fixture(scope="module")
def full(tiny_models: TinyModels) -> Made:
    """Twelve of twelve tokens."""
    return make(tiny_models.llama, 1)


@pytest.fixture(scope="module")
def stopped(tiny_models: TinyModels, full: Made) -> Made:
    """Ended by a stop token after a few."""
    tokens = full.receipt.tokens
    stop = next(t for i, t in enumerate(tokens) if i >= 3 and t not in tokens[:i])
    request = request_for(tiny_models.llama, stop_tokens=(stop,))
    made = make(tiny_models.llama, 1, request)
    assert made.receipt.finish_reason == "stop"
    assert 3 < len(made.receipt.tokens) < 12
    return made


def problem(verdict: Verdict) -> str:
    assert verdict.fault is not None
    assert verdict.fault.kind == "finish_reason"
    return verdict.message


def test_the_reason_that_the_tokens_give_is_valid(
    full: Made, stopped: Made, tiny_models: TinyModels
) -> None:
    assert verify(full.receipt, tiny_models.store).verdict == "VALID"
    assert verify(stopped.receipt, tiny_models.store).verdict == "VALID"


@pytest.mark.parametrize("reason", ["stop", "cancelled", "", "content_filter"])
def test_a_full_answer_ended_by_its_length(
    full: Made, tiny_models: TinyModels, reason: str
) -> None:
    verdict = verify(full.altered(finish_reason=reason), tiny_models.store)
    assert f"it says '{reason}' where the tokens say 'length'" in problem(verdict)


def test_a_stop_token_ends_with_stop(stopped: Made, tiny_models: TinyModels) -> None:
    verdict = verify(stopped.altered(finish_reason="length"), tiny_models.store)
    assert "it says 'length' where the tokens say 'stop'" in problem(verdict)


def test_tokens_after_a_stop_token_are_noticed(
    full: Made, stopped: Made, tiny_models: TinyModels
) -> None:
    request = stopped.receipt.request
    (claim,) = full.receipt.hops
    claim = msgspec.structs.replace(claim, request=request_hash(request))
    forged = msgspec.structs.replace(full.with_claims([claim]), request=request)
    verdict = verify(forged.signed_by(full.gateway), tiny_models.store)
    ended = len(stopped.receipt.tokens)
    assert f"goes on after it ended at token {ended}" in problem(verdict)


def cut(made: Made, count: int, reason: str, **changes: Any) -> Any:
    """The receipt of the first `count` tokens, everybody agreeing."""
    request = msgspec.structs.replace(made.receipt.request, **changes)
    tokens = made.receipt.tokens[:count]
    return request, tokens, reason


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled", "because"])
def test_an_answer_that_was_cut_was_cancelled_or_met_a_stop_string(
    tiny_models: TinyModels, reason: str
) -> None:
    made = make_cut(tiny_models, 4)
    verdict = verify(made.altered(finish_reason=reason), tiny_models.store)
    if reason == "cancelled":
        assert verdict.verdict == "VALID", verdict
    else:
        expected = {
            "stop": "no stop token or stop string is in the answer",
            "length": "'length' after 4 of 12 tokens",
            "because": "'because' is no finish reason",
        }
        assert expected[reason] in problem(verdict)


def test_a_stop_string_that_is_in_the_answer_ends_it(tiny_models: TinyModels) -> None:
    tokens = make_cut(tiny_models, 4).receipt.tokens
    text = Tokenizer.from_files(tiny_models.llama.tokenizer_files()).decode(list(tokens))
    made = make_cut(tiny_models, 4, stop=("never", text[-2:]))
    verdict = verify(made.altered(finish_reason="stop"), tiny_models.store)
    assert verdict.verdict == "VALID", verdict


def make_cut(tiny_models: TinyModels, count: int, **changes: Any) -> Made:
    """An answer of which the gateway accepted only the first tokens."""
    import asyncio

    from tests.scenarios.network import Answered, tiny_network

    async def run() -> Made:
        async with tiny_network(tiny_models.llama, 1) as net:
            request = request_for(tiny_models.llama, **changes)
            answer = await net.swarm.open(request)
            stream = aiter(answer)
            tokens = tuple([(await anext(stream)).token for _ in range(count)])
            claims = await answer.finish(count)
            assert claims[0].tokens == tokens_root(tokens)
            receipt = Answered(net, request, tokens, claims, 1).receipt(finish_reason="cancelled")
            return Made(receipt, net.gateway, (net.nodes[0].identity,))

    return asyncio.run(run())
