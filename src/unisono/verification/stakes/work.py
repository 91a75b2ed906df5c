"""The work of a committee member: a prefill over given inputs, and the digests of what comes out.

To the engine of a node a replay is a prefill like any other: `source` and `draws` are what its
steps take. `replay` runs the same on a decoder alone, several tasks in each pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from unisono.errors import PeerCheating
from unisono.models.cache import SessionCache
from unisono.models.decoder import Decoder, Draw, Rows, Segment
from unisono.models.rows import row_hashes
from unisono.types import LayerRange, ModelId, Sampling, digest
from unisono.verification.stakes.lottery import draw_positions
from unisono.wire.claims import rows_root, token_hash, tokens_root
from unisono.wire.jury_messages import JuryTask
from unisono.wire.rows import decode_rows, encode_rows
from unisono.wire.verification_messages import ReplayResult, ReplayTask, RowsTask, Ticket

PASS_ROWS = 256
"""Rows of one pass."""
BATCH_ROWS = 4096
"""Rows of the tasks that are replayed side by side: bounds the pages that they hold."""
_DRAWS = 64


@dataclass(frozen=True, slots=True)
class ReplayWork:
    """Inputs of one replay, checked: nothing in here says what the audited node claimed."""

    audit: str
    model: ModelId
    layers: LayerRange
    prompt: int
    tokens: tuple[int, ...]
    """Token at every position; empty for a block that neither begins nor ends the model."""
    rows: Rows | None
    """int64 [positions, hidden]; None for a block that begins the model."""
    sampling: Sampling | None
    sampled: tuple[int, ...]
    """Positions whose whole rows are committed to."""

    @property
    def positions(self) -> int:
        """How many rows are computed."""
        return len(self.tokens) if self.rows is None else len(self.rows)

    @property
    def source(self) -> Rows | tuple[int, ...]:
        """What goes into the block."""
        return self.tokens if self.rows is None else self.rows

    @property
    def draws(self) -> tuple[Draw, ...]:
        """How a token is drawn after each of the last rows; empty if none is."""
        if self.sampling is None:
            return ()
        known = np.array(self.tokens, dtype=np.int64).astype(np.int32)
        return tuple(
            Draw(self.sampling, known[:count], self.prompt)
            for count in range(self.prompt, self.positions + 1)
        )

    def incoming(self) -> list[bytes]:
        """Hashes of the rows in, as the claim of the first hop has them."""
        if self.rows is None:
            return [token_hash(t) for t in self.tokens]
        return row_hashes(self.rows)

    def result(
        self, encoded: Sequence[bytes | memoryview], tokens: Sequence[int], hashes: Sequence[bytes]
    ) -> ReplayResult:
        """The result, given every row out in its canonical encoding, the tokens drawn, and the
        hashes of the rows out."""
        parts = [bytes.fromhex(self.audit)]
        for position in self.sampled:
            parts += (position.to_bytes(8, "little"), bytes(encoded[position]))
        return ReplayResult(
            rows_in=rows_root(self.incoming()),
            rows_out=rows_root(list(hashes)),
            tokens=tokens_root(list(tokens)) if self.sampling is not None else "",
            sampled=digest("replay-rows/1", *parts).hex(),
        )

    @classmethod
    def before(cls, task: RowsTask, body: bytes | memoryview, hidden: int) -> ReplayWork:
        """Read a task that asks for rows; `hidden` is the model's width.

        Raises:
            PeerCheating: the body is not what the task announces.
        """
        rows, tokens = None, ()
        if task.layers.start:
            rows = decode_rows(task.widths, body, hidden)
        else:
            if len(body) != 4 * task.positions:
                raise PeerCheating(f"{len(body)} bytes of body for {task.positions} tokens")
            tokens = tuple(int(t) for t in np.frombuffer(bytes(body), dtype="<u4"))
        return cls(
            audit=task.ticket.audit(),
            model=task.model,
            layers=task.layers,
            prompt=task.positions,
            tokens=tokens,
            rows=rows,
            sampling=None,
            sampled=(),
        )

    @classmethod
    def of(cls, task: ReplayTask, body: bytes | memoryview, hidden: int) -> ReplayWork:
        """Read a task and its body; `hidden` is the model's width.

        Raises:
            PeerCheating: the body is not what the task announces.
        """
        sampled = draw_positions(task.ticket, task.positions)
        return cls._read(task, body, hidden, task.audit, sampled)

    @classmethod
    def seated(cls, task: JuryTask, body: bytes | memoryview, hidden: int) -> ReplayWork:
        """Read a task of a case on a chain, as `of` does.

        Raises:
            PeerCheating: the body is not what the task announces.
        """
        return cls._read(task, body, hidden, task.case, ())

    @classmethod
    def _read(
        cls,
        task: ReplayTask | JuryTask,
        body: bytes | memoryview,
        hidden: int,
        audit: str,
        sampled: tuple[int, ...],
    ) -> ReplayWork:
        tokens, rows = _inputs(task, body, hidden)
        return cls(
            audit=audit,
            model=task.model,
            layers=task.layers,
            prompt=task.prompt,
            tokens=tokens,
            rows=rows,
            sampling=task.sampling,
            sampled=sampled,
        )


def _inputs(
    task: ReplayTask | JuryTask, body: bytes | memoryview, hidden: int
) -> tuple[tuple[int, ...], Rows | None]:
    """The tokens and rows of a task's body."""
    size = task.token_bytes
    if len(body) < size or (task.layers.start == 0 and len(body) != size):
        raise PeerCheating(
            f"a replay of {task.positions} positions came with {len(body)} bytes; expected "
            f"{size} bytes of tokens{'' if task.layers.start == 0 else ' and then the rows'}"
        )
    tokens = np.frombuffer(bytes(body[:size]), dtype="<u4")
    rows = decode_rows(task.widths, body[size:], hidden) if task.layers.start else None
    return tuple(int(t) for t in tokens), rows


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What comes out of a replay, in the form that a claim has it."""

    rows_out: str
    tokens: tuple[int, ...]
    """Drawn after the rows; empty of a block that does not end the model."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an auditor knows of an answer: enough to set the task for any of its hops."""

    model: ModelId
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    sampling: Sampling

    @property
    def inputs(self) -> tuple[int, ...]:
        """The token at every position that was computed."""
        return (*self.prompt, *self.tokens[:-1])

    def root(self) -> str:
        """Root of the first hop's rows in."""
        return rows_root([token_hash(t) for t in self.inputs])


