"""`unisono cost`: what tokens cost here with everything that comes on top, and elsewhere."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from unisono.cli import options as o

DEFAULT_GAS = 0.02
"""Of one channel and month: about 200,000 gas at 0.05 gwei and 2,000 per ether (a rollup)."""


def cost(
    model: o.Model = o.DEFAULT_MODEL,
    tokens: Annotated[int, typer.Option("--tokens", min=0, help="Tokens of answers.")] = 1_000_000,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", min=0, help="Tokens of prompts.")
    ] = 3_000_000,
    price_in: Annotated[
        float | None,
        typer.Option("--price-in", help="Per million prompt tokens; else the network's cheapest."),
    ] = None,
    price_out: Annotated[
        float | None,
        typer.Option("--price-out", help="Per million answer tokens; else the network's cheapest."),
    ] = None,
    base_url: o.BaseUrl = None,
    prices: Annotated[
        Path | None,
        typer.Option("--prices", metavar="FILE", help="List prices of others, as TOML."),
    ] = None,
    channels: Annotated[
        int, typer.Option("--channels", min=1, help="Nodes that share the traffic.")
    ] = 10,
    gas: Annotated[
        float, typer.Option("--gas", help="Transactions of one channel and month, in the unit.")
    ] = DEFAULT_GAS,
    monthly: Annotated[
        float | None,
        typer.Option("--monthly", help="What is spent per month in all; else these tokens."),
    ] = None,
    locked: Annotated[
        float | None, typer.Option("--locked", help="In deposits on average; else half a month.")
    ] = None,
    interest: Annotated[
        float, typer.Option("--interest", help="Per year, lost on deposits.")
    ] = 0.04,
    failures: Annotated[
        float, typer.Option("--failures", help="Share of tokens paid for and not delivered.")
    ] = 0.01,
    audits: Annotated[
        float, typer.Option("--audits", help="Share of answers computed again.")
    ] = 0.015,
    speculation: Annotated[
        float, typer.Option("--speculation", help="Share of answer tokens guessed in vain.")
    ] = 0.05,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Compare this network with centralized providers, fees included: gas, money that lies in
    deposits, tokens paid for and lost, audits, and guesses that were wrong.

    [bold]Examples[/]

    [cyan]unisono cost --price-in 0.02 --price-out 0.08 --tokens 5000000[/]

    [cyan]unisono cost --base-url http://127.0.0.1:8000 --prices my-prices.toml[/]
    """
    del verbose
    from rich.table import Table

    from unisono.cli.terminal import out
    from unisono.errors import ConfigurationError
    from unisono.market import cost as market

    if price_in is None or price_out is None:
        if base_url is None:
            raise ConfigurationError(
                "what do nodes ask? pass --price-in and --price-out, or a gateway's --base-url"
            )
        asked = _asked(base_url, model, prompt_tokens, tokens)
        price_in = asked[0] if price_in is None else price_in
        price_out = asked[1] if price_out is None else price_out
    volume = (prompt_tokens * price_in + tokens * price_out) / 1e6
    if min(price_in, price_out) < 0 or volume <= 0:
        raise ConfigurationError("nothing would be paid: prices and tokens are to be positive")
    spent = volume if monthly is None else monthly
    fees = market.Fees(
        gas_per_channel=gas,
        channels=channels,
        volume=spent,
        locked=spent / 2 if locked is None else locked,
        interest=interest,
        failures=failures,
        audits=audits,
        speculation=speculation,
    )
    ours = market.effective_cost(prompt_tokens, tokens, price_in, price_out, fees)
    default = Path(market.__file__).with_name("centralized.toml")
    offers = market.read_offers(prices or default)
    if as_json:
        figures = {
            "ours": asdict(ours) | {"total": ours.total},
            "fees": asdict(fees),
            "others": [
                asdict(each)
                | {"checked": str(each.checked), "cost": each.cost(prompt_tokens, tokens)}
                for each in offers
            ],
        }
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
        return
    table = Table("here", "units", "share")
    for name in ("price", "failures", "audits", "speculation", "gas", "capital"):
        part = getattr(ours, name)
        table.add_row(name, f"{part:.6f}", f"{100 * part / ours.total:.1f} %")
    table.add_row("total", f"{ours.total:.6f}", "")
    out.print(table)
    table = Table("provider", "model", "cost", "of ours", "checked")
    for each in sorted(offers, key=lambda each: each.cost(prompt_tokens, tokens)):
        there = each.cost(prompt_tokens, tokens)
        ratio = f"{there / ours.total:.2f}x"
        table.add_row(each.provider, each.model, f"{there:.6f}", ratio, str(each.checked))
    out.print(table)
    out.print(
        "Models differ: compare with one of like size and quality. List prices and their sources "
        f"are in {prices or default}.",
        soft_wrap=True,
        markup=False,
    )


def _asked(base_url: str, model: str, prompt: int, tokens: int) -> tuple[float, float]:
    """What the cheapest chain of a network asks per million tokens read and written, in units."""
    from unisono.cli.client import GatewayClient
    from unisono.cli.status import look
    from unisono.errors import CoverageMissing, WireError
    from unisono.market.offers import Block, cheapest

    with GatewayClient(base_url) as client:
        report = look(client)
    try:
        served = {each["name"]: each for each in report["models"]}
        shown = served.get(model)
        if shown is None:
            raise CoverageMissing(f"this gateway serves {', '.join(sorted(served))}, not {model}")
        blocks = [
            Block(n["layers"]["start"], n["layers"]["stop"], n["price_in"], n["price_out"])
            for n in report["nodes"]
            if n["alive"] and n["model"] == shown["id"]
        ]
        found = cheapest(blocks, shown["layers"], prompt, tokens)
    except (KeyError, TypeError) as error:
        raise WireError(f"{base_url} does not answer like a gateway: {error!r}") from error
    if found is None:
        raise CoverageMissing(f"no chain of live nodes serves {model}: there is no price")
    return found[0] / 1e6, found[1] / 1e6
