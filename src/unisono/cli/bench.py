"""`unisono bench`: how fast this machine serves a model."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisono.cli import options as o

if TYPE_CHECKING:
    from unisono.models.decoder import Decoder
    from unisono.models.store import StoredModel

PROMPTS = (256, 1024)
STREAMS = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Line:
    """One figure: joules are None where the machine does not tell them."""

    work: str
    tokens_per_second: float
    joules_per_token: float | None


def bench(
    model: o.Model = o.DEFAULT_MODEL,
    threads: o.Threads = None,
    device: o.Device = o.DeviceName.auto,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Tokens that each stream decodes.")
    ] = 64,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Runs of each; the median counts.")
    ] = 3,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure how fast this machine reads prompts and decodes, alone, with one model.

    Nothing else should run meanwhile. The JSON names the machine and the program's revision, so
    that figures of several versions can be compared.

    [bold]Examples[/]

    [cyan]unisono bench[/]

    [cyan]unisono bench --threads 1 --json > before.json[/]
    """
    del verbose
    from unisono.cli.preparation import prepared
    from unisono.cli.terminal import err
    from unisono.observe.machine import describe, resident_bytes

    stored = prepared(model)
    with err.status("Loading …") as waiting:
        decoder = load_whole(stored, device.value, threads)
        works = _works(decoder, tokens)
        lines = [_measured(name, run, repeats, waiting.update) for name, run in works]
    figures: dict[str, Any] = {
        "model": stored.name,
        "model_id": stored.id,
        "threads": getattr(decoder, "threads", threads),
        "machine": describe(),
        "resident_bytes": resident_bytes(),
        "lines": [asdict(line) for line in lines],
    }
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    else:
        _show(figures, lines)


def load_whole(stored: StoredModel, device: str, threads: int | None) -> Decoder:
    """A decoder of the whole model, after the device passed its self-test."""
    from unisono.models.decoder import make_decoder
    from unisono.models.devices import choose_device
    from unisono.models.loading import load_block
    from unisono.native.self_test import self_test
    from unisono.types import LayerRange

    chosen = choose_device(device)
    self_test(chosen)
    block = load_block(stored, LayerRange(0, stored.layer_count))
    return make_decoder(stored.manifest.config, block, chosen, threads=threads)


def _works(decoder: Decoder, tokens: int) -> list[tuple[str, Any]]:
    from unisono.observe import speed

    works: list[tuple[str, Any]] = []
    for count in PROMPTS:
        if count < decoder.config.context_length:
            works.append((f"prompt of {count}", lambda n=count: speed.prefill(decoder, n)))
    for count in STREAMS:
        name = "decode, one stream" if count == 1 else f"decode, {count} streams"
        works.append((name, lambda n=count: speed.decode(decoder, tokens, n)))
    return works


def _measured(name: str, run: Any, repeats: int, say: Any) -> Line:
    import statistics

    from unisono.observe.energy import Meter

    say(f"Measuring: {name} …")
    run()  # memory is touched for the first time
    meter = Meter.start()
    rates = [run() for _ in range(repeats)]
    joules = meter.joules()
    total = sum(rate.tokens for rate in rates)
    speed = statistics.median(rate.per_second for rate in rates)
    return Line(name, round(speed, 2), None if joules is None else round(joules / total, 4))


def _show(figures: dict[str, Any], lines: list[Line]) -> None:
    from rich.table import Table

    from unisono.cli.terminal import out

    machine = figures["machine"]
    out.print(
        f"{figures['model']} on {machine['processor']}, {figures['threads']} threads, "
        f"{machine['kernels']} kernels",
        soft_wrap=True,
        markup=False,
    )
    table = Table("work", "tokens per second", "tokens per joule")
    for line in lines:
        energy = f"{1 / line.joules_per_token:.2f}" if line.joules_per_token else "not readable"
        table.add_row(line.work, f"{line.tokens_per_second:.1f}", energy)
    out.print(table)
    out.print(f"memory of this process: {figures['resident_bytes'] / 1e6:.0f} MB")
