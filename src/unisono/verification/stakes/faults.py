"""What members of a committee and its auditor can do wrong, each with the messages that show it.

fault             shown by                                          who can check it
double_commit     two commits of one node in one audit              anyone
wrong_opening     a commit and a reveal that does not open it       anyone
copied_commit     one digest from two nodes, and its owner's reveal anyone
stale_epoch       a digest that was used in an earlier epoch        anyone
uncomputed        right roots, wrong rows: voted without computing  anyone, or by a replay
dissent           another result than the majority's                anyone, or by a replay
planted_check     another result than the auditor had sealed        anyone, or by a replay
two_faced         two closing lists of one auditor in one audit     anyone
no_commit         nothing came in time                              the auditor
no_reveal         the digest was never opened                       the auditor
late_reveal       it was opened after the others were known         the auditor
"""

from __future__ import annotations

import msgspec

from unisono.types import NodeId, canonical, digest
from unisono.verification.verdict import CommitteeFaultKind, Fault, Verdict
from unisono.wire.verification_messages import (
    CommitsClosed,
    ReplayResult,
    ResultCommit,
    ResultReveal,
    Work,
)

PROVABLE: frozenset[CommitteeFaultKind] = frozenset(
    {
        "double_commit",
        "wrong_opening",
        "copied_commit",
        "stale_epoch",
        "uncomputed",
        "dissent",
        "planted_check",
        "two_faced",
    }
)
"""Faults that the evidence alone shows; the others rest on the auditor's clock."""


class PlantOpening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the `sealed` of a task hides: the outcome if the auditor knew it, else None."""

    audit: str
    salt: bytes
    result: ReplayResult | None

    def seal(self) -> str:
        """The `sealed` of the task: 64 hex digits."""
        return digest("plant/1", bytes.fromhex(self.audit), self.salt, canonical(self.result)).hex()


class CommitteeFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node's fault in one audit."""

    kind: CommitteeFaultKind
    node: NodeId
    work: Work
    message: str
    commits: tuple[ResultCommit, ...] = ()
    reveals: tuple[ResultReveal, ...] = ()
    """The blamed node's first."""
    closed: tuple[CommitsClosed, ...] = ()
    plant: PlantOpening | None = None

    def proven(self) -> bool:
        """Whether the messages in here convict the node without anyone's word.

        For `dissent` and `uncomputed` they show that most of a committee says otherwise, for
        `planted_check` that the auditor had bound itself to another result; a replay shows
        beyond that who is right.
        """
        if not all(m.signature_is_good() for m in (*self.commits, *self.reveals, *self.closed)):
            return False
        check = {
            "double_commit": self._double_commit,
            "wrong_opening": self._wrong_opening,
            "copied_commit": self._copied_commit,
            "stale_epoch": self._stale_epoch,
            "uncomputed": self._outvoted,
            "dissent": self._outvoted,
            "planted_check": self._planted,
            "two_faced": self._two_faced,
        }.get(self.kind)
        return check is not None and check()

    def verdict(self) -> Verdict:
        """INVALID if the messages in here convict the node, else INCONCLUSIVE.

        A vote against the many stays INCONCLUSIVE too: most of a committee may be wrong, and who
        is right a replay or the fraud game shows.
        """
        fault = Fault(self.kind, self.message, node=self.node)
        if not self.proven():
            why = f"what is signed here does not show that {self.message}"
            return Verdict("INCONCLUSIVE", fault, why)
        if self.kind in ("dissent", "planted_check", "uncomputed"):
            why = f"{self.message}; signed by all concerned, and a replay shows who is right"
            return Verdict("INCONCLUSIVE", fault, why)
        return Verdict("INVALID", fault, self.message)

    def _double_commit(self) -> bool:
        return (
            len(self.commits) == 2
            and all((c.node, c.work) == (self.node, self.work) for c in self.commits)
            and self.commits[0] != self.commits[1]
        )

    def _own(self) -> tuple[ResultCommit, ResultReveal] | None:
        if not self.commits or not self.reveals:
            return None
        commit, reveal = self.commits[0], self.reveals[0]
        mine = all((m.node, m.work) == (self.node, self.work) for m in (commit, reveal))
        return (commit, reveal) if mine else None

    def _wrong_opening(self) -> bool:
        own = self._own()
        return own is not None and not own[1].opens(own[0])

    def _copied_commit(self) -> bool:
        if len(self.commits) != 2 or len(self.reveals) != 1:
            return False
        copy, original = self.commits
        return (
            (copy.node, copy.work) == (self.node, self.work)
            and original.node != copy.node
            and original.work == copy.work
            and copy.digest == original.digest
            and self.reveals[0].opens(original)
        )

    def _stale_epoch(self) -> bool:
        if len(self.commits) != 2:
            return False
        new, old = self.commits
        return (
            (new.node, new.work) == (self.node, self.work)
            and old.work.epoch < new.work.epoch
            and new.digest == old.digest
        )

    def _outvoted(self) -> bool:
        own = self._own()
        if own is None or len(self.closed) != 1 or not own[1].opens(own[0]):
            return False
        closed = dict(self.closed[0].commits)
        if self.closed[0].work != self.work or closed.get(self.node) != own[0].digest:
            return False
        others = self.reveals[1:]
        opened = {
            r.node for r in others if r.work == self.work and closed.get(r.node) == r.sealed()
        }
        return (
            len({r.result for r in others}) == 1
            and others[0].result != own[1].result
            and (others[0].result.roots() == own[1].result.roots()) == (self.kind == "uncomputed")
            and 2 * len(opened) > len(closed)
        )

    def _planted(self) -> bool:
        own = self._own()
        if own is None or len(self.closed) != 1 or self.plant is None:
            return False
        closed, known = self.closed[0], self.plant.result
        return (
            closed.work == self.work
            and self.work.audit == self.plant.audit
            and closed.sealed == self.plant.seal()
            and own[1].opens(own[0])
            and known is not None
            and own[1].result != known
        )

    def _two_faced(self) -> bool:
        return (
            len(self.closed) == 2
            and all((c.auditor, c.work.audit) == (self.node, self.work.audit) for c in self.closed)
            and self.closed[0] != self.closed[1]
        )
