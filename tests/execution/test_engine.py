from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import KV_BYTES, PROMPT, SAMPLINGS, honest, weights
from unisono.errors import UnisonoError
from unisono.execution.engine import Engine, StepResult
from unisono.models.cache import REACH_BACK, SessionCache
from unisono.models.decoder import Decoder, Draw, Rows, Segment
from unisono.models.rows import row_hashes
from unisono.models.store import StoredModel
from unisono.models.torch_decoder import TorchDecoder
from unisono.types import LayerRange, SampledToken
from unisono.wire.rows import decode_rows

ALL = LayerRange(0, 4)


class Watched(Engine):
    """Remembers how many sessions each pass had, and can be held up."""

    def __init__(self, decoder: Decoder) -> None:
        self.passes: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()
        super().__init__(decoder)

    def _compute(self, batch: list[Any]) -> list[StepResult]:
        self.may_go.wait(10)
        self.passes.append(len(batch))
        return super()._compute(batch)


@asynccontextmanager
async def engine_of(model: StoredModel, layers: LayerRange = ALL) -> AsyncIterator[Watched]:
    engine = Watched(honest(model, layers))
    try:
        yield engine
    finally:
        engine.may_go.set()
        await engine.close()


def prompt_of(session: int) -> tuple[int, ...]:
    return tuple((t + 31 * session) % 300 for t in PROMPT[: 5 + session])


async def answer(
    engine: Engine, prompt: Sequence[int], count: int, chunk: int = 512, **draw: Any
) -> list[StepResult]:
    """Prefill in chunks, then decode: what a single hop does."""
    cache = engine.decoder.new_cache(len(prompt) + count)
    tokens, results, position = list(prompt), list[StepResult](), 0
    while len(tokens) < len(prompt) + count:
        part = tuple(tokens[position : position + chunk])
        last = position + len(part) == len(tokens)
        sampling = draw.get("sampling", SAMPLINGS["penalised"])
        known = np.array(tokens, dtype=np.int32)
        draws = (Draw(sampling, known, len(prompt), draw.get("top", -1)),) if last else ()
        results.append(await engine.step(cache, position, part, draws))
        position += len(part)
        assert [t.position for t in results[-1].tokens] == [position] * last
        tokens += [t.token for t in results[-1].tokens]
    engine.release(cache)
    return results


def joined(results: list[StepResult]) -> tuple[list[bytes], list[bytes], list[int]]:
    rows = [row for r in results for row in r.encoded]
    hashes = [h for r in results for h in r.hashes]
    return rows, hashes, [t.token for r in results for t in r.tokens]


async def test_sessions_side_by_side_get_the_bytes_they_get_alone(tiny_models: TinyModels) -> None:
    async with engine_of(tiny_models.llama) as engine:
        alone = [joined(await answer(engine, prompt_of(s), 6)) for s in range(5)]
        engine.passes.clear()
        together = await asyncio.gather(*(answer(engine, prompt_of(s), 6) for s in range(5)))
        assert [joined(results) for results in together] == alone
        assert max(engine.passes) > 1


@pytest.mark.parametrize("chunk", [1, 3, 7])
async def test_a_prompt_in_chunks_gives_the_bytes_of_one_pass(
    tiny_models: TinyModels, chunk: int
) -> None:
    async with engine_of(tiny_models.gemma, LayerRange(0, 6)) as engine:
        whole = joined(await answer(engine, PROMPT, 4))
        assert joined(await answer(engine, PROMPT, 4, chunk)) == whole


async def test_a_result_has_each_rows_canonical_bytes_and_their_hash(
    tiny_models: TinyModels,
) -> None:
    async with engine_of(tiny_models.llama, LayerRange(0, 2)) as engine:
        decoder = engine.decoder
        result = await engine.step(decoder.new_cache(8), 0, PROMPT[:8])
        expected = decoder.forward(decoder.embed(PROMPT[:8]), [Segment(decoder.new_cache(8), 0, 8)])
        body = b"".join(result.encoded)
        np.testing.assert_array_equal(decode_rows(result.widths, body, 64), expected)
        assert result.hashes == tuple(row_hashes(expected))
        assert result.tokens == ()


