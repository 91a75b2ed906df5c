"""A member's seat in one committee, without a network: it commits once, and opens once."""

from __future__ import annotations

from unisono.errors import PeerCheating
from unisono.types import NodeId, canonical, digest
from unisono.verification.stakes.faults import CommitteeFault
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import (
    CommitsClosed,
    ReplayResult,
    ReplayTask,
    ResultCommit,
    ResultReveal,
)


class Seat:
    """One member in one audit. `commit`, then `reveal` when the closing list has come."""

    def __init__(self, task: ReplayTask, body: bytes | memoryview, identity: Identity) -> None:
        self._task = task
        self._work = task.work(body)
        self._identity = identity
        self._opening: ResultReveal | None = None
        self._commit: ResultCommit | None = None
        self._closed: CommitsClosed | None = None

    def commit(self, result: ReplayResult) -> ResultCommit:
        """Seal the result.

        The salt follows from the node's key and the task: whoever sets the same task again, even
        after a restart, gets the same commit, and cannot make two of an honest node's.
        """
        secret, node = self._identity.secret_seed(), self._identity.node_id
        salt = digest("replay-salt/1", secret, canonical(self._work))
        self._opening = ResultReveal(self._work, node, result, salt).signed_by(self._identity)
        self._commit = ResultCommit(self._work, node, self._opening.sealed()).signed_by(
            self._identity
        )
        return self._commit

    def reveal(self, closed: CommitsClosed) -> ResultReveal:
        """Open the commit, now that no other can be added.

        Raises:
            PeerCheating: the list is not the auditor's, is of another task, lacks or alters this
                member's commit, or hides another seal than the task: nothing is opened.
        """
        if self._commit is None or self._opening is None:
            raise PeerCheating("the commits were closed before this member had committed")
        own = dict(closed.commits).get(self._commit.node)
        problem = ""
        if closed.work != self._work or closed.auditor != self._task.ticket.auditor:
            problem = "it is of another task"
        elif not closed.signature_is_good():
            problem = "the auditor did not sign it"
        elif own != self._commit.digest:
            problem = "this member's commit is not in it"
        elif closed.sealed != self._task.sealed:
            problem = "it hides another seal than the task"
        if problem:
            raise PeerCheating(f"a closing list that no honest auditor sends: {problem}")
        if self._closed is None:
            self._closed = closed
        return self._opening

    def two_faced(self, closed: CommitsClosed) -> CommitteeFault | None:
        """The auditor's fault if it signed this list and another one for the same audit."""
        mine = self._closed
        if mine is None or closed == mine:
            return None
        fault = CommitteeFault(
            kind="two_faced",
            node=NodeId(mine.auditor),
            work=mine.work,
            message=f"two_faced: auditor {mine.auditor[:16]}… closed one audit with two lists",
            closed=(mine, closed),
        )
        return fault if fault.proven() else None
