"""`unisono price`: the least that this machine may ask for tokens, and why."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from unisono.cli import options as o

if TYPE_CHECKING:
    from unisono.market.pricing import Speed

_PROMPT = 256
_TOKENS = 32


def price(
    model: o.Model = o.DEFAULT_MODEL,
    electricity: Annotated[
        float, typer.Option("--electricity", help="What a kWh costs, in the stable unit.")
    ] = 0.25,
    off_peak: Annotated[
        list[str] | None,
        typer.Option(
            "--off-peak",
            help="Hours (UTC) with another price, e.g. 22:00-06:00=0.12; repeat it for several.",
        ),
    ] = None,
    watts: Annotated[
        float | None,
        typer.Option(
            "--watts", help="What the machine draws at work; else measured where it can be read."
        ),
    ] = None,
    purchase: Annotated[
        float, typer.Option("--purchase", help="What the machine cost; 0 if it is there anyway.")
    ] = 0.0,
    resale: Annotated[
        float, typer.Option("--resale", help="What it will be worth at the end.")
    ] = 0.0,
    years: Annotated[float, typer.Option("--years", help="How long it will serve.")] = 4.0,
    use: Annotated[
        float, typer.Option("--use", help="Share of the time in which it is paid, 0 to 1.")
    ] = 0.5,
    margin: Annotated[float, typer.Option("--margin", help="On top of costs; 0.2 is 20 %.")] = 0.2,
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="A:B", help="The block it serves; else the whole model."),
    ] = None,
    sessions: Annotated[
        int, typer.Option("--sessions", min=1, max=256, help="Answers that run side by side.")
    ] = 4,
    reads: Annotated[
        float | None,
        typer.Option("--reads", help="Prompt tokens per second of the block; else measured."),
    ] = None,
    decodes: Annotated[
        float | None,
        typer.Option("--decodes", help="Answer tokens per second of the block; else measured."),
    ] = None,
    threads: o.Threads = None,
    device: o.Device = o.DeviceName.auto,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Explain the floor price of this machine: electricity, depreciation and margin over the
    tokens that it makes. Prices are per million tokens of the whole model; a node that serves a
    block is paid its share of the layers.

    [bold]Examples[/]

    [cyan]unisono price --watts 65 --electricity 0.30 --off-peak 22:00-06:00=0.18[/]

    [cyan]unisono price --watts 450 --purchase 2200 --use 0.6 --decodes 900 --reads 9000[/]
    """
    del verbose
    from unisono.cli.terminal import out
    from unisono.errors import ConfigurationError
    from unisono.market.pricing import Machine, Speed, floor_price, parse_off_peak

    share = 1.0
    if None in (watts, reads, decodes) or layers is not None:
        from unisono.cli.preparation import prepared

        stored = prepared(model)
        if layers is not None:
            from unisono.cli.node import parse_layers

            block = parse_layers(layers)
            if block.stop > stored.layer_count:
                raise ConfigurationError(
                    f"--layers {layers}: {stored.name} has {stored.layer_count} layers"
                )
            share = block.count / stored.layer_count
        if None in (watts, reads, decodes):
            measured, drawn = _measured(stored, device.value, threads, sessions)
            # the whole model was measured: a block of it is as much faster as it is smaller
            speed = Speed(reads or measured.reads / share, decodes or measured.decodes / share)
            watts = watts if watts is not None else drawn
        else:
            assert reads is not None
            assert decodes is not None
            speed = Speed(reads, decodes)
    else:
        assert reads is not None
        assert decodes is not None
        speed = Speed(reads, decodes)
    if watts is None:
        raise ConfigurationError(
            "this machine does not tell what it draws: measure it at the wall and pass --watts"
        )
    periods = tuple(parse_off_peak(text) for text in off_peak or [])
    machine = Machine(watts, electricity, periods, purchase, resale, years, use, margin)
    floor = floor_price(machine, speed, share, _outside(machine))
    others = [(period, floor_price(machine, speed, share, period.start)) for period in periods]
    if as_json:
        figures = {
            "machine": asdict(machine),
            "floor": asdict(floor),
            "off_peak": [asdict(other) for _, other in others],
        }
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
        return
    out.print(f"draws              {watts:.1f} W, electricity {electricity:g} per kWh")
    for line in floor.lines():
        out.print(line, soft_wrap=True, markup=False)
    for period, other in others:
        out.print(
            f"{_clock(period.start)}-{_clock(period.stop)} UTC    "
            f"{other.price.per_input / 1e6:.6f} and {other.price.per_output / 1e6:.6f}"
        )


def _outside(machine: object) -> int:
    """A minute at which no off-peak period holds; 0 if they span the day."""
    from unisono.market.pricing import Machine

    assert isinstance(machine, Machine)
    free = (m for m in range(1440) if not any(p.holds(m) for p in machine.off_peak))
    return next(free, 0)


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _measured(
    stored: object, device: str, threads: int | None, sessions: int
) -> tuple[Speed, float | None]:
    """Speed of the whole model, and watts while it decodes where they can be read."""
    from typing import cast

    from unisono.cli.bench import load_whole
    from unisono.cli.terminal import err
    from unisono.market.pricing import Speed
    from unisono.models.store import StoredModel
    from unisono.observe import speed
    from unisono.observe.energy import Meter

    with err.status("Measuring …"):
        decoder = load_whole(cast("StoredModel", stored), device, threads)
        try:
            prompt = min(_PROMPT, decoder.config.context_length - 1)
            speed.decode(decoder, 2, sessions)
            reads = speed.median_rate(lambda: speed.prefill(decoder, prompt), 3)
            meter, seconds, rates = Meter.start(), 0.0, list[float]()
            for _ in range(3):
                rate = speed.decode(decoder, _TOKENS, sessions)
                seconds += rate.seconds
                rates.append(rate.per_second)
            joules = meter.joules()
        finally:
            decoder.close()
    return Speed(reads, sorted(rates)[1]), None if joules is None else joules / seconds