def make_task(
    ticket: Ticket,
    sealed: str,
    answer: Answer,
    layers: LayerRange,
    ends: bool,
    rows: Rows | None = None,
    *,
    seats: int,
    commit_ms: int,
    reveal_ms: int,
) -> tuple[ReplayTask, bytes]:
    """The task for one hop of an answer, and its body.

    Args:
        ends: whether the block ends the model, so that tokens are drawn after it.
        rows: the rows in of a block that does not begin the model, int64 [positions, hidden].

    Raises:
        ValueError: rows are missing, or there are more than a frame holds.
    """
    widths, encoded = (b"", []) if layers.start == 0 or rows is None else encode_rows(rows)
    task = ReplayTask(
        ticket=ticket,
        sealed=sealed,
        model=answer.model,
        layers=layers,
        prompt=len(answer.prompt),
        positions=len(answer.inputs),
        sampling=answer.sampling if ends else None,
        widths=widths,
        seats=seats,
        commit_ms=commit_ms,
        reveal_ms=reveal_ms,
    )
    tokens = np.array(answer.inputs, dtype="<u4").tobytes() if task.token_bytes else b""
    return task, b"".join((tokens, *encoded))


class Replayer(Protocol):
    """Whatever computes for a member: a node's engine, or a decoder of its own."""

    async def replay(self, work: ReplayWork) -> ReplayResult:
        """Compute the rows and tokens of `work`.

        Raises:
            UnisonoError: it cannot be computed here: other model or layers, no room, a token
                outside the vocabulary.
        """
        ...

    async def rows(self, work: ReplayWork) -> tuple[bytes, Sequence[bytes]]:
        """Compute the rows of `work`: their widths, and each in its canonical encoding.

        Raises:
            UnisonoError: as `replay`.
        """
        ...