async def test_rows_may_come_from_the_hop_before(tiny_models: TinyModels) -> None:
    async with (
        engine_of(tiny_models.llama) as whole,
        engine_of(tiny_models.llama, LayerRange(0, 3)) as first,
        engine_of(tiny_models.llama, LayerRange(3, 4)) as second,
    ):
        given = await first.step(first.decoder.new_cache(8), 0, PROMPT[:8])
        rows = decode_rows(given.widths, b"".join(given.encoded), 64)
        got = await second.step(second.decoder.new_cache(8), 0, rows)
        expected = await whole.step(whole.decoder.new_cache(8), 0, PROMPT[:8])
        assert got == expected


async def test_log_probabilities_come_only_if_they_were_asked_for(tiny_models: TinyModels) -> None:
    async with engine_of(tiny_models.llama) as engine:
        for top in (-1, 0, 3):
            (last,) = [t for r in await answer(engine, PROMPT, 1, top=top) for t in r.tokens]
            assert len(last.top) == max(top, 0)
            assert (last.logprob < 0) == (top >= 0)
            if top > 0:
                assert [lp for _, lp in last.top] == sorted(
                    (lp for _, lp in last.top), reverse=True
                )


async def test_a_step_that_fails_does_not_fail_those_that_share_its_pass(
    tiny_models: TinyModels,
) -> None:
    async with engine_of(tiny_models.llama) as engine:
        expected = await engine.step(engine.decoder.new_cache(8), 0, PROMPT[:8])
        engine.may_go.clear()
        blocker = asyncio.create_task(engine.step(engine.decoder.new_cache(1), 0, (1,)))
        good = [
            asyncio.create_task(engine.step(engine.decoder.new_cache(8), 0, PROMPT[:8]))
            for _ in range(2)
        ]
        too_small = asyncio.create_task(engine.step(engine.decoder.new_cache(3), 0, PROMPT[:8]))
        too_early = asyncio.create_task(engine.step(engine.decoder.new_cache(8), 4, PROMPT[:2]))
        await asyncio.sleep(0.05)
        engine.may_go.set()
        assert [await task for task in good] == [expected, expected]
        with pytest.raises(UnisonoError, match="does not fit a session of 3 positions"):
            await too_small
        with pytest.raises(UnisonoError, match="position 4 of a session came before position 0"):
            await too_early
        await blocker


