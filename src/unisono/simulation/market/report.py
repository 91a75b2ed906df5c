"""All parts of the economy in one report."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from unisono.errors import ConfigurationError
from unisono.simulation.market import cheating, currency, manipulation
from unisono.simulation.market.operators import make_operators
from unisono.simulation.market.trading import trade
from unisono.simulation.market.wealth import grow

ELECTRICITY = (0.08, 0.15, 0.22, 0.30, 0.45)
LOADS = (0.2, 0.4, 0.6, 0.8, 1.0)
VOLATILITIES = (0.0, 0.05, 0.3, 0.6, 0.9, 1.2)

Say = Callable[[int, int, str], None]


class MarketSettings(msgspec.Struct, frozen=True):
    """How much is simulated."""

    operators: int = 2000
    days: int = 12
    answers: int = 50_000_000
    """Of every cheat at every audit rate."""
    runs: int = 12
    """Of every trick of a bidder, each with and without it."""
    seed: int = 1

    def checked(self) -> MarketSettings:
        """The same, if it makes sense.

        Raises:
            ConfigurationError: too few or too many; names the option.
        """
        limits = {
            "operators": (50, 100_000),
            "days": (3, 365),
            "answers": (10_000, 10**12),
            "runs": (2, 1000),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigurationError(
                    f"--{name} {value}: expected a whole number from {low} to {high}"
                )
        return self


class PriceRow(msgspec.Struct, frozen=True):
    """Of one price of electricity and one load."""

    electricity: float
    """Median per kWh."""
    load: float
    price: float
    """Paid per million tokens."""
    sellers_electricity: float
    """Per million tokens."""
    sold: float
    served: float
    profit: float
    """Per operator and day."""
    idle: float


class CheatRow(msgspec.Struct, frozen=True):
    """Of one strategy at one audit rate."""

    strategy: str
    rate: float
    extra: float
    """Units more than honest work, per falsified answer."""
    error: float
    convictions: int


class BreakEvenRow(msgspec.Struct, frozen=True):
    """Of one strategy."""

    strategy: str
    formula: float
    """gain / (detection · (stake + escrow))"""
    measured: float
    error: float


class WealthRow(msgspec.Struct, frozen=True):
    """Of one month."""

    month: int
    gini_by_work: float
    top_by_work: float
    gini_by_stake: float
    top_by_stake: float


class CurrencyRow(msgspec.Struct, frozen=True):
    """Of one volatility."""

    volatility: float
    losing: float
    margin: float


class TrickRow(msgspec.Struct, frozen=True):
    """Of one trick of a bidder."""

    trick: str
    ratio: float
    error: float


class MarketReport(msgspec.Struct, frozen=True):
    """What `unisono simulate --market` found."""

    settings: MarketSettings
    prices: list[PriceRow]
    cheats: list[CheatRow]
    break_even: list[BreakEvenRow]
    wealth: list[WealthRow]
    currency: list[CurrencyRow]
    tricks: list[TrickRow]

    def tables(self) -> dict[str, bytes]:
        """Every part as CSV, by name."""
        parts: dict[str, Sequence[msgspec.Struct]] = {
            "prices": self.prices,
            "cheating": self.cheats,
            "break-even": self.break_even,
            "wealth": self.wealth,
            "currency": self.currency,
            "tricks": self.tricks,
        }
        return {name: _csv(rows) for name, rows in parts.items()}


def simulate_market(
    settings: MarketSettings, say: Say = lambda done, total, what: None
) -> MarketReport:
    """Run every part; the same settings give the same report."""
    kinds = [s for s in cheating.Strategy if s is not cheating.Strategy.HONEST]
    tricks = [t for t in manipulation.Trick if t is not manipulation.Trick.NONE]
    total = len(ELECTRICITY) * len(LOADS) + len(kinds) + 1 + len(VOLATILITIES) + len(tricks)
    done = 0

    def step(what: str) -> np.random.Generator:
        nonlocal done
        say(done, total, what)
        done += 1
        return np.random.default_rng([settings.seed, done])

    prices: list[PriceRow] = []
    for electricity in ELECTRICITY:
        for load in LOADS:
            rng = step("prices")
            operators = make_operators(settings.operators, rng, electricity=electricity)
            t = trade(operators, rng, days=settings.days, load=load)
            row = (t.price, t.electricity, t.sold, t.served, t.profit, t.idle)
            prices.append(PriceRow(electricity, load, *row))
    terms = cheating.Terms()
    cheats: list[CheatRow] = []
    even: list[BreakEvenRow] = []
    for kind in kinds:
        outcomes = cheating.curve(terms, kind, settings.answers, step("cheating"))
        cheats += [CheatRow(kind.value, o.rate, o.extra, o.error, o.convictions) for o in outcomes]
        measured, error = cheating.measured_break_even(outcomes)
        even.append(BreakEvenRow(kind.value, terms.break_even(kind), measured, error))
    rng = step("wealth")
    operators = make_operators(settings.operators, rng)
    work, stake = grow(operators, rng), grow(operators, rng, by_stake=True)
    months = zip(work.gini, work.top, stake.gini, stake.top, strict=True)
    wealth = [WealthRow(month, *values) for month, values in enumerate(months)]
    coins: list[CurrencyRow] = []
    for volatility in VOLATILITIES:
        found = currency.exchange(volatility, step("currency"))
        coins.append(CurrencyRow(volatility, found.losing, found.margin))
    rows: list[TrickRow] = []
    for trick in tricks:
        step("tricks")
        gained = manipulation.gain(trick, settings.runs, settings.seed)
        rows.append(TrickRow(trick.value, gained.ratio, gained.error))
    say(total, total, "")
    return MarketReport(settings, prices, cheats, even, wealth, coins, rows)


def _csv(rows: Iterable[msgspec.Struct]) -> bytes:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    for number, row in enumerate(rows):
        if number == 0:
            writer.writerow(type(row).__struct_fields__)
        writer.writerow([f"{x:.8g}" if isinstance(x, float) else x for x in _values(row)])
    return written.getvalue().encode()


def _values(row: msgspec.Struct) -> tuple[object, ...]:
    return msgspec.structs.astuple(row)
