"""The least that a machine may ask: what an hour of it costs, over the tokens that it makes.

    cost per hour = watts / 1000 · electricity + (purchase − resale) / (years · 8760 · use)
    price per million tokens = cost per hour · (1 + margin) · 10^6 / (3600 · tokens per second)

A block of a model is priced as the whole: its record's prices are those of all layers, of which a
hop is paid its share. A node that computes 6 of 18 layers asks three times its own cost per token,
and is paid a third of that.

Electricity may be cheaper at some hours (`OffPeak`). Money in and out of this file is in units of
the stable unit as floats; what a record carries is integers in millionths (`micro`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from unisono.errors import ConfigurationError

HOURS_PER_YEAR = 8760
MICRO = 1_000_000
MAX_PRICE = 1_000_000.0
"""Per million tokens, in units: a unit per token."""


@dataclass(frozen=True, slots=True)
class OffPeak:
    """Hours of every day at which electricity costs something else."""

    start: int
    """The first minute of the day, UTC."""
    stop: int
    """The minute at which it ends; smaller than `start` if it spans midnight."""
    electricity: float
    """Units per kWh."""

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day is one of these."""
        if self.start <= self.stop:
            return self.start <= minute < self.stop
        return minute >= self.start or minute < self.stop


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine costs its operator."""

    watts: float
    """Drawn at work, the whole machine."""
    electricity: float
    """Units per kWh."""
    off_peak: tuple[OffPeak, ...] = ()
    """The first that holds counts."""
    purchase: float = 0.0
    """What it cost; 0 for one that stands there anyway."""
    resale: float = 0.0
    """What it will be worth at the end."""
    years: float = 4.0
    use: float = 0.5
    """Share of the time in which it is paid."""
    margin: float = 0.2

    def check(self) -> None:
        """Raises ConfigurationError: a figure that no machine has; says which."""
        limits = {
            "watts": (self.watts, 0.1, 1e6),
            "electricity": (self.electricity, 0.0, 100.0),
            "purchase": (self.purchase, 0.0, 1e8),
            "resale": (self.resale, 0.0, self.purchase),
            "years": (self.years, 0.1, 50.0),
            "use": (self.use, 0.001, 1.0),
            "margin": (self.margin, -0.99, 100.0),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:  # NaN too
                raise ConfigurationError(
                    f"{name} is {value:g}: expected a number from {low:g} to {high:g}"
                )
        for period in self.off_peak:
            if not 0.0 <= period.electricity <= 100.0:
                raise ConfigurationError(
                    f"off-peak electricity is {period.electricity:g}: expected 0 to 100 per kWh"
                )

    def electricity_at(self, minute: int) -> float:
        """Units per kWh at a minute of the day, UTC."""
        for period in self.off_peak:
            if period.holds(minute % 1440):
                return period.electricity
        return self.electricity

    def power_per_hour(self, minute: int = 0) -> float:
        """Units of electricity per hour of work."""
        return self.watts / 1000 * self.electricity_at(minute)

    @property
    def wear_per_hour(self) -> float:
        """Units of depreciation per paid hour, straight-line."""
        return (self.purchase - self.resale) / (self.years * HOURS_PER_YEAR * self.use)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second of a node's block, with as many sessions as it usually has."""

    reads: float
    decodes: float

    def check(self) -> None:
        """Raises ConfigurationError: not a positive number."""
        for name, value in (("reads", self.reads), ("decodes", self.decodes)):
            if not 0.0 < value < 1e9:
                raise ConfigurationError(
                    f"a node that {name} {value:g} tokens per second: expected a positive number"
                )


@dataclass(frozen=True, slots=True)
class Price:
    """Per million tokens through the whole model, in millionths of the unit."""

    per_input: int
    per_output: int


@dataclass(frozen=True, slots=True)
class Floor:
    """A price and how it comes about."""

    power: float
    """Units per hour."""
    wear: float
    margin: float
    speed: Speed
    share: float
    """Of the model's layers."""
    price: Price

    def lines(self) -> list[str]:
        """The sum, line by line, for people."""
        hour = self.power + self.wear
        return [
            f"electricity        {self.power:.6f} per hour",
            f"depreciation       {self.wear:.6f} per hour",
            f"margin             {100 * self.margin:.0f} %",
            f"asked per hour     {hour * (1 + self.margin):.6f}",
            f"reads              {self.speed.reads:,.0f} tokens/s",
            f"decodes            {self.speed.decodes:,.1f} tokens/s",
            f"share of the model {100 * self.share:.1f} % of its layers",
            f"price              {self.price.per_input / MICRO:.6f} per million input tokens, "
            f"{self.price.per_output / MICRO:.6f} per million output tokens "
            "(of the whole model; the node is paid its share)",
        ]


def floor_price(machine: Machine, speed: Speed, share: float = 1.0, minute: int = 0) -> Floor:
    """The least that a node may ask at a minute of the day without losing money.

    Args:
        share: of the model's layers that the node computes, in (0, 1].

    Raises:
        ConfigurationError: a figure out of its range, or a price beyond one unit per token.
    """
    machine.check()
    speed.check()
    if not 0.0 < share <= 1.0:
        raise ConfigurationError(f"a share of {share:g} of the layers: expected one in (0, 1]")
    power, wear = machine.power_per_hour(minute), machine.wear_per_hour
    asked = (power + wear) * (1 + machine.margin) / 3600
    price = Price(_micro(asked / speed.reads / share), _micro(asked / speed.decodes / share))
    return Floor(power, wear, machine.margin, speed, share, price)


def _micro(per_token: float) -> int:
    """Millionths of the unit per million tokens, rounded up."""
    if per_token > MAX_PRICE / 1e6:
        raise ConfigurationError(
            f"a price of {per_token:g} units per token: check watts, purchase and speed"
        )
    return math.ceil(per_token * 1e6 * MICRO)


def parse_off_peak(text: str) -> OffPeak:
    """`22:00-06:00=0.12`: UTC hours, and units per kWh.

    Raises:
        ConfigurationError: not of that form.
    """
    hours, found, price = text.partition("=")
    start, dash, stop = hours.partition("-")
    try:
        if not (found and dash):
            raise ValueError
        return OffPeak(_minute(start), _minute(stop), float(price))
    except ValueError:
        raise ConfigurationError(
            f"'{text}' is no off-peak period: expected one such as 22:00-06:00=0.12 "
            "(hours in UTC, price per kWh)"
        ) from None


def _minute(text: str) -> int:
    hour, colon, minute = text.partition(":")
    value = 60 * int(hour) + int(minute)
    if not colon or not 0 <= int(minute) < 60 or not 0 <= value < 1440:
        raise ValueError(text)
    return value
