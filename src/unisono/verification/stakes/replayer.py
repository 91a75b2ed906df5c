"""A replayer with weights of its own: what waits is computed together, in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from unisono.errors import CapacityMissing, UnisonoError
from unisono.models.decoder import Decoder
from unisono.types import LayerRange
from unisono.verification.stakes.work import BATCH_ROWS, ReplayWork, forward, replay
from unisono.wire.rows import encode_rows
from unisono.wire.verification_messages import ReplayResult

MAX_QUEUED = 64


class DecoderReplayer:
    """Runs replays on decoders that it loads, one block at a time. For one event loop.

    Tasks that arrive while one batch runs form the next, by block.
    """

    def __init__(self, load: Callable[[LayerRange], Decoder]) -> None:
        self._load = load
        self._decoder: Decoder | None = None
        self._waiting: list[tuple[ReplayWork, asyncio.Future[ReplayResult]]] = []
        self._running: asyncio.Task[None] | None = None

    async def replay(self, work: ReplayWork) -> ReplayResult:
        """See `Replayer.replay`.

        Raises:
            CapacityMissing: too many tasks wait.
            UnisonoError: what loading or computing raises.
        """
        if len(self._waiting) >= MAX_QUEUED:
            raise CapacityMissing(f"{MAX_QUEUED} replays wait already; ask another node")
        future: asyncio.Future[ReplayResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return await future

    async def rows(self, work: ReplayWork) -> tuple[bytes, Sequence[bytes]]:
        """See `Replayer.rows`. Not batched: rows are asked for by one auditor at a time.

        Raises:
            UnisonoError: what loading or computing raises.
        """
        while self._running is not None and not self._running.done():
            await asyncio.wait({self._running})
        widths, encoded = await asyncio.to_thread(self._rows, work)
        return widths, [bytes(row) for row in encoded]

    async def close(self) -> None:
        """Let the running batch end, drop what waits, and free the weights."""
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            _fail(future, UnisonoError("the replayer was closed"))
        if self._running is not None:
            await self._running
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    async def _run(self) -> None:
        while self._waiting:
            batch = self._take()
            try:
                results = await asyncio.to_thread(self._compute, [work for work, _ in batch])
            except UnisonoError as error:
                if len(batch) == 1:
                    _fail(batch[0][1], error)
                else:  # one bad task must not take the others with it
                    for work, future in batch:
                        await self._alone(work, future)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    async def _alone(self, work: ReplayWork, future: asyncio.Future[ReplayResult]) -> None:
        try:
            results = await asyncio.to_thread(self._compute, [work])
        except UnisonoError as error:
            _fail(future, error)
            return
        if not future.done():
            future.set_result(results[0])

    def _take(self) -> list[tuple[ReplayWork, asyncio.Future[ReplayResult]]]:
        """The oldest task, and others of its block as far as they fit beside it."""
        layers = self._waiting[0][0].layers
        batch: list[tuple[ReplayWork, asyncio.Future[ReplayResult]]] = []
        rows = 0
        for item in tuple(self._waiting):
            fits = not batch or rows + item[0].positions <= BATCH_ROWS
            if item[0].layers == layers and fits:
                batch.append(item)
                rows += item[0].positions
                self._waiting.remove(item)
        return batch

    def _compute(self, works: list[ReplayWork]) -> list[ReplayResult]:
        return replay(self._decoder_of(works[0].layers), works)

    def _rows(self, work: ReplayWork) -> tuple[bytes, list[memoryview]]:
        return encode_rows(forward(self._decoder_of(work.layers), work))

    def _decoder_of(self, layers: LayerRange) -> Decoder:
        if self._decoder is None or self._decoder.layers != layers:
            if self._decoder is not None:
                self._decoder.close()
                self._decoder = None
            self._decoder = self._load(layers)
        return self._decoder


def _fail(future: asyncio.Future[ReplayResult], error: UnisonoError) -> None:
    if not future.done():
        future.set_exception(error)
