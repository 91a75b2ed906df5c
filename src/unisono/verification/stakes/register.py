"""Who draws lots with which key, and who may be asked to replay in which epoch."""

from __future__ import annotations

from typing import Protocol

from unisono.errors import PeerCheating
from unisono.types import NodeId
from unisono.verification.stakes.lottery import MAX_VERIFIERS, Roster, binding_is_good
from unisono.wire.verification_messages import LotteryBinding

ROSTERS_KEPT = 64


class Register(Protocol):
    """A chain's registry, or the memory of a private network."""

    def binding(self, node: NodeId, epoch: int) -> LotteryBinding | None:
        """The key that a node draws with in an epoch; None: it may not."""
        ...

    def roster(self, epoch: int, auditor: NodeId) -> Roster | None:
        """Those whom the auditor's committees of an epoch are drawn from; None: not known here."""
        ...


class MemoryRegister:
    """A register filled by messages that every member of a private network gets."""

    def __init__(self) -> None:
        self._bindings: dict[NodeId, list[LotteryBinding]] = {}
        self._rosters: dict[int, Roster] = {}

    def bind(self, binding: LotteryBinding, epoch: int) -> None:
        """Take a binding during `epoch`. It holds from a later epoch on, so that nobody chooses a
        key to suit a beacon value that is known.

        Raises:
            PeerCheating: node and key have not agreed to it, it begins in the past, or the node
                signed another key for the same epoch.
            ValueError: the register is full.
        """
        if not binding_is_good(binding):
            raise PeerCheating(
                f"the lottery key of node {binding.node[:16]}… is not signed by node and key"
            )
        known = self._bindings.get(binding.node, [])
        if binding in known:
            return
        if binding.since <= epoch:
            raise PeerCheating(
                f"node {binding.node[:16]}… binds a lottery key from epoch {binding.since} on, in "
                f"epoch {epoch}: it must be bound before its first epoch begins"
            )
        if any(other.since == binding.since for other in known):
            raise PeerCheating(
                f"node {binding.node[:16]}… binds two lottery keys from epoch {binding.since} on"
            )
        if not known and len(self._bindings) >= MAX_VERIFIERS:
            raise ValueError(f"the register holds {MAX_VERIFIERS} nodes already")
        # claims of the last epochs may still be audited with the key before
        latest = sorted((*known, binding), key=lambda b: b.since)[-3:]
        self._bindings[binding.node] = latest

    def appoint(self, roster: Roster) -> None:
        """Set the roster of an epoch, once.

        Raises:
            ValueError: it has another one already.
        """
        if self._rosters.setdefault(roster.epoch, roster) != roster:
            raise ValueError(f"epoch {roster.epoch} has another roster already")
        while len(self._rosters) > ROSTERS_KEPT:
            del self._rosters[min(self._rosters)]

    def binding(self, node: NodeId, epoch: int) -> LotteryBinding | None:
        """See `Register.binding`."""
        held = [b for b in self._bindings.get(node, []) if b.since <= epoch]
        return held[-1] if held else None

    def roster(self, epoch: int, auditor: NodeId | None = None) -> Roster | None:
        """See `Register.roster`; here all auditors have the same."""
        del auditor
        return self._rosters.get(epoch)
