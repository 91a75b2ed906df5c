"""Service levels as a gateway tells them to its clients: of the nodes, and its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from unisono.market.service_log import Figures, ServiceLog
from unisono.market.sla import PROMISES, WHOLE, uptime
from unisono.types import NodeId
from unisono.wire.terms import TIERS

WINDOWS_SHOWN = 8


class WindowLevel(msgspec.Struct, frozen=True):
    """One node in one window."""

    start: int
    """Unix seconds."""
    over: bool
    tier: str
    """The highest that its records promised in the window."""
    uptime: int
    """Thousandths, rounded down; what is left of a running window counts as up."""
    down_seconds: int
    """Rounded up."""
    audits: int
    inconclusive: int
    """Of these, without a result."""
    convicted: bool
    doubtful: bool
    """Too many audits without a result: shown, and no reason for a credit."""
    completed: int
    broken: int
    """Sessions with this gateway, by their end."""
    kept: bool
    """Whether what the tier promises was kept, up to now."""
    share: int
    """Thousandths of what this gateway paid in the window that it is owed."""
    outcome: str
    """Of the credit: empty (not due or not asked for yet), `asked`, `granted`, `short`,
    `refused`, `unpaid` (nothing was paid)."""
    credit: int
    """Units that came back."""


class NodeLevel(msgspec.Struct, frozen=True):
    """One node, newest window first."""

    node: NodeId
    tier: str
    """As its newest record promises."""
    promised_uptime: int
    """Thousandths."""
    windows: list[WindowLevel]


class OwnWindow(msgspec.Struct, frozen=True):
    """This gateway in one window."""

    start: int
    over: bool
    availability: int
    """Thousandths of the window in which it ran and every model could be served."""
    answered: int
    failed: int
    """Answers that were asked for, by their end; refusals that are the client's doing are not
    counted."""


class ServiceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /v1/sla` returns."""

    object: str = "sla"
    window_seconds: int
    uptime: int | None
    """The mean of the nodes' in the running window, in thousandths; None: no node is known."""
    least_uptime: int | None
    kept: int
    """Nodes that keep what they promise in the running window."""
    credits: int
    """Units that came back in the windows shown."""
    refused: int
    """Credits in them that nodes refused, or gave only in part."""
    gateway: list[OwnWindow]
    nodes: list[NodeLevel]


class Levels(Protocol):
    """Measures service levels."""

    def report(self) -> ServiceReport:
        """What is known now."""
        ...

    def answered(self, good: bool) -> None:
        """An answer that a client asked for has ended."""
        ...


def service_report(log: ServiceLog, own: NodeId, now: float) -> ServiceReport:
    """The report of a gateway whose own figures are those of node `own` in its log."""
    running = log.window(now)
    silent = log.down_now(now)
    numbers = [w for w in range(running - WINDOWS_SHOWN + 1, running + 1) if w in log.windows()]
    by_window = {number: dict(log.figures(number)) for number in numbers}
    here = by_window.setdefault(running, {})
    for node in log.nodes() - here.keys():
        here[node] = Figures(tier=log.promised(node))
    nodes: dict[NodeId, list[WindowLevel]] = {}
    gateway: list[OwnWindow] = []
    for number in sorted(by_window, reverse=True):
        over = number < running
        start = number * log.window_ms // 1000
        for node, figures in sorted(by_window[number].items()):
            if node == own:
                share = figures.uptime(log.window_ms)
                gateway.append(OwnWindow(start, over, share, figures.completed, figures.broken))
                continue
            down = figures.down + (0 if over else silent.get(node, 0))
            level = _level(log, start, over, figures, down)
            nodes.setdefault(node, []).append(level)
    levels = [
        NodeLevel(node, TIERS[tier], PROMISES[tier].uptime, windows)
        for node, windows in sorted(nodes.items())
        for tier in [log.promised(node)]
    ]
    current = [node.windows[0] for node in levels if not node.windows[0].over]
    shown = [window for node in levels for window in node.windows]
    return ServiceReport(
        window_seconds=log.window_ms // 1000,
        uptime=_mean([level.uptime for level in current]),
        least_uptime=min((level.uptime for level in current), default=None),
        kept=sum(level.kept for level in current),
        credits=sum(level.credit for level in shown),
        refused=sum(level.outcome in ("refused", "short") for level in shown),
        gateway=gateway,
        nodes=levels,
    )


def _level(log: ServiceLog, start: int, over: bool, figures: Figures, down: int) -> WindowLevel:
    share = msgspec.structs.replace(figures, down=down).share(log.window_ms)
    return WindowLevel(
        start=start,
        over=over,
        tier=TIERS[figures.tier],
        uptime=uptime(down, log.window_ms),
        down_seconds=-(-down // 1000),
        audits=figures.valid + figures.invalid + figures.inconclusive,
        inconclusive=figures.inconclusive,
        convicted=figures.convicted,
        doubtful=figures.doubtful,
        completed=figures.completed,
        broken=figures.broken,
        kept=share == 0 and not figures.doubtful,
        share=share,
        outcome=figures.outcome,
        credit=figures.credit,
    )


def _mean(shares: Sequence[int]) -> int | None:
    return min(WHOLE, sum(shares) // len(shares)) if shares else None
