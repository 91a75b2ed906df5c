"""What a member of a network without a chain knows of its beacon, its auditors and their verdicts.

All of it comes as notices from others, and is judged here. The member acts as `Register` and
`Beacon` on what it knows.

A roster is its auditor's word. So that no auditor picks its committees, it must be known before
the value that its epoch is audited with, and it must be like what the member itself sees of the
network. Of convictions from before its own time a member can see only the latter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from unisono.clock import Clock
from unisono.errors import PeerCheating, ReceiptError
from unisono.types import NodeId, canonical
from unisono.verification.stakes.beacon import (
    AUDIT_DELAY,
    VALUE_BYTES,
    Beacon,
    ChainAnchor,
    ChainBeacon,
    JointBeacon,
)
from unisono.verification.stakes.conviction import Conviction, SignedRoster
from unisono.verification.stakes.lottery import Roster, binding_is_good
from unisono.verification.verdict import Fault
from unisono.wire.bounds import Natural, Node
from unisono.wire.claims import EPOCH_DRIFT, EPOCH_SECONDS, epoch_at
from unisono.wire.notices import MAX_NOTICE_BYTES, Notice, NoticeKind
from unisono.wire.transports.allowance import Bucket
from unisono.wire.verification_messages import LotteryBinding

log = logging.getLogger(__name__)

MAX_AUDITORS = 64
MAX_CONVICTED = 256
ROSTERS_KEPT = 16
"""Epochs: audits of older claims are not begun."""
CONVICTIONS_KEPT = 10_080
"""Epochs that a conviction is passed on: a week of minutes."""
CHECKS_PER_SECOND, CHECKS_AT_ONCE = 8.0, 128.0
"""Lottery keys and convictions, which take milliseconds each to check. What is left comes again."""
CHAINS_KEPT = 2
"""Of each operator of the beacon: the running one and the next, or the one before."""

_T = TypeVar("_T")


class BeaconLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The value that an operator publishes for an epoch. The chain proves it: no signature."""

    operator: Node
    epoch: Natural
    link: Annotated[bytes, Meta(min_length=VALUE_BYTES, max_length=VALUE_BYTES)]


@dataclass(frozen=True, slots=True)
class Convicted:
    """A node that was proven to have signed a false claim."""

    node: NodeId
    epoch: int
    fault: Fault


def notice_of(kind: NoticeKind, statement: msgspec.Struct) -> Notice | None:
    """A statement as a notice; None if it is larger than notices are."""
    body = canonical(statement)
    return Notice(kind, body) if len(body) <= MAX_NOTICE_BYTES else None


