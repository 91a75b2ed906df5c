"""Committee members of every kind, honest and not, and the round that they take part in.

They speak the messages of `wire.verification_messages` and know nothing of how they are judged:
the same classes sit in unit tests, in benchmarks and behind real streams.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from unisono.clock import VirtualClock
from unisono.errors import PeerCheating
from unisono.types import NodeId, digest
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import (
    SALT_BYTES,
    CommitsClosed,
    ReplayResult,
    ResultCommit,
    ResultReveal,
    Work,
)


@dataclass(frozen=True, slots=True)
class Hearing:
    """What a member can know of an audit before it has committed."""

    work: Work
    claimed: tuple[str, str, str] | None
    """Roots of the claim, for those who got the receipt by the back door."""
    overheard: tuple[ResultCommit, ...]
    """Others' commits, for those who listen."""


@dataclass(slots=True)
class Juror:
    """An honest member: it computes, commits and opens."""

    identity: Identity
    chance: random.Random
    computed: int = 0
    """Replays that it has run: what its conduct costs."""
    opening: ResultReveal | None = field(default=None, init=False)

    @property
    def node(self) -> NodeId:
        """Its id."""
        return self.identity.node_id

    def vote(self, hearing: Hearing, truth: ReplayResult) -> ReplayResult | None:
        """The result that it stands for; `truth` is what computing gives."""
        self.computed += 1
        return truth

    def commits(self, hearing: Hearing, truth: ReplayResult) -> list[ResultCommit]:
        """What it sends in the first phase, in order."""
        result = self.vote(hearing, truth)
        if result is None:
            return []
        self.opening = self._reveal(hearing, result)
        return [self._commit(hearing, self.opening)]

    def reveals(self, closed: CommitsClosed) -> list[ResultReveal]:
        """What it sends in the second phase."""
        return [] if self.opening is None else [self.opening]

    def belated(self, closed: CommitsClosed) -> list[ResultReveal]:
        """What it sends after the end."""
        return []

    def _reveal(self, hearing: Hearing, result: ReplayResult) -> ResultReveal:
        salt = self.chance.randbytes(SALT_BYTES)
        unsigned = ResultReveal(hearing.work, self.node, result, salt)
        return unsigned.signed_by(self.identity)

    def _commit(self, hearing: Hearing, opening: ResultReveal) -> ResultCommit:
        unsigned = ResultCommit(hearing.work, self.node, opening.sealed())
        return unsigned.signed_by(self.identity)


class Lazy(Juror):
    """Does not compute: it repeats the claim's roots, and makes up the rows that no claim shows."""

    def vote(self, hearing: Hearing, truth: ReplayResult) -> ReplayResult | None:
        made_up = [self.chance.randbytes(32).hex() for _ in range(4)]
        rows_in, rows_out, tokens = hearing.claimed or (made_up[0], made_up[1], made_up[2])
        return ReplayResult(rows_in, rows_out, tokens, made_up[3])


class LazyByAgreement(Juror):
    """Does not compute: all of its kind make the same result of the claim, and so agree."""

    def vote(self, hearing: Hearing, truth: ReplayResult) -> ReplayResult | None:
        common = digest("lazy", bytes.fromhex(hearing.work.audit)).hex()
        rows_in, rows_out, tokens = hearing.claimed or (common, common, common)
        return ReplayResult(rows_in, rows_out, tokens, common)


class Copying(Juror):
    """Does not compute: it commits to a digest that it overheard, and opens what others open."""

    def commits(self, hearing: Hearing, truth: ReplayResult) -> list[ResultCommit]:
        others = [c for c in hearing.overheard if c.node != self.node]
        if not others:
            return []
        copied = msgspec.structs.replace(others[0], node=self.node)
        return [copied.signed_by(self.identity)]


class CopyingTheOpening(Copying):
    """Copies a commit, and later what opened it, under its own name."""

    original: ResultReveal | None = None

    def reveals(self, closed: CommitsClosed) -> list[ResultReveal]:
        if self.original is None:
            return []
        return [msgspec.structs.replace(self.original, node=self.node).signed_by(self.identity)]


class Silent(Juror):
    """Takes the task and never commits."""

    def vote(self, hearing: Hearing, truth: ReplayResult) -> ReplayResult | None:
        return None


class Withholding(Juror):
    """Commits, and never opens."""

    def reveals(self, closed: CommitsClosed) -> list[ResultReveal]:
        return []


class Late(Withholding):
    """Commits, and opens when it is over."""

    def belated(self, closed: CommitsClosed) -> list[ResultReveal]:
        return [] if self.opening is None else [self.opening]


