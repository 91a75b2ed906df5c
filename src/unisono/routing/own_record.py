"""The record of this member itself, renewed before others could miss it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from unisono.clock import Clock
from unisono.routing.coordinates import Position
from unisono.routing.entry import Entry
from unisono.routing.membership import Membership
from unisono.wire.gossip_messages import pack
from unisono.wire.identity import Identity
from unisono.wire.records import LEASE_SECONDS, NodeRecord

log = logging.getLogger(__name__)

RENEW_SECONDS = LEASE_SECONDS / 3
"""A member signs a new record this often; at once when something important changed."""

Describe = Callable[[], NodeRecord]
"""A member's record as far as it knows itself: number, lease, coordinate and signature are filled
in here."""


class OwnRecord:
    """Signs what `describe` says, with rising numbers."""

    def __init__(
        self,
        identity: Identity,
        membership: Membership,
        clock: Clock,
        describe: Describe,
        position: Position,
    ) -> None:
        self._identity = identity
        self._membership = membership
        self._clock = clock
        self._describe = describe
        self._position = position
        self._entry: Entry | None = None
        self._signed = 0.0
        self._sequence = 0
        self.packed = b""
        """The record alone, as it travels."""
        self.leaving = False

    def current(self) -> Entry:
        """The record, a new one if it is time."""
        entry = self._entry
        if entry is None or self._membership.overtaken >= self._sequence:
            return self.renew()
        age = self._clock.monotonic() - self._signed
        # A machine that slept has an old record although little time seems to have passed.
        left = entry.record.expires / 1000 - self._clock.now()
        if age >= RENEW_SECONDS or left < LEASE_SECONDS - 2 * RENEW_SECONDS:
            return self.renew()
        return entry

    def renew(self, *, leaving: bool = False) -> Entry:
        """Sign a new record now. One that says farewell is followed by no other."""
        self.leaving = self.leaving or leaving
        now_ms = int(self._clock.now() * 1000)
        overtaken = self._membership.overtaken
        if overtaken >= self._sequence > 0:
            log.warning(
                "somebody shows record %d of this node, which signed %d: does another node run "
                "with the same key?",
                overtaken,
                self._sequence,
            )
        self._sequence = max(self._sequence + 1, overtaken + 1, now_ms)
        record = msgspec.structs.replace(
            self._describe(),
            node=self._identity.node_id,
            sequence=self._sequence,
            expires=now_ms + int(LEASE_SECONDS * 1000),
            coordinate=self._position.coordinate,
            uncertainty=self._position.uncertainty,
            leaving=self.leaving,
        ).signed_by(self._identity)
        self._entry = self._membership.keep_own(record)
        self.packed = pack([self._entry.encoded])
        self._signed = self._clock.monotonic()
        return self._entry
