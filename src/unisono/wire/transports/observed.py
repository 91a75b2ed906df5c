"""Where others see this node: what a node behind NAT cannot know by itself."""

from __future__ import annotations

from dataclasses import dataclass

from unisono.types import NodeId

MIN_WITNESSES = 2
"""Machines that must have seen the same address."""
MAX_WITNESSES = 64
MAX_OBSERVED = 3
"""Addresses that are advertised."""
WITNESS_SECONDS = 900.0
"""How long a report counts."""


@dataclass(frozen=True, slots=True)
class _Report:
    node: NodeId
    address: str
    until: float


class ObservedAddresses:
    """Reports of several witnesses; an address counts once independent ones agree.

    Witnesses are told apart by the host that they were dialled at: ids cost nothing, addresses
    of machines do. A symmetric NAT shows each witness another port, so that none of its
    addresses is ever believed, which is right: none of them leads back.
    """

    def __init__(self) -> None:
        self._reports: dict[str, _Report] = {}

    def report(self, host: str, node: NodeId, address: str, now: float) -> None:
        """Take note that `node`, dialled at `host`, sees this node at `address` (HOST:PORT)."""
        self._expire(now)
        if host not in self._reports and len(self._reports) >= MAX_WITNESSES:
            return
        self._reports.pop(host, None)
        # One node counts once even if it has several hosts.
        for other, report in [*self._reports.items()]:
            if report.node == node:
                del self._reports[other]
        self._reports[host] = _Report(node, address, now + WITNESS_SECONDS)

    def is_known(self, host: str, now: float) -> bool:
        """Whether the witness at `host` reported and its report counts for half its time more."""
        report = self._reports.get(host)
        return report is not None and report.until - now > WITNESS_SECONDS / 2

    def believed(self, now: float) -> tuple[str, ...]:
        """The addresses that enough witnesses agree on, those with most witnesses first."""
        self._expire(now)
        counts: dict[str, int] = {}
        for report in self._reports.values():
            counts[report.address] = counts.get(report.address, 0) + 1
        enough = [address for address, count in counts.items() if count >= MIN_WITNESSES]
        return tuple(sorted(enough, key=lambda a: (-counts[a], a))[:MAX_OBSERVED])

    def hosts(self, now: float) -> set[str]:
        """Every host that this node was seen at, in reports that still count."""
        self._expire(now)
        return {report.address.rpartition(":")[0].strip("[]") for report in self._reports.values()}

    def _expire(self, now: float) -> None:
        self._reports = {h: report for h, report in self._reports.items() if report.until > now}
