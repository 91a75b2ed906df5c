"""Flags that several verbs share."""

from __future__ import annotations

import logging
from enum import StrEnum
from typing import Annotated

import typer

VERBOSE = "unisono.verbose"
"""Where a context notes that the user wants logs and tracebacks."""
DEFAULT_MODEL = "gemma-3-270m"
"""As in `models.catalog`, which takes too long to load for `--help`."""


class TransportName(StrEnum):
    """How nodes reach each other."""

    iroh = "iroh"
    tcp = "tcp"


class DeviceName(StrEnum):
    """What computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def _set_verbose(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[VERBOSE] = value
    logging.basicConfig(
        level=logging.INFO if value else logging.ERROR,
        format="%(asctime)s %(name)s: %(message)s" if value else "%(message)s",
    )
    return value


Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=_set_verbose, help="Show logs and tracebacks."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A catalog name, model id, .gguf file, folder with config.json, or owner/name "
        "on the Hugging Face hub.",
    ),
]
Relays = Annotated[
    list[str] | None,
    typer.Option(
        "--relay",
        help="Address of a relay to be reached through, if others cannot dial this machine; "
        "repeat it for several. Behind NAT one is found without it.",
    ),
]
_NODES = typer.Option("--nodes", "-n", min=1, help="How many node processes share the model.")
Nodes = Annotated[int, _NODES]
NodesIfAny = Annotated[int | None, _NODES]
Quorum = Annotated[
    int | None,
    typer.Option(
        "--quorum",
        min=2,
        max=8,
        help="So many chains without a common node compute the answer, and a majority decides; "
        "odd numbers are best.",
    ),
]
Ensemble = Annotated[
    str | None,
    typer.Option(
        "--ensemble",
        metavar="MODEL,MODEL…",
        help="2 to 8 models of one vocabulary that answer together, in place of --model: each "
        "token is drawn from the mean of what they say.",
    ),
]
Join = Annotated[
    list[str] | None,
    typer.Option(
        "--join",
        help="The address that any node or gateway printed; repeat it for several ways in.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        help="CPU threads that compute, per node; else the nodes of a machine share its cores.",
    ),
]
Guesses = Annotated[
    bool,
    typer.Option(
        "--guesses/--no-guesses",
        help="Whether nodes may guess tokens ahead and check several at a time; the answer "
        "is the same.",
    ),
]
Device = Annotated[
    DeviceName, typer.Option("--device", help="What computes; auto takes cuda if it is there.")
]
Transport = Annotated[
    TransportName, typer.Option("--transport", help="How nodes reach each other.")
]
LocalTransport = Annotated[
    TransportName | None,
    typer.Option(
        "--transport",
        help="How nodes reach each other; as --join says, else tcp if nobody else can join, or "
        "iroh.",
    ),
]
AuditRate = Annotated[
    float,
    typer.Option(
        "--audit-rate",
        min=0,
        max=100,
        help="Percent of the answers of well-known nodes that committees compute again; of "
        "strangers up to 20 times as many.",
    ),
]
Beacon = Annotated[
    list[str] | None,
    typer.Option(
        "--beacon",
        help="Node id of an operator of the audits' beacon; repeat it for several. Else the one "
        "that founded the network.",
    ),
]
EpochSeconds = Annotated[
    int,
    typer.Option(
        "--epoch-seconds",
        min=1,
        max=86_400,
        help="Length of an epoch of audits: the same on every member of a network.",
    ),
]
ServiceWindow = Annotated[
    int,
    typer.Option(
        "--service-window",
        min=20,
        max=31 * 86_400,
        help="Seconds over which service levels are promised: the same on every member of a "
        "network.",
    ),
]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", min=1, help="The longest answer, in tokens.")
]
Temperature = Annotated[
    float, typer.Option("--temperature", min=0.0, max=2.0, help="0 takes the likeliest token.")
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, help="The same seed gives the same tokens, anywhere.")
]
ApiKeys = Annotated[
    list[str] | None,
    typer.Option("--api-key", help="A key that clients must bring; repeat it for several."),
]
Host = Annotated[str, typer.Option("--host", help="The HTTP address to listen on.")]
Port = Annotated[
    int, typer.Option("--port", "-p", min=0, max=65535, help="The HTTP port; 0 picks a free one.")
]
BaseUrl = Annotated[
    str | None, typer.Option("--base-url", help="A gateway, e.g. http://127.0.0.1:8000.")
]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="The key that the gateway asks for.")]
Receipt = Annotated[
    str | None,
    typer.Argument(
        metavar="RECEIPT", help="A file, - for stdin, or a URL such as http://HOST/v1/receipts/ID."
    ),
]
