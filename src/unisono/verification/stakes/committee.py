"""A committee's commit–reveal as its auditor sees it, without a network: messages in, verdict out.

    COMMITTING  until every member has committed, or the deadline
    REVEALING   the closing list is signed and nobody can commit any more; until every committed
                member has revealed, or the deadline
    CLOSED      `outcome` says what the equal results of a majority of the seats were, and
                `faults` what members did wrong

The honest agree to the bit, so agreement is equality. A verdict needs more than half of the
seats, not of those who answered: withholding can delay a verdict, and cannot make one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import Enum

import msgspec
from msgspec import UNSET

from unisono.clock import Clock
from unisono.errors import PeerCheating
from unisono.types import NodeId
from unisono.verification.stakes.faults import CommitteeFault, PlantOpening
from unisono.verification.verdict import CommitteeFaultKind, FaultKind, Verdict, fault_of
from unisono.wire.claims import HopClaim
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import (
    MAX_COMMITTEE,
    CommitsClosed,
    ReplayResult,
    ResultCommit,
    ResultReveal,
    Work,
)

COMMIT_SECONDS = 30.0
REVEAL_SECONDS = 10.0


class Phase(Enum):
    """Where an audit stands."""

    COMMITTING = "committing"
    REVEALING = "revealing"
    CLOSED = "closed"


class Outcome(msgspec.Struct, frozen=True):
    """What a committee found."""

    work: Work
    seats: int
    votes: int
    """Equal results of the largest group."""
    result: ReplayResult | None
    """That group's result if it is more than half of the seats, else None."""
    unanimous: bool
    """Every seat gave it."""

    def judge(self, claim: HopClaim, rows_in: str) -> Verdict:
        """The verdict on the audited claim.

        INCONCLUSIVE: no majority of the seats, or the auditor gave other inputs than the answer's.

        Args:
            rows_in: root of what the hop was to be given: of the request's tokens for the first
                hop (`work.Answer.root`), else the `rows_out` of the hop before.
        """
        if self.result is None:
            return Verdict(
                "INCONCLUSIVE",
                message=f"{self.votes} of {self.seats} members gave the same result; a verdict "
                f"needs {majority(self.seats)}: draw a larger committee",
            )
        if self.result.rows_in != rows_in:
            return Verdict(
                "INCONCLUSIVE",
                message="the committee was given other inputs than the answer's: that is the "
                "auditor's fault, or of whoever gave it the rows",
            )
        wrong = difference(self.result, claim)
        if wrong is None:
            return Verdict("VALID", message="the committee computed what the node signed")
        kind, what = wrong
        message = (
            f"hop {claim.hop} (layers {claim.layers}, node {claim.node}) {what}, as "
            f"{self.votes} of {self.seats} members of the committee found"
        )
        return Verdict("INVALID", fault_of(claim, kind, message), message, claim.positions)


def majority(seats: int) -> int:
    """The least number of equal results that decide."""
    return seats // 2 + 1


def difference(result: ReplayResult, claim: HopClaim) -> tuple[FaultKind, str] | None:
    """The first root in which a claim differs from a replay, or None."""
    if claim.rows_in != result.rows_in:
        return "rows_in", "signed other rows in than it was given"
    if claim.rows_out != result.rows_out:
        return "rows_out", "computed other rows"
    # an ensemble's last hop was given the tokens, which it signs as such
    chose = claim.distributions is UNSET
    if chose and result.tokens and claim.tokens != result.tokens:
        return "sampling", "gave other tokens than its rows give"
    return None


