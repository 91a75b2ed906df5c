"""What computes for committees in a node: its engine, where a replay is a prefill among the others,
or the weights of its store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from unisono.errors import CapacityMissing, UnisonoError
from unisono.execution.engine import Engine, StepResult
from unisono.models.decoder import make_decoder
from unisono.models.loading import load_block
from unisono.models.store import StoredModel
from unisono.verification.stakes.work import Recomputed, ReplayWork, recompute
from unisono.wire.claims import rows_root
from unisono.wire.verification_messages import ReplayResult


class EngineReplayer:
    """Replays of the block that an engine holds. The engine batches them with its sessions' rows
    and lets decode steps go first, as it does with every prompt."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def replay(self, work: ReplayWork) -> ReplayResult:
        """See `Replayer.replay`.

        Raises:
            CapacityMissing: there is no room for so long an answer.
            UnisonoError: the block is another one, or what the engine raises.
        """
        step = await self._step(work)
        tokens = [sampled.token for sampled in step.tokens]
        return work.result(step.encoded, tokens, step.hashes)

    async def rows(self, work: ReplayWork) -> tuple[bytes, Sequence[bytes]]:
        """See `Replayer.rows`.

        Raises: as `replay`.
        """
        step = await self._step(work)
        return step.widths, step.encoded

    async def recompute(self, work: ReplayWork) -> Recomputed:
        """See `Recomputer.recompute`.

        Raises: as `replay`.
        """
        step = await self._step(work)
        tokens = tuple(sampled.token for sampled in step.tokens)
        return Recomputed(rows_root(list(step.hashes)), tokens)

    async def _step(self, work: ReplayWork) -> StepResult:
        decoder = self._engine.decoder
        if work.layers != decoder.layers:
            raise UnisonoError(f"this node computes layers {decoder.layers}, not {work.layers}")
        if not decoder.store.fits(work.positions):
            raise CapacityMissing(f"no room for keys and values of {work.positions} positions")
        cache = decoder.new_cache(work.positions)
        try:
            return await self._engine.step(cache, 0, work.source, work.draws)
        finally:
            self._engine.release(cache)


class StoreReplayer:
    """Replays of any block of a stored model: its weights are read and checked for one replay, and
    given back. One at a time."""

    def __init__(self, model: StoredModel, threads: int = 1) -> None:
        self._model, self._threads = model, threads
        self._turn = asyncio.Semaphore(1)

    async def recompute(self, work: ReplayWork) -> Recomputed:
        """See `Recomputer.recompute`.

        Raises:
            UnisonoError: the model has no such block, or it is damaged here.
        """
        async with self._turn:
            return await asyncio.to_thread(self._recompute, work)

    def _recompute(self, work: ReplayWork) -> Recomputed:
        weights = load_block(self._model, work.layers)
        decoder = make_decoder(self._model.manifest.config, weights, threads=self._threads)
        try:
            return recompute(decoder, work)
        finally:
            decoder.close()
