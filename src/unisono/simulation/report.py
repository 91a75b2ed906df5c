"""What a run measured: counted while it goes, and summed up at its end."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec
import numpy as np
from numpy.typing import NDArray

from unisono.simulation.decoding import GAP_EDGES_MS
from unisono.simulation.events import SECOND
from unisono.simulation.fleet import Fleet
from unisono.simulation.session import Session
from unisono.simulation.settings import Settings
from unisono.simulation.world import Machine

SAMPLE = 10 * SECOND
"""A point of the curves every so many microseconds."""


class Outcome(StrEnum):
    """Why a request failed."""

    NO_COVERAGE = "no_coverage"
    """Some layer had no holder at any gateway that was asked."""
    NO_CAPACITY = "no_capacity"
    """Every chain was full."""
    REFUSED = "refused"
    """Too many hops in turn refused or did not answer."""
    INTERRUPTED = "interrupted"
    """A hop was lost in the middle of the answer, and none replaced it."""


class Percentiles(msgspec.Struct, frozen=True):
    """Of a quantity in milliseconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    most: float

    @classmethod
    def of(cls, microseconds: Sequence[int]) -> Percentiles:
        """Nearest-rank percentiles; all zeros of nothing."""
        if not microseconds:
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        values = sorted(microseconds)
        count = len(values)

        def rank(percent: int) -> float:
            return values[max(0, -(-count * percent // 100) - 1)] / 1000

        mean = round(sum(values) / count / 1000, 3)
        return cls(count, mean, rank(50), rank(90), rank(95), rank(99), values[-1] / 1000)

    @classmethod
    def of_histogram(cls, weights: NDArray[np.float64], edges: NDArray[np.float64]) -> Percentiles:
        """Of a histogram whose bin i ends at `edges[i]` (milliseconds): each percentile is the
        end of its bin."""
        total = float(weights.sum())
        if total <= 0:
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        ends = np.append(edges, edges[-1])
        sums = np.cumsum(weights)

        def rank(percent: float) -> float:
            return round(float(ends[np.searchsorted(sums, total * percent / 100)]), 3)

        most = round(float(ends[np.flatnonzero(weights)[-1]]), 3)
        mean = round(float((weights * ends).sum() / total), 3)
        return cls(round(total), mean, rank(50), rank(90), rank(95), rank(99), most)


class Sample(msgspec.Struct, frozen=True):
    """One point of the curves: the state at a time, and what happened since the last one."""

    minute: float
    """Since the start."""
    online: int
    """Machines that are there."""
    placed: int
    """Machines that gateways believe to serve a block."""
    answering: int
    """Those of them that do."""
    covered_cells: float
    """Part of the cells whose gateway knows a chain over all layers."""
    sessions: int
    """Answers in the making."""
    arrived: int
    completed: int
    failed: int
    retries: int
    tokens_per_second: float
    utilisation: float
    """Part of the time that serving machines computed."""
    first_token_p50_ms: float
    marked_share: float
    """Part of the hops of new chains: liars; in other scenarios the same nodes, honest."""


class Report(msgspec.Struct, frozen=True):
    """The result of a run. The same settings give the same bytes (`encoded`)."""

    settings: Settings
    model: str
    cells: int
    requests: int
    completed: int
    failed: dict[str, int]
    in_progress: int
    """Answers that the end of the run cut off."""
    redirected: int
    """Times that a client was sent to another gateway."""
    retries: int
    """Hops that were asked in vain, and chains that were replaced."""
    replaced: int
    """Answers that lost a hop in their middle."""
    mended: int
    """Chains that went on with another node in the place of one hop; others were opened anew."""
    refusals_by_liars: int
    most_retries: int
    """Of one request."""
    requests_per_second: float
    answer_tokens: int
    prompt_rows: int
    tokens_per_second: float
    first_token_ms: Percentiles
    """From the client's request to the first token at the client."""
    token_ms: Percentiles
    """Time of one token's loop around its chain, over all tokens, without pauses."""
    answer_token_ms: Percentiles
    """Mean time per token of each whole answer, pauses included."""
    pause_ms: Percentiles
    """From the loss of a hop in the middle of an answer to the next token."""
    hops: float
    """Mean length of a chain."""
    availability: float
    """Mean part of the placed nodes that answered."""
    coverage: float
    """Mean part of the cells that could serve the whole model."""
    utilisation: float
    online: float
    """Mean number of machines that were there."""
    joins: int
    leaves: int
    crashes: int
    moves: int
    """Blocks that were loaded after the start, by machines that came or changed."""
    control: dict[str, float]
    """Control traffic in bytes per second and machine that was there, by what it is for."""
    modelled: tuple[str, ...]
    """What was not the real code."""
    series: tuple[Sample, ...]

    def encoded(self) -> bytes:
        """As JSON, one form for equal reports."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


class Ledger:
    """Counts while the run goes."""

    def __init__(self) -> None:
        self.arrived = 0
        self.completed = 0
        self.failures = dict.fromkeys(Outcome, 0)
        self.redirected = 0
        self.retries = 0
        self.replaced = self.mended = 0
        self.refusals_by_liars = 0
        self.most_retries = 0
        self.prefilled = 0
        self.tokens = 0.0
        self.joins = self.leaves = self.crashes = self.moves = 0
        self.first_us: list[int] = []
        self.answer_us: list[int] = []
        self.pauses_us: list[int] = []
        self.hops_opened = 0
        self.marked_opened = 0
        self.chains_opened = 0
        self._busy = 0.0
        self._serving = 0.0
        self._recent_first: list[int] = []
        self._last: dict[str, float] = {}
        self.series: list[Sample] = []

    def opened(self, hops: Sequence[Machine]) -> None:
        """A chain was opened."""
        self.chains_opened += 1
        self.hops_opened += len(hops)
        self.marked_opened += sum(hop.marked for hop in hops)

    def refused(self, hop: Machine) -> None:
        """A hop was asked in vain."""
        self.retries += 1
        self.refusals_by_liars += hop.liar

    def first_token(self, session: Session) -> None:
        """The first token of an answer is on its way to its client."""
        taken = session.first_token - session.request.arrives
        self.first_us.append(taken)
        self._recent_first.append(taken)

    def resumed(self, pause_us: int) -> None:
        """An answer goes on after a hop was lost."""
        self.pauses_us.append(pause_us)

    def ticked(self, said: float, fleet: Fleet) -> None:
        """A tick of decoding: tokens said, and how busy machines were."""
        self.tokens += said
        busy = fleet.decoding.busy
        self._busy += float((busy + (1 - busy) * fleet.prefilling).sum())
        self._serving += float((fleet.step_us > 0).sum())

    def finished(self, session: Session, at: int) -> None:
        """An answer is whole."""
        self.completed += 1
        self.most_retries = max(self.most_retries, session.refusals)
        if session.request.answer > 1:
            gaps = session.request.answer - 1
            self.answer_us.append((at - session.first_token) // gaps)

    def failed(self, session: Session, outcome: Outcome) -> None:
        """A request came to nothing."""
        self.failures[outcome] += 1
        self.most_retries = max(self.most_retries, session.refusals)

    def sample(
        self, minute: float, online: int, placed: int, answering: int, covered: float, sessions: int
    ) -> None:
        """Add a point to the curves."""
        now: dict[str, float] = {
            "arrived": self.arrived,
            "completed": self.completed,
            "failed": sum(self.failures.values()),
            "retries": self.retries,
            "tokens": self.tokens,
            "busy": self._busy,
            "serving": self._serving,
            "hops": self.hops_opened,
            "marked": self.marked_opened,
        }
        since = {name: value - self._last.get(name, 0) for name, value in now.items()}
        self._last = now
        self.series.append(
            Sample(
                minute=round(minute, 3),
                online=online,
                placed=placed,
                answering=answering,
                covered_cells=round(covered, 4),
                sessions=sessions,
                arrived=int(since["arrived"]),
                completed=int(since["completed"]),
                failed=int(since["failed"]),
                retries=int(since["retries"]),
                tokens_per_second=round(since["tokens"] * SECOND / SAMPLE, 2),
                utilisation=round(since["busy"] / max(1.0, since["serving"]), 4),
                first_token_p50_ms=Percentiles.of(self._recent_first).p50,
                marked_share=round(since["marked"] / max(1.0, since["hops"]), 4),
            )
        )
        self._recent_first = []

    def report(
        self,
        settings: Settings,
        model: str,
        cells: int,
        in_progress: int,
        gaps: NDArray[np.float64],
        control: dict[str, float],
        modelled: tuple[str, ...],
    ) -> Report:
        """Sum up."""
        seconds = (settings.end - settings.start) / SECOND
        series = self.series
        points = max(1, len(series))
        return Report(
            settings=settings,
            model=model,
            cells=cells,
            requests=self.arrived,
            completed=self.completed,
            failed={outcome.value: count for outcome, count in self.failures.items()},
            in_progress=in_progress,
            redirected=self.redirected,
            retries=self.retries,
            replaced=self.replaced,
            mended=self.mended,
            refusals_by_liars=self.refusals_by_liars,
            most_retries=self.most_retries,
            requests_per_second=round(self.completed / seconds, 4),
            answer_tokens=round(self.tokens),
            prompt_rows=self.prefilled,
            tokens_per_second=round(self.tokens / seconds, 2),
            first_token_ms=Percentiles.of(self.first_us),
            token_ms=Percentiles.of_histogram(gaps, GAP_EDGES_MS),
            answer_token_ms=Percentiles.of(self.answer_us),
            pause_ms=Percentiles.of(self.pauses_us),
            hops=round(self.hops_opened / max(1, self.chains_opened), 3),
            availability=round(sum(p.answering / max(1, p.placed) for p in series) / points, 5),
            coverage=round(sum(p.covered_cells for p in series) / points, 5),
            utilisation=round(self._busy / max(1.0, self._serving), 5),
            online=round(sum(p.online for p in series) / points, 1),
            joins=self.joins,
            leaves=self.leaves,
            crashes=self.crashes,
            moves=self.moves,
            control=control,
            modelled=modelled,
            series=tuple(series),
        )