class Committee:
    """One audit, from its auditor's side. `Auditor` in `service` carries its messages."""

    def __init__(
        self,
        work: Work,
        members: Sequence[NodeId],
        identity: Identity,
        clock: Clock,
        plant: PlantOpening,
        *,
        seats: int | None = None,
        commit_seconds: float = COMMIT_SECONDS,
        reveal_seconds: float = REVEAL_SECONDS,
        earlier: Mapping[str, ResultCommit] | None = None,
    ) -> None:
        """Open the audit: time runs from now.

        Args:
            plant: opening of the task's `sealed`.
            seats: those that the task names, if some of them stayed empty; default: the members.
            earlier: commits of earlier audits by their digest, against replay.
        """
        if not 0 < len(set(members)) == len(members) <= MAX_COMMITTEE:
            raise ValueError(f"a committee has 1 to {MAX_COMMITTEE} members, each once")
        self.work = work
        self.members = tuple(members)
        self.seats = max(len(members), seats or 0)
        self.phase = Phase.COMMITTING
        self.closed: CommitsClosed | None = None
        self.outcome: Outcome | None = None
        self._identity = identity
        self._clock = clock
        self._plant = plant
        self._reveal_seconds = reveal_seconds
        self._earlier: Mapping[str, ResultCommit] = earlier or {}
        self._commits: dict[NodeId, ResultCommit] = {}
        self._reveals: dict[NodeId, ResultReveal] = {}
        self._found: dict[NodeId, CommitteeFault] = {}
        self.deadline = clock.monotonic() + commit_seconds

    @property
    def over(self) -> bool:
        """Whether there is an outcome."""
        return self.phase is Phase.CLOSED

    @property
    def faults(self) -> tuple[CommitteeFault, ...]:
        """At most one per member, the gravest; complete once the phase is CLOSED, but for reveals
        that come even later."""
        return tuple(self._found[n] for n in self.members if n in self._found)

    @property
    def commits(self) -> tuple[ResultCommit, ...]:
        """Those that came in time."""
        return tuple(self._commits.values())

    @property
    def reveals(self) -> tuple[ResultReveal, ...]:
        """Those that came in time and open their commit."""
        return tuple(r for n, r in self._reveals.items() if r.opens(self._commits[n]))

    def commit(self, sender: NodeId, message: ResultCommit) -> None:
        """Take a member's commit from the peer that proved to be `sender`.

        Raises:
            PeerCheating: not a member, not signed by the sender, or of another audit: no honest
                peer sends it. It does not count, and nobody else is blamed for it.
        """
        self._admit(sender, message)
        self.tick()
        first = self._commits.get(sender)
        if first is not None:
            if first != message:
                self._blame("double_commit", sender, "committed to two results", (first, message))
            return
        if self.phase is not Phase.COMMITTING:
            return  # too late; the deadline has named it
        self._commits[sender] = message
        old = self._earlier.get(message.digest)
        if old is not None and old.work.epoch < message.work.epoch:
            self._blame(
                "stale_epoch",
                sender,
                f"commits in epoch {message.work.epoch} to a digest of epoch {old.work.epoch}",
                (message, old),
            )
        if len(self._commits) == len(self.members):
            self._close_commits()

    def reveal(self, sender: NodeId, message: ResultReveal) -> None:
        """Take a member's reveal.

        Raises:
            PeerCheating: as for `commit`, or it comes before the closing list was sent.
        """
        self._admit(sender, message)
        self.tick()
        if self.phase is Phase.COMMITTING:
            raise PeerCheating("a reveal before the commits were closed")
        commit = self._commits.get(sender)
        if commit is None or sender in self._reveals:
            return
        if self.phase is Phase.CLOSED:
            if self._found[sender].kind == "no_reveal":
                del self._found[sender]
                self._blame(
                    "late_reveal", sender, "revealed after the deadline", (commit,), (message,)
                )
            return
        self._reveals[sender] = message
        if not message.opens(commit):
            self._blame(
                "wrong_opening",
                sender,
                "revealed something else than it had committed to",
                (commit,),
                (message,),
            )
        if len(self._reveals) == len(self._commits):
            self._close()

    def tick(self) -> None:
        """Let the clock act: call it when `deadline` has come."""
        if self.phase is Phase.COMMITTING and self._clock.monotonic() >= self.deadline:
            self._close_commits()
        if self.phase is Phase.REVEALING and self._clock.monotonic() >= self.deadline:
            self._close()

    def _admit(self, sender: NodeId, message: ResultCommit | ResultReveal) -> None:
        name = type(message).__name__
        if sender not in self.members:
            raise PeerCheating(f"a {name} from {sender[:16]}…, who is not in the committee")
        if message.node != sender:
            raise PeerCheating(f"{sender[:16]}… sent a {name} of node {message.node[:16]}…")
        if message.work != self.work:
            raise PeerCheating(
                f"a {name} of epoch {message.work.epoch} and task {message.work.task[:16]}…; this "
                f"is epoch {self.work.epoch} and task {self.work.task[:16]}…"
            )
        if not message.signature_is_good():
            raise PeerCheating(f"a {name} without the signature of {sender[:16]}…")

    def _close_commits(self) -> None:
        for node in self.members:
            if node not in self._commits:
                self._blame("no_commit", node, "committed to nothing in time")
        self.closed = CommitsClosed(
            work=self.work,
            auditor=self._identity.node_id,
            sealed=self._plant.seal(),
            commits=tuple(sorted((n, c.digest) for n, c in self._commits.items())),
        ).signed_by(self._identity)
        self.phase = Phase.REVEALING
        self.deadline = self._clock.monotonic() + self._reveal_seconds
        if not self._commits:
            self._close()

    def _close(self) -> None:
        self.phase = Phase.CLOSED
        opened = {r.node: r for r in self.reveals}
        self._name_copies(opened)
        for node, commit in self._commits.items():
            if node not in self._reveals:
                self._blame("no_reveal", node, "never opened its commit", (commit,))
        # who is caught at cheating with its digest has no vote
        votes = Counter(r.result for n, r in opened.items() if n not in self._found)
        top = votes.most_common(1)
        count = top[0][1] if top else 0
        decided = count >= majority(self.seats)
        result = top[0][0] if decided else None
        if self._plant.result is not None and result != self._plant.result:
            result = None
        self.outcome = Outcome(self.work, self.seats, count, result, count == self.seats)
        known = self._plant.result
        if known is not None:  # whoever differs is wrong, even if most agree with it
            self._name_unknowing(opened, known)
        elif result is not None:
            self._name_dissent(opened, result)

    def _name_copies(self, opened: Mapping[NodeId, ResultReveal]) -> None:
        """Of equal digests only the owner's can be opened: it holds the owner's id."""
        owners = {self._commits[n].digest: n for n in opened}
        for node, commit in self._commits.items():
            owner = owners.get(commit.digest)
            if owner is not None and owner != node:
                self._found.pop(node, None)  # that it could not open it is a consequence
                self._blame(
                    "copied_commit",
                    node,
                    f"committed to the digest of {owner[:16]}…",
                    (commit, self._commits[owner]),
                    (opened[owner],),
                )

    def _name_unknowing(self, opened: Mapping[NodeId, ResultReveal], known: ReplayResult) -> None:
        assert self.closed is not None
        for node, reveal in opened.items():
            if reveal.result != known:
                self._blame(
                    "planted_check",
                    node,
                    "gave another result than the auditor knew",
                    (self._commits[node],),
                    (reveal,),
                    planted=True,
                )

    def _name_dissent(self, opened: Mapping[NodeId, ResultReveal], result: ReplayResult) -> None:
        agreeing = tuple(r for r in opened.values() if r.result == result)
        for node, reveal in opened.items():
            if reveal.result == result:
                continue
            lazy = reveal.result.roots() == result.roots()
            self._blame(
                "uncomputed" if lazy else "dissent",
                node,
                "knew the roots and not the rows: it did not compute"
                if lazy
                else f"gave another result than {len(agreeing)} of {self.seats} members",
                (self._commits[node],),
                (reveal, *agreeing),
            )

    def _blame(
        self,
        kind: CommitteeFaultKind,
        node: NodeId,
        what: str,
        commits: tuple[ResultCommit, ...] = (),
        reveals: tuple[ResultReveal, ...] = (),
        *,
        planted: bool = False,
    ) -> None:
        """The first fault of a node stays: what follows is its consequence."""
        self._found.setdefault(
            node,
            CommitteeFault(
                kind=kind,
                node=node,
                work=self.work,
                message=f"{kind}: node {node[:16]}… {what}",
                commits=commits,
                reveals=reveals,
                closed=(self.closed,) if self.closed is not None else (),
                plant=self._plant if planted else None,
            ),
        )
