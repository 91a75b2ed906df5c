"""A node's engine as a committee member's replayer: a replay is a prefill among the others."""

from __future__ import annotations

from collections.abc import Sequence

from unisono.errors import CapacityMissing, UnisonoError
from unisono.execution.engine import Engine, StepResult
from unisono.verification.stakes.work import ReplayWork
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