async def test_a_pass_takes_one_step_of_a_session_and_a_bounded_number_of_rows(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.execution.engine.MAX_ROWS", 10)
    async with engine_of(tiny_models.llama) as engine:
        engine.may_go.clear()
        caches = [engine.decoder.new_cache(16) for _ in range(3)]
        first = asyncio.create_task(engine.step(caches[0], 0, PROMPT[:2]))
        await asyncio.sleep(0.05)  # in its pass, alone
        steps = [(0, 2, 6), (0, 8, 2), (1, 0, 3), (2, 0, 6)]
        tasks = [
            asyncio.create_task(engine.step(caches[s], start, PROMPT[start : start + count]))
            for s, start, count in steps
        ]
        await asyncio.sleep(0.05)
        assert engine.queued == 2 + 6 + 2 + 3 + 6  # those in a pass count until it is done
        engine.may_go.set()
        await asyncio.gather(first, *tasks)
        # six rows of session 0, three and one; then two of session 0, and the other five
        assert engine.passes == [1, 3, 2]
        assert [c.length for c in caches] == [10, 3, 6]


async def test_a_step_of_more_rows_than_a_pass_holds_is_cut_into_passes(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_of(tiny_models.llama) as engine:
        whole = await engine.step(engine.decoder.new_cache(9), 0, PROMPT[:9])
    monkeypatch.setattr("unisono.execution.engine.MAX_ROWS", 4)
    async with engine_of(tiny_models.llama) as engine:
        assert await engine.step(engine.decoder.new_cache(9), 0, PROMPT[:9]) == whole
        assert engine.passes == [1, 1, 1]


async def drawn_one_by_one(
    engine: Engine, tokens: Sequence[int], first: int, sampling: str, top: int
) -> list[SampledToken]:
    """What is drawn after each row from position `first` on, each by a step of its own."""
    cache, drawn = engine.decoder.new_cache(len(tokens)), list[SampledToken]()
    if first:
        await engine.step(cache, 0, tuple(tokens[:first]))
    for position in range(first, len(tokens)):
        known = np.array(tokens[: position + 1], dtype=np.int32)
        draw = Draw(SAMPLINGS[sampling], known, 2, top)
        drawn += (await engine.step(cache, position, (tokens[position],), (draw,))).tokens
    engine.release(cache)
    return drawn


@pytest.mark.parametrize("rows_of_a_pass", [3, 4, 256])
@pytest.mark.parametrize("sampling", ["greedy", "penalised"])
async def test_several_draws_of_a_step_are_those_of_steps_of_one_row_each(
    tiny_models: TinyModels,
    monkeypatch: pytest.MonkeyPatch,
    sampling: str,
    rows_of_a_pass: int,
) -> None:
    tokens = tuple(PROMPT[:14])
    async with engine_of(tiny_models.llama) as engine:
        expected = await drawn_one_by_one(engine, tokens, 6, sampling, 3)
    monkeypatch.setattr("unisono.execution.engine.MAX_ROWS", rows_of_a_pass)
    async with engine_of(tiny_models.llama) as engine:
        for first in (6, 8, 13):  # draws after the last 8, 6 and 1 of the rows
            draws = [
                Draw(SAMPLINGS[sampling], np.array(tokens[: i + 1], dtype=np.int32), 2, 3)
                for i in range(first, 14)
            ]
            result = await engine.step(engine.decoder.new_cache(14), 0, tokens, draws)
            assert list(result.tokens) == expected[first - 6 :]
            assert [t.position for t in result.tokens] == [*range(first + 1, 15)]
            assert all(len(t.top) == 3 for t in result.tokens)


async def test_sessions_with_several_draws_share_passes_and_get_their_own(
    tiny_models: TinyModels,
) -> None:
    async with engine_of(tiny_models.llama) as engine:
        prompts = [prompt_of(s) for s in range(4)]
        alone = [await drawn_one_by_one(engine, p, 2, "seeded", -1) for p in prompts]

        async def ahead(prompt: Sequence[int]) -> list[SampledToken]:
            cache = engine.decoder.new_cache(len(prompt))
            await engine.step(cache, 0, tuple(prompt[:2]))
            known = [np.array(prompt[: i + 1], dtype=np.int32) for i in range(2, len(prompt))]
            draws = [Draw(SAMPLINGS["seeded"], k, 2) for k in known]
            return list((await engine.step(cache, 2, tuple(prompt[2:]), draws)).tokens)

        engine.passes.clear()
        assert await asyncio.gather(*(ahead(p) for p in prompts)) == alone
        assert max(engine.passes) > 1


async def test_rows_that_replace_others_give_the_bytes_of_a_session_that_never_had_them(
    tiny_models: TinyModels,
) -> None:
    for model, layers in ((tiny_models.llama, ALL), (tiny_models.gemma, LayerRange(0, 6))):
        async with engine_of(model, layers) as engine:
            tokens = tuple(PROMPT[i % 20] for i in range(150))
            whole = await engine.step(engine.decoder.new_cache(150), 0, tokens)
            cache, wrong = engine.decoder.new_cache(150), tuple(reversed(PROMPT))
            await engine.step(cache, 0, tokens[:90])
            for start, ahead in ((90, 20), (93, 8), (96, 20), (97, 1)):
                await engine.step(cache, start, wrong[:ahead])
                # also as far back as sessions may go, though they have been further
                again = await engine.step(cache, start - 4, tokens[start - 4 : start + 3])
                assert again.encoded == whole.encoded[start - 4 : start + 3]
            rest = await engine.step(cache, 100, tokens[100:])
            assert rest.encoded == whole.encoded[100:]
            back = await engine.step(cache, 150 - REACH_BACK, tokens[150 - REACH_BACK :])
            assert back.encoded == whole.encoded[150 - REACH_BACK :]


async def test_the_cost_of_passes_and_the_idle_share_are_measured(tiny_models: TinyModels) -> None:
    async with engine_of(tiny_models.llama) as engine:
        assert not engine.cost.measured
        assert engine.idle == 1.0
        assert engine.row_seconds == 0
        await asyncio.gather(*(answer(engine, prompt_of(s), 3) for s in range(3)))
        assert engine.cost.measured
        assert engine.cost.row > 0
        assert 0 <= engine.idle < 1
        assert 1 <= engine.decoding <= 3
        await engine.step(engine.decoder.new_cache(100), 0, tuple(PROMPT * 5))
        assert engine.row_seconds > 0


async def test_a_long_prompt_leaves_room_for_decoding_in_each_pass(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.execution.engine.PROMPT_ROWS", 16)
    async with engine_of(tiny_models.llama) as engine:
        prompt = tuple(PROMPT[i % 20] for i in range(400))
        alone = await answer(engine, prompt_of(0), 6)
        whole = await engine.step(engine.decoder.new_cache(400), 0, prompt)
        engine.may_go.clear()
        long = asyncio.create_task(engine.step(engine.decoder.new_cache(400), 0, prompt))
        beside = asyncio.create_task(answer(engine, prompt_of(0), 2))
        await asyncio.sleep(0.05)
        engine.passes.clear()
        engine.may_go.set()
        assert joined(await beside)[2] == joined(alone)[2][:2]
        assert await long == whole
        # the prompt's first pass began alone, with all the rows of a pass; the others were short
        assert len(engine.passes) > 5
        assert max(engine.passes) == 2


async def test_a_step_that_nobody_waits_for_any_more_is_left_out(tiny_models: TinyModels) -> None:
    async with engine_of(tiny_models.llama) as engine:
        engine.may_go.clear()
        cache = engine.decoder.new_cache(8)
        blocker = asyncio.create_task(engine.step(engine.decoder.new_cache(1), 0, (1,)))
        await asyncio.sleep(0.05)
        given_up = asyncio.create_task(engine.step(cache, 0, PROMPT[:8]))
        await asyncio.sleep(0.05)
        given_up.cancel()
        await asyncio.sleep(0)
        engine.may_go.set()
        await blocker
        await engine.step(engine.decoder.new_cache(1), 0, (1,))
        assert cache.length == 0


async def test_steps_of_one_turn_of_the_loop_share_a_pass(tiny_models: TinyModels) -> None:
    async with engine_of(tiny_models.llama) as engine:
        for count in (1, 5, 24):
            engine.passes.clear()
            caches = [engine.decoder.new_cache(1) for _ in range(count)]
            await asyncio.gather(*(engine.step(cache, 0, (1,)) for cache in caches))
            assert engine.passes == [count]


async def test_a_step_of_a_session_that_is_closed_in_the_same_turn_does_not_run(
    tiny_models: TinyModels,
) -> None:
    async with engine_of(tiny_models.llama) as engine:
        cache = engine.decoder.new_cache(1)
        step = asyncio.ensure_future(engine.step(cache, 0, (1,)))
        asyncio.get_running_loop().call_soon(engine.release, cache)
        engine.may_go.clear()
        with pytest.raises(UnisonoError, match="the session was closed"):
            await asyncio.wait_for(step, 10)
        assert not engine.passes


async def test_closing_lets_no_step_wait_forever(tiny_models: TinyModels) -> None:
    engine = Watched(honest(tiny_models.llama, ALL))
    engine.may_go.clear()
    caches: list[SessionCache] = [engine.decoder.new_cache(4) for _ in range(2)]
    running = asyncio.create_task(engine.step(caches[0], 0, (1, 2)))
    await asyncio.sleep(0.05)
    waiting = asyncio.create_task(engine.step(caches[1], 0, (1, 2)))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.05)
    engine.may_go.set()
    await closing
    assert len((await running).hashes) == 2
    with pytest.raises(UnisonoError, match="closed"):
        await waiting
    with pytest.raises(UnisonoError, match="closed"):
        await engine.step(caches[1], 0, (1,))


async def test_the_event_loop_stays_free_while_the_engine_computes(tiny_models: TinyModels) -> None:
    class Slow(TorchDecoder):
        def forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
            threading.Event().wait(0.3)
            return super().forward(rows, segments)

    decoder = honest(tiny_models.llama, ALL)
    engine = Engine(Slow(decoder.config, weights(tiny_models.llama, ALL), kv_bytes=KV_BYTES))
    try:
        step = asyncio.create_task(engine.step(engine.decoder.new_cache(4), 0, (1, 2)))
        turns = 0
        while not step.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns >= 10
    finally:
        await engine.close()
