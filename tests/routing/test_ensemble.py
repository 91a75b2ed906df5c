"""Answers that several models give together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from tests.conftest import TinyModels
from tests.scenarios.network import (
    SAMPLINGS,
    TinyNetwork,
    honest,
    request_for,
    tiny_network,
    with_sampling,
)
from unisono.errors import AnswerInterrupted, CoverageMissing
from unisono.models.decoder import Choice, Decoder, Draw, Rows, Segment
from unisono.models.store import StoredModel
from unisono.numerics.scalar.ensemble import choose_jointly, distribution
from unisono.routing.ensemble import EnsembleAnswer
from unisono.types import Distribution, GenerationRequest, LayerRange
from unisono.verification.adversaries.computing import Dishonest
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.ensemble import distribution_hash, distributions_root


@dataclass(frozen=True)
class Given:
    """What an ensemble left behind."""

    tokens: tuple[int, ...]
    claims: tuple[HopClaim, ...]
    attempts: int

    def of(self, model: StoredModel) -> list[HopClaim]:
        return [claim for claim in self.claims if claim.model == model.id]


def together(models: Sequence[StoredModel], **changes: Any) -> GenerationRequest:
    return request_for(models[0], ensemble=tuple(m.id for m in models), **changes)


async def given(
    net: TinyNetwork,
    request: GenerationRequest,
    *,
    on_token: Callable[[int], None] = lambda count: None,
    stop_after: int | None = None,
) -> Given:
    answer = await net.swarm.open(request)
    assert isinstance(answer, EnsembleAnswer)
    tokens: list[int] = []
    try:
        async for token in answer:
            assert token.position == len(request.prompt) + len(tokens)
            tokens.append(token.token)
            on_token(len(tokens))
            if len(tokens) == stop_after:
                break
        claims = await answer.finish(len(tokens))
    finally:
        await answer.cancel()
    return Given(tuple(tokens), claims, answer.attempts)


def computed(
    models: Sequence[StoredModel], request: GenerationRequest
) -> tuple[tuple[int, ...], list[list[Distribution]]]:
    """Tokens and distributions as the specification has them, each model by itself."""
    decoders = [honest(model, LayerRange(0, model.layer_count)) for model in models]
    caches = [decoder.new_cache(64) for decoder in decoders]
    said: list[list[Distribution]] = [[] for _ in models]
    answer: list[int] = []
    fed, due = 0, list(request.prompt)
    while len(answer) < request.max_tokens:
        for each, decoder, cache in zip(said, decoders, caches, strict=True):
            rows = decoder.forward(decoder.embed(due), [Segment(cache, fed, len(due))])
            logits = decoder.logits(rows[-1:])[0].tolist()
            each.append(distribution(logits, request.sampling, request.prompt, answer))
        fed += len(due)
        latest = [each[-1] for each in said]
        answer.append(choose_jointly(latest, request.sampling, fed))
        due = [answer[-1]]
    for decoder in decoders:
        decoder.close()
    return tuple(answer), said


@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_any_split_gives_the_tokens_and_claims_of_the_specification(
    tiny_models: TinyModels, sampling: str
) -> None:
    models = (tiny_models.llama, tiny_models.gemma)
    request = with_sampling(together(models), sampling)
    tokens, said = computed(models, request)
    for blocks, others in ((1, 1), (2, 3)):
        async with tiny_network(models[0], blocks, others=[(models[1], others)]) as net:
            found = await given(net, request)
            assert found.tokens == tokens
            assert found.attempts == 1
            for model, each in zip(models, said, strict=True):
                claims = found.of(model)
                assert claims[-1].tokens == tokens_root(tokens)
                root = distributions_root([distribution_hash(d) for d in each])
                assert claims[-1].distributions == root
                assert all(claim.distributions is UNSET for claim in claims[:-1])
                assert all(claim.signature_is_good() for claim in claims)
            await net.idle()
            assert net.unburdened()
            assert net.swarm.running == 0


async def test_the_order_of_the_models_does_not_matter_and_each_alone_says_something_else(
    tiny_models: TinyModels,
) -> None:
    one, other = tiny_models.llama, tiny_models.gemma
    async with tiny_network(one, 1, others=[(other, 1)]) as net:
        found = await given(net, together((one, other)))
        assert (await given(net, together((other, one)))).tokens == found.tokens
        alone = [(await net.answer(request_for(m))).tokens for m in (one, other)]
        assert len({found.tokens, *alone}) == 3


async def test_an_answer_that_is_cut_short_is_signed_as_far_as_it_was_taken(
    tiny_models: TinyModels,
) -> None:
    models = (tiny_models.llama, tiny_models.gemma)
    async with tiny_network(models[0], 2, others=[(models[1], 1)]) as net:
        whole = await given(net, together(models))
        part = await given(net, together(models), stop_after=5)
        assert part.tokens == whole.tokens[:5]
        for model in models:
            assert part.of(model)[-1].tokens == tokens_root(part.tokens)
        await net.idle()


@pytest.mark.parametrize("victim", range(5))
async def test_a_lost_hop_is_replaced_and_the_tokens_and_distributions_stay(
    tiny_models: TinyModels, victim: int
) -> None:
    models = (tiny_models.llama, tiny_models.gemma)
    request = together(models)
    tokens, said = computed(models, request)
    async with tiny_network(models[0], 2, spares=1, others=[(models[1], 1)]) as net:
        for spare in (2, 3, 5):
            net.burden(net.nodes[spare])

        def kill(count: int) -> None:
            if count == 4:
                used = [n for n in net.nodes if n.worker.sessions]
                used[victim % len(used)].kill()

        found = await given(net, request, on_token=kill)
        assert found.tokens == tokens
        assert found.attempts == 2
        for model, each in zip(models, said, strict=True):
            root = distributions_root([distribution_hash(d) for d in each])
            assert found.of(model)[-1].distributions == root


class OtherWord(Dishonest):
    """Tells a distribution that its rows do not give."""

    def choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        return [self._altered(choice) for choice in super().choose(rows, draws)]

    @staticmethod
    def _altered(choice: Choice) -> Choice:
        said = choice.distribution
        if said is None:
            return choice
        ids = (said.ids[-1], *said.ids[1:-1], said.ids[0])
        return replace(choice, distribution=msgspec.structs.replace(said, ids=ids))


def other_word(model: StoredModel, layers: LayerRange, kv_bytes: int) -> Decoder:
    return OtherWord(honest(model, layers, kv_bytes))


async def test_a_model_that_tells_another_distribution_changes_the_answer_and_signs_for_it(
    tiny_models: TinyModels,
) -> None:
    models = (tiny_models.llama, tiny_models.gemma)
    request = together(models)
    tokens, said = computed(models, request)
    make = {1: other_word}
    async with tiny_network(models[0], 1, others=[(models[1], 1)], make=make) as net:
        found = await given(net, request)
        assert found.tokens != tokens
        (claim,) = found.of(models[1])
        root = distributions_root([distribution_hash(d) for d in said[1]])
        assert claim.distributions != root


async def test_a_model_that_nobody_serves_and_one_that_is_lost_are_named(
    tiny_models: TinyModels,
) -> None:
    models = (tiny_models.llama, tiny_models.gemma)
    async with tiny_network(models[0], 1, others=[(models[1], 1)]) as net:

        def kill(count: int) -> None:
            if count == 3:
                net.nodes[1].kill()

        with pytest.raises(AnswerInterrupted, match=models[1].id[:12]):
            await given(net, together(models), on_token=kill)
        with pytest.raises(CoverageMissing, match=models[1].id[:12]):
            await net.swarm.open(together(models))
        await net.idle()
