"""What an answer costs in the end, fees included, beside what centralized providers charge.

Beyond the price that nodes ask, a client of a market pays for

    gas         depositing, redeeming and closing, spread over what flows through a channel
    deposits    money that lies in channels instead of earning interest
    failures    tokens paid for and not delivered: what was paid to a hop that vanished
    audits      answers that are computed again (`verification.policy`)
    speculation rows of guesses that were wrong, second chains of late answers

Shares are of the tokens that are delivered. All money is in units of the stable unit.
"""

from __future__ import annotations

import datetime
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from unisono.errors import ConfigurationError

MAX_FILE = 1 << 20
_KEYS = {"provider", "model", "parameters", "input", "output", "checked", "source"}


@dataclass(frozen=True, slots=True)
class Offer:
    """A list price of a centralized provider, per million tokens."""

    provider: str
    model: str
    per_input: float
    per_output: float
    checked: datetime.date
    source: str
    parameters: float | None = None

    def cost(self, prompt: int, tokens: int) -> float:
        """Of so many tokens read and written."""
        return (prompt * self.per_input + tokens * self.per_output) / 1e6


@dataclass(frozen=True, slots=True)
class Fees:
    """What comes on top of prices."""

    gas_per_channel: float
    """Of opening, one redeem per period, and closing."""
    channels: int
    """Payees that share the traffic of one period."""
    volume: float
    """Units that one payer pays per period, all channels together."""
    locked: float
    """Units in deposits on average."""
    interest: float = 0.04
    """Per year."""
    period_days: float = 30.0
    failures: float = 0.01
    audits: float = 0.01
    speculation: float = 0.05

    def check(self) -> None:
        """Raises ConfigurationError: a negative amount, or nothing paid per period."""
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 <= value < 1e12:
                raise ConfigurationError(f"{name} is {value:g}: expected a number from 0")
        if self.volume <= 0 or self.period_days <= 0:
            raise ConfigurationError("volume and period_days are to be positive")

    @property
    def gas(self) -> float:
        """Of gas, per unit that is paid."""
        return self.gas_per_channel * self.channels / self.volume

    @property
    def capital(self) -> float:
        """Of interest lost on deposits, per unit that is paid."""
        return self.locked * self.interest * self.period_days / 365 / self.volume


@dataclass(frozen=True, slots=True)
class Effective:
    """A cost in its parts."""

    price: float
    failures: float
    audits: float
    speculation: float
    gas: float
    capital: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.price + self.failures + self.audits + self.speculation + self.gas + self.capital


def effective_cost(
    prompt: int, tokens: int, per_input: float, per_output: float, fees: Fees
) -> Effective:
    """What so many tokens cost at prices per million tokens, with everything that comes on top.

    Guesses are only wrong about answers, so speculation counts on output tokens alone.

    Raises:
        ConfigurationError: fees out of their range.
    """
    fees.check()
    price = (prompt * per_input + tokens * per_output) / 1e6
    failures, audits = price * fees.failures, price * fees.audits
    speculation = tokens * per_output / 1e6 * fees.speculation
    paid = price + failures + audits + speculation
    return Effective(price, failures, audits, speculation, paid * fees.gas, paid * fees.capital)


def read_offers(path: Path) -> tuple[Offer, ...]:
    """The offers of a TOML file such as `centralized.toml` beside this module.

    Raises:
        ConfigurationError: unreadable, or an offer lacks something; says which and what.
    """
    try:
        data = path.read_bytes()
        if len(data) > MAX_FILE:
            raise ConfigurationError(f"{path} is larger than {MAX_FILE >> 20} MiB")
        document = tomllib.loads(data.decode())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not a TOML file: {error}") from error
    found = document.get("offer")
    if not isinstance(found, list) or set(document) != {"offer"} or not found:
        raise ConfigurationError(f"{path}: expected one or more [[offer]] and nothing else")
    return tuple(
        _offer(path, number, entry) for number, entry in enumerate(cast("list[Any]", found), 1)
    )


def _offer(path: Path, number: int, entry: Any) -> Offer:
    where = f"{path}: offer {number}"
    unknown = set(entry) - _KEYS
    if unknown:
        raise ConfigurationError(f"{where} has an unknown key '{min(unknown)}'")
    for key, kinds in {
        "provider": (str,),
        "model": (str,),
        "source": (str,),
        "checked": (datetime.date,),
        "input": (int, float),
        "output": (int, float),
    }.items():
        if not isinstance(entry.get(key), kinds):
            raise ConfigurationError(f"{where} lacks '{key}', or has something else there")
    parameters = entry.get("parameters")
    per_input, per_output = float(entry["input"]), float(entry["output"])
    if not (0 <= per_input < 1e6 and 0 <= per_output < 1e6):
        raise ConfigurationError(f"{where}: prices are dollars per million tokens, from 0")
    if parameters is not None and not 0 < parameters < 1e15:
        raise ConfigurationError(f"{where}: 'parameters' is a number such as 8e9")
    return Offer(
        entry["provider"],
        entry["model"],
        per_input,
        per_output,
        entry["checked"],
        entry["source"],
        parameters,
    )