class TwoFaced(Juror):
    """Commits to two results, to choose later."""

    def commits(self, hearing: Hearing, truth: ReplayResult) -> list[ResultCommit]:
        first = Juror.commits(self, hearing, truth)
        lie = msgspec.structs.replace(truth, rows_out=self.chance.randbytes(32).hex())
        return [*first, self._commit(hearing, self._reveal(hearing, lie))]


class ChangingItsMind(Juror):
    """Commits to one result and opens another."""

    def reveals(self, closed: CommitsClosed) -> list[ResultReveal]:
        if self.opening is None:
            return []
        lie = msgspec.structs.replace(self.opening.result, rows_out=self.chance.randbytes(32).hex())
        return [msgspec.structs.replace(self.opening, result=lie).signed_by(self.identity)]


class ReplayedEpoch(Juror):
    """Computes once, and commits to the same digest in every later epoch."""

    past: ResultCommit | None = None

    def commits(self, hearing: Hearing, truth: ReplayResult) -> list[ResultCommit]:
        if self.past is None:
            (self.past,) = Juror.commits(self, hearing, truth)
            return [self.past]
        again = ResultCommit(hearing.work, self.node, self.past.digest)
        return [again.signed_by(self.identity)]

    def reveals(self, closed: CommitsClosed) -> list[ResultReveal]:
        if self.opening is None:
            return []
        moved = msgspec.structs.replace(self.opening, work=closed.work)
        return [moved.signed_by(self.identity)]


class Resending(ReplayedEpoch):
    """Computes once, and sends the very messages of then again."""

    def commits(self, hearing: Hearing, truth: ReplayResult) -> list[ResultCommit]:
        if self.past is None:
            (self.past,) = Juror.commits(self, hearing, truth)
        return [self.past]

    def reveals(self, closed: CommitsClosed) -> list[ResultReveal]:
        return [] if self.opening is None else [self.opening]


class Colluding(Juror):
    """Stands with its friends for one false result, the same for all of them."""

    def vote(self, hearing: Hearing, truth: ReplayResult) -> ReplayResult | None:
        self.computed += 1  # the lie is made of the truth, so that it looks like one
        return lie_of(hearing.work.audit, truth)


def lie_of(audit: str, truth: ReplayResult) -> ReplayResult:
    """The result that colluders agree on for an audit."""
    false = digest("collusion", bytes.fromhex(audit)).hex()
    return msgspec.structs.replace(truth, rows_out=false, sampled=false)


def sybil_swarm(stake: int, count: int, chance: random.Random) -> list[tuple[Identity, int]]:
    """One stake split over many identities, as evenly as it goes; none without stake."""
    count = max(1, min(count, stake))
    share, rest = divmod(stake, count)
    return [(Identity.from_seed(chance.randbytes(32)), share + (i < rest)) for i in range(count)]


class Ballot(Protocol):
    """One audit from its auditor's side (`verification.stakes.committee.Committee`)."""

    closed: CommitsClosed | None
    deadline: float

    @property
    def over(self) -> bool: ...

    def commit(self, sender: NodeId, message: ResultCommit) -> None: ...

    def reveal(self, sender: NodeId, message: ResultReveal) -> None: ...

    def tick(self) -> None: ...


async def hold_round(
    ballot: Ballot,
    clock: VirtualClock,
    jurors: Sequence[Juror],
    hearing: Hearing,
    truth: ReplayResult,
    chance: random.Random,
) -> Mapping[NodeId, str]:
    """Let members vote in random order, the copying last, and close the ballot by its clock.

    Returns:
        Node → why its message was refused as cheating.
    """
    refused: dict[NodeId, str] = {}
    order = [*jurors]
    chance.shuffle(order)
    order.sort(key=lambda juror: isinstance(juror, Copying))
    heard: list[ResultCommit] = []
    for juror in order:
        known = Hearing(hearing.work, hearing.claimed, tuple(heard))
        for commit in juror.commits(known, truth):
            heard.append(commit)
            try:
                ballot.commit(juror.node, commit)
            except PeerCheating as error:
                refused[juror.node] = str(error)
    if ballot.closed is None:
        await _reach(ballot, clock)
    assert ballot.closed is not None
    opened: list[ResultReveal] = []
    for juror in order:
        if isinstance(juror, CopyingTheOpening):
            juror.original = opened[0] if opened else None
        for reveal in juror.reveals(ballot.closed):
            opened.append(reveal)
            try:
                ballot.reveal(juror.node, reveal)
            except PeerCheating as error:
                refused[juror.node] = str(error)
    if not ballot.over:
        await _reach(ballot, clock)
    for juror in order:
        for reveal in juror.belated(ballot.closed):
            ballot.reveal(juror.node, reveal)
    return refused


async def _reach(ballot: Ballot, clock: VirtualClock) -> None:
    ballot.tick()
    await clock.advance(max(0.0, ballot.deadline - clock.monotonic()))
    ballot.tick()