class Recomputer(Protocol):
    """Whatever computes for a member of a chain's committee."""

    async def recompute(self, work: ReplayWork) -> Recomputed:
        """Compute the rows and tokens of `work`.

        Raises:
            UnisonoError: as `Replayer.replay`.
        """
        ...


def replay(decoder: Decoder, works: Sequence[ReplayWork]) -> list[ReplayResult]:
    """Replay tasks of one block on a decoder, their rows side by side in passes of `PASS_ROWS`.

    The results do not depend on what shares a pass. Costs one prefill of each.

    Raises:
        UnisonoError: a token outside the vocabulary, or no room for keys and values.
    """
    results: list[ReplayResult] = []
    batch: list[ReplayWork] = []
    for work in works:
        if batch and sum(w.positions for w in (*batch, work)) > BATCH_ROWS:
            results += _replay_batch(decoder, batch)
            batch = []
        batch.append(work)
    return results + (_replay_batch(decoder, batch) if batch else [])


def recompute(decoder: Decoder, work: ReplayWork) -> Recomputed:
    """The rows' root and the tokens of one task.

    Raises:
        UnisonoError: as `replay`.
    """
    rows = forward(decoder, work)
    return Recomputed(rows_root(row_hashes(rows)), tuple(_tokens(decoder, work, rows)))


def forward(decoder: Decoder, work: ReplayWork) -> Rows:
    """The rows out of one task, int64 [positions, hidden].

    Raises:
        UnisonoError: as `replay`.
    """
    cache = decoder.new_cache(work.positions)
    out: list[list[Rows]] = [[]]
    try:
        for start in range(0, work.positions, PASS_ROWS):
            count = min(PASS_ROWS, work.positions - start)
            _run_pass(decoder, [work], [cache], [(0, start, count)], out)
    finally:
        cache.close()
    return np.concatenate(out[0])


def _replay_batch(decoder: Decoder, works: Sequence[ReplayWork]) -> list[ReplayResult]:
    caches = [decoder.new_cache(work.positions) for work in works]
    out: list[list[Rows]] = [[] for _ in works]
    try:
        # (task, first position, rows) of a pass
        plan: list[tuple[int, int, int]] = []
        room = PASS_ROWS
        for index, work in enumerate(works):
            start = 0
            while start < work.positions:
                count = min(room, work.positions - start)
                plan.append((index, start, count))
                start += count
                room -= count
                if room == 0:
                    _run_pass(decoder, works, caches, plan, out)
                    plan, room = [], PASS_ROWS
        if plan:
            _run_pass(decoder, works, caches, plan, out)
    finally:
        for cache in caches:
            cache.close()
    results: list[ReplayResult] = []
    for work, parts in zip(works, out, strict=True):
        rows = np.concatenate(parts)
        _, encoded = encode_rows(rows)
        results.append(work.result(encoded, _tokens(decoder, work, rows), row_hashes(rows)))
    return results


def _run_pass(
    decoder: Decoder,
    works: Sequence[ReplayWork],
    caches: Sequence[SessionCache],
    plan: Sequence[tuple[int, int, int]],
    out: Sequence[list[Rows]],
) -> None:
    pieces: list[Rows] = []
    for index, start, count in plan:
        part = works[index].source[start : start + count]
        pieces.append(part if isinstance(part, np.ndarray) else decoder.embed(part))
    segments = [Segment(caches[i], start, count) for i, start, count in plan]
    rows = decoder.forward(np.concatenate(pieces), segments)
    at = 0
    for index, _, count in plan:
        out[index].append(rows[at : at + count])
        at += count


def _tokens(decoder: Decoder, work: ReplayWork, rows: Rows) -> list[int]:
    draws = work.draws
    first = work.positions - len(draws)
    tokens: list[int] = []
    for at in range(0, len(draws), _DRAWS):
        some = [
            (first + i, first + 1 + i, draws[i]) for i in range(at, min(at + _DRAWS, len(draws)))
        ]
        tokens += [choice.token for choice in decoder.choose(rows, some)]
    return tokens
