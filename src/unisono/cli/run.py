"""`unisono run`: a local network answers one prompt, and the receipt is checked."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from unisono.cli import STARTED
from unisono.cli import options as o

if TYPE_CHECKING:
    from unisono.verification.receipt import Receipt


def run(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text that the model continues.")
    ],
    nodes: o.NodesIfAny = None,
    quorum: o.Quorum = None,
    ensemble: o.Ensemble = None,
    model: o.Model = o.DEFAULT_MODEL,
    max_tokens: o.MaxTokens = 64,
    temperature: o.Temperature = 0.0,
    seed: o.Seed = 0,
    transport: o.Transport = o.TransportName.tcp,
    threads: o.Threads = None,
    guesses: o.Guesses = True,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Start a local network, let it continue a text, and check the receipt.

    The model is cut over node processes (3, unless --nodes says otherwise) that talk over real
    sockets; the answer comes over HTTP, as any client gets it. Exit code 0 means that an
    independent replay of the receipt found it VALID.

    With --quorum each of so many chains computes the whole answer: chains of one node that holds
    the whole model, or of as many as --nodes says. What a majority of them says is the answer,
    and the receipt names who did not.

    With --ensemble several models answer together, each on nodes of its own (one, or as many as
    --nodes says). The text is tokenized as for the first of them.

    [bold]Examples[/]

    [cyan]unisono run "The most beautiful thing about the sea is"[/]

    [cyan]unisono run "Once upon a time" --nodes 2 --temperature 0.8 --seed 7[/]

    [cyan]unisono run "2 + 2 =" --max-tokens 8 --json | jq .text[/]

    [cyan]unisono run "2 + 2 =" --quorum 3[/]

    [cyan]unisono run "2 + 2 =" --ensemble gemma-3-270m,gemma-3-270m-it[/]
    """
    together = _together(ensemble, quorum)
    from unisono.cli.child import start_servers

    start_servers()
    from unisono.cli.terminal import dim, err, out, write

    body: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    if quorum is not None:
        body["quorum"] = quorum
    copies = quorum or 1
    nodes = nodes or (3 if quorum is None and not together else 1)
    count = nodes * max(copies, len(together))
    text = ""
    first: float | None = None
    with ExitStack() as stack:
        from unisono.cli.preparation import prepared

        stored, *others = [prepared(name) for name in together or (model,)]
        if together:
            body["ensemble"] = [each.id for each in (stored, *others)]
        waiting = err.status(f"Starting {count} nodes and a gateway …")
        waiting.start()
        stack.callback(waiting.stop)
        from unisono.cli.client import GatewayClient
        from unisono.cli.local_network import LocalSettings, running
        from unisono.verification.receipt import from_json

        level = logging.INFO if verbose else logging.WARNING
        network = stack.enter_context(
            running(
                LocalSettings(
                    model=stored,
                    others=tuple(others),
                    nodes=nodes,
                    copies=copies,
                    transport=transport.value,
                    threads=threads,
                    draft=guesses,
                    log_level=level,
                ),
                waiting.update,
            )
        )
        client = stack.enter_context(GatewayClient(network.url, local=True))
        start_seconds = time.perf_counter() - STARTED
        waiting.update("Reading the prompt …")
        name: str | None = None
        for piece in client.text(body | {"model": stored.name}):
            if first is None:
                first = time.perf_counter() - STARTED
                waiting.stop()
                if not as_json:
                    dim(prompt) if out.is_terminal else None
            text += piece.text
            name = piece.receipt or name
            if not as_json:
                write(piece.text)
        if not as_json:
            write("\n\n")
        if name is None:
            from unisono.errors import AnswerInterrupted

            raise AnswerInterrupted(
                "the answer is complete, but not every node signed for it in time: there is no "
                "receipt to check; run it again"
            )
        receipt = from_json(client.receipt(name))
    path = _saved(receipt)
    with err.status("Checking the receipt …") as waiting:
        from unisono.cli.replay import replayed, show_receipt, show_verdict

        judgement = replayed(
            receipt,
            lambda done, total, what: waiting.update(
                f"Checking the receipt: {done}/{total} {what}"
            ),
        )
    if as_json:
        report = {
            "text": text,
            "token_ids": receipt.tokens,
            "tokens_per_second": receipt.tokens_per_second,
            "finish_reason": receipt.finish_reason,
            "model": stored.name,
            "model_id": stored.id,
            "nodes": count,
            "verdict": judgement.verdict,
            "message": judgement.message,
            "start_seconds": round(start_seconds, 3),
            "first_token_seconds": round(first or start_seconds, 3),
            "receipt_id": receipt.id,
            "receipt_path": str(path),
            "receipt": receipt,
        }
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        show_receipt(receipt, stored.name)
        show_verdict(judgement)
        dim(f"Started answering {first or start_seconds:.1f} s after the command. Check it again:")
        out.print(f"unisono verify {path}", soft_wrap=True, markup=False)
    raise typer.Exit(0 if judgement.verdict == "VALID" else 1)


def _together(ensemble: str | None, quorum: int | None) -> list[str]:
    """The names of the models that answer together."""
    from unisono.errors import ConfigurationError

    if ensemble is None:
        return []
    if quorum is not None:
        raise ConfigurationError("--ensemble and --quorum do not go together: choose one of them")
    names = [name.strip() for name in ensemble.split(",")]
    if not all(names) or not 2 <= len(names) <= 8:
        raise ConfigurationError(
            f"--ensemble '{ensemble}': expected 2 to 8 models with commas between them"
        )
    return names


def _saved(receipt: Receipt) -> Path:
    """Write a receipt where its owner finds it; only the owner may read it, as it holds the
    prompt."""
    import os

    from unisono.config import state_directory
    from unisono.errors import ConfigurationError
    from unisono.verification.receipt import to_json

    path = state_directory() / "receipts" / f"{receipt.id}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(to_json(receipt))
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}; set UNISONO_STATE to a folder of yours"
        ) from error
    return path
