"""The tokens of a request do not depend on who computes them, or beside whom."""

from __future__ import annotations

import asyncio

import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import (
    PROMPT,
    SAMPLINGS,
    Answered,
    request_for,
    tiny_network,
    with_sampling,
)
from unisono.models.store import StoredModel
from unisono.types import LayerRange

NODES = {"gemma": [1, 2, 3, 6], "llama": [1, 2, 3, 4]}


async def answers(model: StoredModel, blocks: object) -> dict[str, Answered]:
    """One answer per way of sampling, one after another."""
    async with tiny_network(model, blocks) as net:  # type: ignore[arg-type]
        request = request_for(model)
        return {name: await net.answer(with_sampling(request, name)) for name in SAMPLINGS}


@pytest.mark.parametrize("name", NODES)
async def test_any_number_of_nodes_gives_the_same_tokens_and_the_same_rows(
    tiny_models: TinyModels, name: str
) -> None:
    model: StoredModel = getattr(tiny_models, name)
    by_count = {count: await answers(model, count) for count in NODES[name]}
    alone = by_count[1]
    assert len({answered.tokens for answered in alone.values()}) == len(SAMPLINGS)
    for count, split in by_count.items():
        for sampling, answered in split.items():
            assert answered.tokens == alone[sampling].tokens, f"{count} nodes, {sampling}"
            assert answered.claims[0].rows_in == alone[sampling].claims[0].rows_in
            assert answered.claims[-1].rows_out == alone[sampling].claims[-1].rows_out
    # Where two cuts have an edge in common, the rows that cross it are the same too.
    for a, b in ((2, 6), (3, 6)) if name == "gemma" else ((2, 4),):
        crossing = {c.layers.stop: c.rows_out for c in by_count[a]["seeded"].claims}
        finer = {c.layers.stop: c.rows_out for c in by_count[b]["seeded"].claims}
        assert crossing == {edge: finer[edge] for edge in crossing}


@pytest.mark.parametrize("edge", range(1, 6))
async def test_any_edge_between_two_blocks_gives_the_same_tokens(
    tiny_models: TinyModels, edge: int
) -> None:
    model = tiny_models.gemma
    alone = await answers(model, 1)
    uneven = await answers(model, [LayerRange(0, edge), LayerRange(edge, 6)])
    assert {s: a.tokens for s, a in uneven.items()} == {s: a.tokens for s, a in alone.items()}


@pytest.mark.slow
async def test_answers_side_by_side_are_those_that_each_would_be_alone(
    tiny_models: TinyModels,
) -> None:
    model = tiny_models.gemma
    requests = [
        request_for(
            model,
            prompt=tuple((t + 13 * i) % 300 for t in (PROMPT * 9)[: 1 + 23 * i]),
            max_tokens=4 + 3 * i,
            sampling=[*SAMPLINGS.values()][i % len(SAMPLINGS)],
        )
        for i in range(8)
    ]
    async with tiny_network(model, 3) as net:
        alone = [(await net.answer(r)).tokens for r in requests]
        together = await asyncio.gather(*(net.answer(r) for r in requests))
        assert [a.tokens for a in together] == alone
        backwards = await asyncio.gather(*(net.answer(r) for r in requests[::-1]))
        assert [a.tokens for a in backwards] == alone[::-1]
        for one, other in zip(together, backwards[::-1], strict=True):
            assert [c.rows_out for c in one.claims] == [c.rows_out for c in other.claims]
        await net.idle()


async def test_an_answer_may_fill_the_models_context(tiny_models: TinyModels) -> None:
    model = tiny_models.llama
    limit = model.manifest.config.context_length
    request = request_for(model, prompt=(PROMPT * 60)[: limit - 3], max_tokens=3)
    async with tiny_network(model, 2) as net:
        split = await net.answer(request)
    async with tiny_network(model, 1) as net:
        assert (await net.answer(request)).tokens == split.tokens
