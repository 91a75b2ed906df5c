"""A node's own price: what its machine costs at this minute, over how fast its block is."""

from __future__ import annotations

from unisono.compose.chain_settings import FloorSettings
from unisono.errors import ConfigurationError
from unisono.market.pricing import Machine, Price, Speed, floor_price, parse_off_peak
from unisono.wire.records import NodeRecord

MINUTE = 60


def machine_of(settings: FloorSettings) -> Machine:
    """What a machine costs.

    Raises:
        ConfigurationError: a figure that no machine has, or hours that cannot be read.
    """
    machine = Machine(
        watts=settings.watts,
        electricity=settings.electricity,
        off_peak=tuple(parse_off_peak(text) for text in settings.off_peak),
        purchase=settings.purchase,
        resale=settings.resale,
        years=settings.years,
        use=settings.use,
        margin=settings.margin,
    )
    machine.check()
    if settings.sessions < 1:
        raise ConfigurationError(f"{settings.sessions} sessions side by side: expected at least 1")
    return machine


def speed_of(record: NodeRecord, sessions: int) -> Speed | None:
    """Tokens per second of a block by what its node measured; None if it has not.

    A step of one session costs `step_us`. Each further row in it costs about as much as a row of a
    prompt, so that `sessions` side by side get their tokens in `step_us + (sessions - 1) · row_us`.
    """
    if not record.step_us or not record.row_us:
        return None
    decodes = sessions * 1e6 / (record.step_us + (sessions - 1) * record.row_us)
    return Speed(reads=1e6 / record.row_us, decodes=decodes)


def price_at(
    machine: Machine, record: NodeRecord, sessions: int, layer_count: int, seconds: float
) -> Price | None:
    """The least that a node may ask at a time (Unix seconds); None before it measured itself.

    Raises:
        ConfigurationError: more than a unit per token: a figure must be wrong.
    """
    speed = speed_of(record, sessions)
    if speed is None or not record.layers.count:
        return None
    minute = int(seconds // MINUTE) % 1440
    return floor_price(machine, speed, record.layers.count / layer_count, minute).price
