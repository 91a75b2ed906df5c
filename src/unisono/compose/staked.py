"""Members of a network with the stakes that the registry has, not those that records claim."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import msgspec

from unisono.clock import Clock
from unisono.errors import ConfigurationError, SettlementError
from unisono.routing.swarm import Members
from unisono.settlement.eip712 import parse_address
from unisono.settlement.stakes import StakeRecord
from unisono.types import EvmAddress, NodeId
from unisono.wire.records import NodeRecord
from unisono.wire.terms import Terms

log = logging.getLogger(__name__)

FRESH_SECONDS = 60.0
"""How long a stake that was read is gone by."""
STALE_SECONDS = 600.0
"""How long it is gone by while the chain is away; after that it counts as none."""
LOOK_SECONDS = 1.0
DISTRUST_SECONDS = 86_400.0
"""How long a node that does not sign for its stake has none."""
MAX_STAKES = 4096
"""Stakes that are kept; the oldest reading goes first."""


class StakeSource(Protocol):
    """A registry (`settlement.stakes.Registry`)."""

    async def record(self, node: NodeId, operator: EvmAddress) -> StakeRecord:
        """As of now."""
        ...


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    amount: int


class StakedMembers:
    """Implements `routing.swarm.Members` over another; `run` must run."""

    def __init__(self, members: Members, registry: StakeSource, clock: Clock) -> None:
        self._members = members
        self._registry = registry
        self._clock = clock
        self._readings: dict[tuple[NodeId, str], _Reading] = {}
        self._distrusted: dict[NodeId, float] = {}

    def records(self) -> list[NodeRecord]:
        """See `Members`."""
        return [self._corrected(record) for record in self._members.records()]

    def known(self) -> list[tuple[NodeRecord, bool]]:
        """See `Members`."""
        return [(self._corrected(record), alive) for record, alive in self._members.known()]

    def suspect(self, node: NodeId) -> None:
        """See `Members`."""
        self._members.suspect(node)

    def staked(self, node: NodeId) -> NodeRecord | None:
        """A node's record, if it has a stake."""
        for record in self.records():
            if record.node == node and record.terms is not None and record.terms.stake:
                return record
        return None

    def distrust(self, node: NodeId) -> None:
        """A node's stake counts as none for `DISTRUST_SECONDS`: it does not answer for it."""
        self._distrusted.pop(node, None)
        self._distrusted[node] = self._clock.monotonic()
        while len(self._distrusted) > MAX_STAKES:
            del self._distrusted[next(iter(self._distrusted))]

    def _corrected(self, record: NodeRecord) -> NodeRecord:
        """A record with the stake that was read: 0 until it was."""
        terms = record.terms
        if terms is None or not terms.stake:
            return record
        reading = self._readings.get((record.node, _operator(terms)))
        amount = 0
        if reading is not None and self._clock.monotonic() - reading.at < STALE_SECONDS:
            amount = reading.amount
        distrusted = self._distrusted.get(record.node)
        if distrusted is not None and self._clock.monotonic() - distrusted < DISTRUST_SECONDS:
            amount = 0
        if amount == terms.stake:
            return record
        return msgspec.structs.replace(record, terms=msgspec.structs.replace(terms, stake=amount))

    async def run(self) -> None:
        """Read stakes of those who claim one, until cancelled."""
        while True:
            try:
                await self.read()
            except SettlementError as error:
                log.warning("stakes cannot be read: %s", error)
            await self._clock.sleep(LOOK_SECONDS)

    async def read(self) -> None:
        """Read what is not fresh.

        Raises:
            SettlementError: the chain does not answer; what was read is kept.
        """
        for record in self._members.records():
            terms = record.terms
            if terms is None or not terms.stake:
                continue
            key = record.node, _operator(terms)
            reading = self._readings.get(key)
            if reading is not None and self._clock.monotonic() - reading.at < FRESH_SECONDS:
                continue
            try:
                operator = parse_address(key[1])
            except ConfigurationError:  # its record names nobody
                amount = 0
            else:
                amount = (await self._registry.record(record.node, operator)).counts
            self._readings.pop(key, None)
            self._readings[key] = _Reading(self._clock.monotonic(), amount)
            while len(self._readings) > MAX_STAKES:
                del self._readings[next(iter(self._readings))]


def _operator(terms: Terms) -> str:
    return terms.operator or terms.payee
