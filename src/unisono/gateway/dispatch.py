"""In which order sources are asked, and what an error says when none of them answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unisono.errors import (
    CapacityMissing,
    CoverageMissing,
    NetworkError,
    NetworkUnreachable,
)
from unisono.gateway.requests import Ask
from unisono.gateway.settings import GatewaySettings
from unisono.gateway.sources import Source
from unisono.gateway.watch import Condition, Trouble, Watch

AVAILABILITY_HEADER = "x-unisono-availability"
"""On every answer of a model: the share of its placement that answers, 0 to 1."""
DEGRADED_HEADER = "x-unisono-degraded"
"""Only if something is wrong with the network: a value of `Trouble`."""
FALLBACK_HEADER = "x-unisono-fallback"
"""Only if a fallback answers: which one."""
VERIFIED_HEADER = "x-unisono-verified"
"""`false` if a fallback outside the network answers, whose receipts prove nothing."""


@dataclass(frozen=True, slots=True)
class Route:
    """The sources of one request, the first to be asked first."""

    sources: tuple[Source, ...]
    condition: Condition

    def headers(self, trouble: Trouble | None, answered: Source | None) -> dict[str, str]:
        """What the response says of the network and of who answers. `trouble`: found when the
        network was asked, if any; `answered`: None for an error."""
        headers = {AVAILABILITY_HEADER: self.condition.availability}
        trouble = trouble or self.condition.trouble
        if trouble is not None:
            headers[DEGRADED_HEADER] = trouble.value
        if answered is not None and answered.kind != "network":
            headers[FALLBACK_HEADER] = answered.label
            if answered.kind == "remote":
                headers[VERIFIED_HEADER] = "false"
        return headers


class Dispatch:
    """Chooses between the network and its fallbacks."""

    def __init__(
        self, network: Source, fallbacks: Sequence[Source], watch: Watch, settings: GatewaySettings
    ) -> None:
        self._network = network
        self._fallbacks = tuple(fallbacks)
        self._watch = watch
        self._settings = settings

    def route(self, ask: Ask) -> Route:
        """The network first while it is well; in trouble, fallbacks first and the network last,
        since less of it than was asked for may still do."""
        condition = self._watch.condition(ask.model)
        if condition.trouble is None:
            return Route((self._network, *self._fallbacks), condition)
        return Route((*self._fallbacks, self._network), condition)

    def goes_on_after(self, error: NetworkError) -> bool:
        """Whether fallbacks are asked after the network failed like this."""
        return self._settings.fall_back_when_full or not isinstance(error, CapacityMissing)

    def interrupted(self) -> None:
        """An answer was lost in its middle: the network is not what it was."""
        self._watch.look_again()

    def explained(self, error: NetworkError, fallbacks: Sequence[str]) -> NetworkError:
        """The network's error as the client gets it, with what became of the fallbacks."""
        self._watch.look_again()
        text = str(error)
        if isinstance(error, CoverageMissing) and not self._watch.reachable():
            text = (
                "this gateway reaches no node at all: start one with 'unisono node --join "
                "ADDRESS', or check the gateway's own connection; try again soon"
            )
            error = NetworkUnreachable(text)
        if not fallbacks:
            return error
        return type(error)(f"{text} (fallbacks: {'; '.join(fallbacks)})")


def trouble_of(error: NetworkError) -> Trouble:
    """What an error of the network says about its condition."""
    if isinstance(error, NetworkUnreachable):
        return Trouble.UNREACHABLE
    if isinstance(error, CoverageMissing):
        return Trouble.COVERAGE
    return Trouble.CAPACITY if isinstance(error, CapacityMissing) else Trouble.ERROR