class Bulletin:
    """Implements `Register` and `Beacon` from notices."""

    def __init__(
        self,
        clock: Clock,
        *,
        operators: Sequence[NodeId] = (),
        epoch_seconds: int = EPOCH_SECONDS,
        plausible: Callable[[Sequence[NodeId]], bool] = lambda nodes: True,
        on_conviction: Callable[[Convicted], None] = lambda convicted: None,
    ) -> None:
        """
        Args:
            operators: who publishes the beacon; empty: whoever is first heard to do so.
            plausible: whether these nodes can be most of the network, as this member sees it.
            on_conviction: called once per node that is proven guilty.
        """
        self._clock = clock
        self._operators = tuple(operators)
        self.epoch_seconds = epoch_seconds
        self._plausible = plausible
        self._on_conviction = on_conviction
        self._chains: dict[NodeId, list[ChainBeacon]] = {}
        self._bindings: dict[NodeId, list[tuple[int, LotteryBinding]]] = {}
        """Node → (epoch from which it holds here, binding), ascending."""
        self._rosters: dict[tuple[int, NodeId], SignedRoster] = {}
        self._convicted: dict[NodeId, Convicted] = {}
        self._began = self.epoch
        self._checks = Bucket(CHECKS_PER_SECOND, CHECKS_AT_ONCE, clock)

    @property
    def epoch(self) -> int:
        """The epoch of this member's clock."""
        return epoch_at(self._clock.now(), self.epoch_seconds)

    @property
    def operators(self) -> tuple[NodeId, ...]:
        """Who publishes the beacon; empty as long as that is not known."""
        return self._operators

    @property
    def convicted(self) -> tuple[Convicted, ...]:
        """Every node that was proven guilty lately."""
        return tuple(self._convicted.values())

    def is_convicted(self, node: NodeId) -> bool:
        """Whether a conviction of the node is known here."""
        return node in self._convicted

    def convicted_at(self, node: NodeId) -> float | None:
        """When the node signed what it is convicted of: the start of that epoch in Unix seconds;
        None if no conviction is known here."""
        known = self._convicted.get(node)
        return None if known is None else float(known.epoch * self.epoch_seconds)

    # what it is asked

    def value(self, epoch: int) -> bytes | None:
        """See `Beacon.value`."""
        if not self._operators:
            return None
        parts: list[Beacon] = [_OneOf(self._chains.get(o, ())) for o in self._operators]
        beacon = parts[0] if len(parts) == 1 else JointBeacon(parts)
        return beacon.value(epoch)

    def binding(self, node: NodeId, epoch: int) -> LotteryBinding | None:
        """See `Register.binding`."""
        held = [b for since, b in self._bindings.get(node, ()) if since <= epoch]
        return held[-1] if held else None

    def roster(self, epoch: int, auditor: NodeId) -> Roster | None:
        """See `Register.roster`."""
        signed = self.signed_roster(epoch, auditor)
        return None if signed is None else signed.roster

    def signed_roster(self, epoch: int, auditor: NodeId) -> SignedRoster | None:
        """The same with its auditor's signature."""
        return self._rosters.get((epoch, auditor))

    # what it is told

    def take(self, notice: Notice) -> str | None:
        """Judge a notice; see `routing.notices.NoticeBoard`."""
        match notice.kind:
            case "anchor":
                return self._take_anchor(_read(notice, ChainAnchor))
            case "link":
                return self._take_link(_read(notice, BeaconLink))
            case "binding":
                return self._take_binding(_read(notice, LotteryBinding))
            case "roster":
                return self._take_roster(_read(notice, SignedRoster))
            case "conviction":
                return self._take_conviction(_read(notice, Conviction))

    def keeps(self, slot: str) -> bool:
        """Whether what a slot holds is still of use; forgets what is not."""
        kind, name, *rest = slot.split()
        epoch = self.epoch
        if kind == "roster":
            kept = int(rest[0]) > epoch - ROSTERS_KEPT
            if not kept:
                self._rosters.pop((int(rest[0]), NodeId(name)), None)
            return kept
        if kind == "conviction":
            found = self._convicted.get(NodeId(name))
            kept = found is not None and found.epoch > epoch - CONVICTIONS_KEPT
            if not kept:
                self._convicted.pop(NodeId(name), None)
            return kept
        if kind == "anchor":
            return any(str(c.anchor.first) == rest[0] for c in self._chains.get(NodeId(name), ()))
        return True

    def _take_anchor(self, anchor: ChainAnchor) -> str | None:
        if not anchor.signature_is_good():
            raise PeerCheating("the anchor of a beacon is not signed by its operator")
        if self._operators and anchor.operator not in self._operators:
            return None
        if anchor.epoch_seconds != self.epoch_seconds:
            log.warning(
                "the beacon of this network has epochs of %d s, this member of %d s: its claims "
                "are refused, and it checks nothing; start it with the network's --epoch-seconds",
                anchor.epoch_seconds,
                self.epoch_seconds,
            )
            return None
        if anchor.first + anchor.epochs <= self.epoch - CONVICTIONS_KEPT:
            return None
        operator = NodeId(anchor.operator)
        chains = self._chains.setdefault(operator, [])
        if any(c.anchor.first == anchor.first for c in chains):
            return None
        if not self._operators:
            self._operators = (operator,)
            log.info("the beacon of this network is published by %s…", operator[:16])
        chains.append(ChainBeacon(anchor))
        chains.sort(key=lambda c: c.anchor.first)
        del chains[:-CHAINS_KEPT]
        return f"anchor {operator} {anchor.first}"

    def _take_link(self, link: BeaconLink) -> str | None:
        if link.epoch > self.epoch + EPOCH_DRIFT:
            return None
        for chain in self._chains.get(NodeId(link.operator), ()):
            first = chain.anchor.first
            if first <= link.epoch < first + chain.anchor.epochs:
                newer = link.epoch > chain.latest
                chain.accept(link.epoch, link.link)
                return f"link {link.operator} {first}" if newer else None
        return None

    def _take_binding(self, binding: LotteryBinding) -> str | None:
        node = NodeId(binding.node)
        known = self._bindings.get(node, [])
        full = not known and len(self._bindings) >= MAX_AUDITORS
        if full or any(b.since >= binding.since for _, b in known):
            return None
        if not self._checks.allows(1.0):
            return None
        if not binding_is_good(binding):
            raise PeerCheating("a lottery key is not signed by its node and by itself")
        # The value that claims of these epochs are audited with was not known when it was heard.
        since = max(binding.since, self.epoch - AUDIT_DELAY + 1 + EPOCH_DRIFT)
        if known and known[-1][1].key == binding.key:
            since = known[-1][0]
            known = known[:-1]
        self._bindings[node] = [*known, (since, binding)][-3:]
        return f"binding {node}"

    def _take_roster(self, signed: SignedRoster) -> str | None:
        if not signed.signature_is_good():
            raise PeerCheating("a roster is not signed by its auditor")
        epoch, auditor = signed.roster.epoch, NodeId(signed.auditor)
        if not self.epoch - EPOCH_DRIFT <= epoch <= self.epoch + EPOCH_DRIFT:
            return None
        if (epoch, auditor) in self._rosters or auditor not in self._bindings:
            return None
        if not self._plausible([NodeId(v.node) for v in signed.roster.verifiers]):
            log.warning(
                "auditor %s… names verifiers of epoch %d that are not those seen here",
                auditor[:16],
                epoch,
            )
            return None
        self._rosters[epoch, auditor] = signed
        return f"roster {auditor} {epoch}"

    def _take_conviction(self, conviction: Conviction) -> str | None:
        node, epoch = conviction.node, conviction.roster.roster.epoch
        full = len(self._convicted) >= MAX_CONVICTED
        if node in self._convicted or full or epoch <= self.epoch - CONVICTIONS_KEPT:
            return None
        auditor = NodeId(conviction.roster.auditor)
        if self.value(epoch + AUDIT_DELAY) is None or not self._trusts(conviction, auditor, epoch):
            return None
        if not self._checks.allows(1.0):
            return None
        try:
            fault = conviction.check(self)
        except ReceiptError as error:
            raise PeerCheating(f"a conviction that proves nothing: {error}") from error
        self._convicted[node] = Convicted(node, epoch, fault)
        log.warning("node %s… is convicted: %s", node[:16], fault.message)
        self._on_conviction(self._convicted[node])
        return f"conviction {node}"

    def _trusts(self, conviction: Conviction, auditor: NodeId, epoch: int) -> bool:
        """Whether roster and lottery key are the auditor's of then, as far as this member can
        tell."""
        if epoch > self._began:
            roster, binding = self.roster(epoch, auditor), self.binding(auditor, epoch)
            return (
                roster == conviction.roster.roster
                and binding is not None
                and binding.key == conviction.binding.key
            )
        return self._plausible([NodeId(v.node) for v in conviction.roster.roster.verifiers])


class _OneOf:
    """The chains of one operator, one after another."""

    def __init__(self, chains: Sequence[ChainBeacon]) -> None:
        self._chains = chains

    def value(self, epoch: int) -> bytes | None:
        values = (chain.value(epoch) for chain in self._chains)
        return next((v for v in values if v is not None), None)


def _read(notice: Notice, kind: type[_T]) -> _T:
    try:
        statement = msgspec.msgpack.decode(notice.body, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PeerCheating(f"the body of a {notice.kind} is none: {error}") from error
    if canonical(statement) != notice.body:
        raise PeerCheating(f"a {notice.kind} is not in its canonical form")
    return statement
