"""The public random value of an epoch, which nobody knew when the epoch's claims were signed.

A private network has a *chain beacon*: its operator draws a secret, hashes it many times and
signs the end of the chain before the network starts. Each epoch it publishes the link before;
everyone hashes it forward to one that they know. The operator cannot choose a value any more,
and a link that it withholds is found again from any later one; but it knows all values ahead.
Where no single operator is trusted with that, a `JointBeacon` hashes the links of several:
its values are unknown to everybody as long as one of them keeps its secret.

A drand network or a chain's randomness fits the same `Beacon`: a value per epoch, public from
the epoch's start and the same for all.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from unisono.clock import Clock
from unisono.errors import ConfigurationError, PeerCheating
from unisono.types import canonical, digest
from unisono.wire.bounds import Hash, Natural, Node
from unisono.wire.claims import EPOCH_DRIFT, EPOCH_SECONDS, epoch_at
from unisono.wire.identity import Identity, verify_signature

VALUE_BYTES = 32
AUDIT_DELAY = EPOCH_DRIFT + 2
"""Claims of an epoch are audited with the value of the epoch that comes so much later. A claim
may be one drift late, and the clocks of those who publish values another epoch ahead."""
MAX_EPOCHS = 1 << 22
"""Links of a chain: eight years of minutes."""
OPERATOR_EPOCHS = 1 << 15
"""Epochs of one chain of an operator whose key is its secret: 23 days of minutes."""
_STRIDE = 1 << 10


class Beacon(Protocol):
    """A value of `VALUE_BYTES` per epoch, the same for everybody."""

    def value(self, epoch: int) -> bytes | None:
        """The epoch's value; None as long as it is not public (or not known here yet)."""
        ...


class ChainAnchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator signs before its chain is used: the end that all links hash to."""

    operator: Node
    first: Natural
    """The first epoch that has a value."""
    epochs: Annotated[int, Meta(ge=1, le=MAX_EPOCHS)]
    anchor: Hash
    """The value of `first`, hashed once more."""
    epoch_seconds: Annotated[int, Meta(ge=1, le=86_400)] = EPOCH_SECONDS
    """Length of the network's epochs."""
    signature: bytes = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("beacon-anchor/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signature_is_good(self) -> bool:
        """Whether the operator signed it."""
        return verify_signature(self.operator, self.signed_bytes(), self.signature)


class ChainSource:
    """The operator's side: a secret, and the links that come of it, one hash each."""

    def __init__(self, secret: bytes, first: int, epochs: int) -> None:
        """Hash the chain once (a microsecond per epoch) and keep every 1,024th link.

        Raises:
            ConfigurationError: the secret is not 32 bytes, or the chain is too long.
        """
        if len(secret) != VALUE_BYTES or not 0 < epochs <= MAX_EPOCHS:
            raise ConfigurationError(
                f"a beacon chain has a secret of {VALUE_BYTES} bytes and 1 to {MAX_EPOCHS} epochs; "
                f"got {len(secret)} bytes and {epochs} epochs"
            )
        self.first = first
        self.epochs = epochs
        self._kept = [secret]
        link = secret
        for count in range(1, epochs + 1):
            link = _next(link)
            if count % _STRIDE == 0:
                self._kept.append(link)
        self._end = link

    @classmethod
    def generate(cls, first: int, epochs: int) -> ChainSource:
        """A chain from the operating system's randomness."""
        return cls(secrets.token_bytes(VALUE_BYTES), first, epochs)

    @classmethod
    def of_operator(cls, identity: Identity, epoch: int) -> ChainSource:
        """The chain of an operator that covers `epoch`: it follows from the operator's key, so that
        a restart changes no value. A new chain begins every `OPERATOR_EPOCHS`."""
        first = epoch - epoch % OPERATOR_EPOCHS
        number = first.to_bytes(8, "little")
        return cls(
            digest("beacon-secret/1", identity.secret_seed(), number), first, OPERATOR_EPOCHS
        )

    def anchor(self, identity: Identity, epoch_seconds: int = EPOCH_SECONDS) -> ChainAnchor:
        """The signed end, to be handed out before `first` begins."""
        unsigned = ChainAnchor(
            identity.node_id, self.first, self.epochs, self._end.hex(), epoch_seconds
        )
        return msgspec.structs.replace(unsigned, signature=identity.sign(unsigned.signed_bytes()))

    def link(self, epoch: int) -> bytes:
        """The value of an epoch; to be published when the epoch begins, never earlier.

        Raises:
            ConfigurationError: the chain does not reach that epoch: a new one is due.
        """
        place = self.first + self.epochs - 1 - epoch
        if not 0 <= place < self.epochs:
            raise ConfigurationError(
                f"the beacon chain covers epochs {self.first} to "
                f"{self.first + self.epochs - 1}, not {epoch}; start a new chain"
            )
        link = self._kept[place // _STRIDE]
        for _ in range(place % _STRIDE):
            link = _next(link)
        return link


class ChainBeacon:
    """Everyone's side of one operator's chain: links in, values out."""

    def __init__(self, anchor: ChainAnchor) -> None:
        """Start from the anchor that the network was configured with.

        Raises:
            ConfigurationError: the operator did not sign it.
        """
        if not anchor.signature_is_good():
            raise ConfigurationError(
                f"the beacon's anchor is not signed by its operator {anchor.operator[:16]}…; "
                "get it again from the network's configuration"
            )
        self.anchor = anchor
        self._latest = anchor.first - 1
        self._link = bytes.fromhex(anchor.anchor)

    @property
    def latest(self) -> int:
        """The last epoch whose value is known; before the first, the epoch before it."""
        return self._latest

    def accept(self, epoch: int, link: bytes) -> None:
        """Take a link from anyone. One that skips epochs brings those in between with it.

        Raises:
            PeerCheating: it does not lead to the links that are known.
        """
        last = self.anchor.first + self.anchor.epochs - 1
        if len(link) != VALUE_BYTES or not self.anchor.first <= epoch <= last:
            raise PeerCheating(
                f"no link of this beacon: {len(link)} bytes for epoch {epoch}; expected "
                f"{VALUE_BYTES} bytes for an epoch from {self.anchor.first} to {last}"
            )
        if epoch <= self._latest:
            if _forward(self._link, self._latest - epoch) != link:
                raise PeerCheating(f"another link for epoch {epoch} than the operator's chain has")
            return
        if _forward(link, epoch - self._latest) != self._link:
            raise PeerCheating(
                f"the link for epoch {epoch} does not hash to the one of epoch {self._latest}"
            )
        self._latest, self._link = epoch, link

    def value(self, epoch: int) -> bytes | None:
        """See `Beacon.value`."""
        if not self.anchor.first <= epoch <= self._latest:
            return None
        return digest("beacon/1", _forward(self._link, self._latest - epoch))


class JointBeacon:
    """Several operators' beacons in one: unknown to everybody as long as one keeps its own."""

    def __init__(self, parts: Sequence[Beacon]) -> None:
        if not parts:
            raise ConfigurationError("a joint beacon needs at least one beacon")
        self._parts = tuple(parts)

    def value(self, epoch: int) -> bytes | None:
        """See `Beacon.value`; None until every operator has published."""
        values = [part.value(epoch) for part in self._parts]
        known = [value for value in values if value is not None]
        return digest("joint-beacon/1", *known) if len(known) == len(values) else None


class OperatorBeacon:
    """The operator's own view: its chain, opened as far as the clock has come."""

    def __init__(
        self, source: ChainSource, clock: Clock, epoch_seconds: int = EPOCH_SECONDS
    ) -> None:
        self._source = source
        self._clock = clock
        self._epoch_seconds = epoch_seconds

    def due(self) -> tuple[int, bytes] | None:
        """The newest link that may be published now, with its epoch."""
        last = self._source.first + self._source.epochs - 1
        epoch = min(epoch_at(self._clock.now(), self._epoch_seconds), last)
        return (epoch, self._source.link(epoch)) if epoch >= self._source.first else None

    def value(self, epoch: int) -> bytes | None:
        """See `Beacon.value`."""
        due = self.due()
        if due is None or not self._source.first <= epoch <= due[0]:
            return None
        return digest("beacon/1", self._source.link(epoch))


def _next(link: bytes) -> bytes:
    return hashlib.sha256(b"unisono/beacon-link/1\0" + link).digest()


def _forward(link: bytes, steps: int) -> bytes:
    for _ in range(steps):
        link = _next(link)
    return link
