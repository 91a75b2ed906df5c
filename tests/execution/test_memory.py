"""Memory for keys and values: shared prefixes, sessions that are moved out, pages set free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import TinyModels
from tests.execution.test_engine import answer, engine_of, joined
from tests.scenarios.network import SAMPLINGS, honest, request_for, tiny_network
from unisono.errors import UnisonoError
from unisono.execution.engine import Engine
from unisono.execution.pages import token_names
from unisono.models.cache import layer_groups, page_bytes
from unisono.models.store import StoredModel
from unisono.types import LayerRange

ALL = LayerRange(0, 4)
LONG = tuple((13 * i * i + 5 * i + 1) % 300 for i in range(200))


def one_page(model: StoredModel) -> int:
    (group,) = layer_groups(model.manifest.config, ALL)
    return page_bytes(model.manifest.config, group)


@asynccontextmanager
async def engine_with(model: StoredModel, pages: int) -> AsyncIterator[Engine]:
    engine = Engine(honest(model, ALL, pages * one_page(model)))
    try:
        yield engine
    finally:
        await engine.close()


async def held(engine: Engine) -> int:
    """Bytes in use, once the engine has done what it was told."""
    await engine.adopt(engine.decoder.new_cache(1), [])
    return engine.decoder.store.used


async def test_released_pages_are_free_at_once(tiny_models: TinyModels) -> None:
    async with engine_with(tiny_models.llama, 8) as engine:
        cache = engine.decoder.new_cache(200)
        await engine.step(cache, 0, LONG)
        assert await held(engine) == 4 * one_page(tiny_models.llama)
        engine.release(cache)
        assert await held(engine) == 0


async def test_a_step_of_a_released_session_is_ended(tiny_models: TinyModels) -> None:
    async with engine_of(tiny_models.llama) as engine:
        engine.may_go.clear()
        blocker = asyncio.create_task(engine.step(engine.decoder.new_cache(1), 0, (1,)))
        await asyncio.sleep(0.05)
        cache = engine.decoder.new_cache(200)
        step = asyncio.create_task(engine.step(cache, 0, LONG))
        await asyncio.sleep(0.05)
        engine.release(cache)
        engine.may_go.set()
        with pytest.raises(UnisonoError, match="closed"):
            await step
        await blocker
        assert await held(engine) == one_page(tiny_models.llama)  # the blocker's


async def test_sessions_that_do_not_fit_together_take_turns_and_give_the_same_bytes(
    tiny_models: TinyModels,
) -> None:
    prompts = [tuple((t + 17 * n) % 300 for t in LONG[:100]) for n in range(6)]
    async with engine_with(tiny_models.llama, 64) as engine:
        alone = [joined(await answer(engine, prompt, 40)) for prompt in prompts]
    # each needs three pages: at most two of the six fit
    async with engine_with(tiny_models.llama, 7) as engine:
        together = await asyncio.gather(*(answer(engine, prompt, 40) for prompt in prompts))
        assert [joined(results) for results in together] == alone
        assert engine.decoder.store.used <= engine.decoder.store.budget


async def test_a_session_that_can_never_fit_is_told_so(tiny_models: TinyModels) -> None:
    async with engine_with(tiny_models.llama, 2) as engine:
        cache = engine.decoder.new_cache(200)
        with pytest.raises(UnisonoError, match="memory for keys and values"):
            await engine.step(cache, 0, LONG)
        assert await held(engine) <= engine.decoder.store.budget
        engine.release(cache)
        assert await held(engine) == 0
        fits = await engine.step(engine.decoder.new_cache(64), 0, LONG[:64])
        assert len(fits.hashes) == 64


async def test_kept_prefixes_continue_with_the_same_bytes(tiny_models: TinyModels) -> None:
    async with engine_with(tiny_models.llama, 32) as engine:
        first = engine.decoder.new_cache(200)
        whole = await engine.step(first, 0, LONG)
        keys = token_names(LONG, 3)
        for page in range(3):
            here = slice(64 * page, 64 * page + 64)
            engine.keep(first, keys[: page + 1], (whole.hashes[here], whole.hashes[here]))
        engine.release(first)
        assert await held(engine) == 3 * one_page(tiny_models.llama)
        again = engine.decoder.new_cache(200)
        found = await engine.adopt(again, keys)
        assert len(found) == 3
        rest = await engine.step(again, 192, LONG[192:])
        assert rest.encoded == whole.encoded[192:]
        assert [h for p in found for h in p.hashes[1]] == list(whole.hashes[:192])
        # pages that are only kept give way to sessions
        engine.release(again)
        engine.decoder.store.budget = 4 * one_page(tiny_models.llama)
        await engine.step(engine.decoder.new_cache(200), 0, tuple(reversed(LONG)))
        assert await engine.adopt(engine.decoder.new_cache(200), keys) == []


@pytest.mark.parametrize("sampling", ["greedy", "penalised"])
async def test_an_answer_from_a_kept_prefix_has_the_same_tokens_and_claims(
    tiny_models: TinyModels, sampling: str
) -> None:
    request = request_for(tiny_models.llama, prompt=LONG, sampling=SAMPLINGS[sampling])
    async with tiny_network(tiny_models.llama, 1) as net:
        first = await net.answer(request)
        store = net.nodes[0].engine.decoder.store
        assert store.kept == 3  # complete pages of 200 tokens and the answer
        second = await net.answer(request)
        assert second.tokens == first.tokens
        assert [(c.rows_in, c.rows_out, c.out_tags) for c in second.claims] == [
            (c.rows_in, c.rows_out, c.out_tags) for c in first.claims
        ]
        longer = request_for(tiny_models.llama, prompt=(*LONG, 7), sampling=SAMPLINGS[sampling])
        continued = await net.answer(longer)
    async with tiny_network(tiny_models.llama, 1) as net:
        fresh = await net.answer(longer)
        assert fresh.tokens == continued.tokens
        assert fresh.claims[0].rows_out == continued.claims[0].rows_out
