"""`unisono perplexity`: how well the integer model predicts a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from unisono.cli import options as o


def perplexity(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A UTF-8 text file, or - for stdin.")],
    model: o.Model = o.DEFAULT_MODEL,
    reference: Annotated[
        bool,
        typer.Option(
            "--reference", help="Also measure a float32 forward of the same source weights."
        ),
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Only the first tokens of the text.")
    ] = None,
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Measure the perplexity of the canonical integer model on a text.

    "tokens" counts the predicted tokens: all of the text's, except its first where the model has
    no start token to predict it from.

    [bold]Examples[/]

    [cyan]unisono perplexity essay.txt[/]

    [cyan]unisono perplexity essay.txt --reference --json | jq .change_percent[/]

    [cyan]unisono perplexity book.txt --model ./my-model.gguf --max-tokens 1000[/]
    """
    del verbose
    text = _read(file)
    import msgspec

    from unisono.cli.preparation import prepared
    from unisono.cli.terminal import out, progress_bar

    stored = prepared(model)
    from unisono.models.perplexity import Comparison, measure, measure_reference, token_ids

    ids = token_ids(stored, text, max_tokens)
    with progress_bar("Integer model") as report:
        canonical = measure(stored, ids, report)
    float32 = None
    if reference:
        from unisono.models.catalog import open_source

        with progress_bar("Float32 reference") as report:
            float32 = measure_reference(open_source(model), ids, report)
    comparison = Comparison.of(stored.name, canonical, float32)
    if as_json:
        sys.stdout.write(msgspec.json.encode(comparison).decode() + "\n")
        return
    from rich.table import Table

    table = Table(header_style="bold", pad_edge=False)
    table.add_column(stored.name)
    for name in ("tokens", "nats per token", "perplexity"):
        table.add_column(name, justify="right")
    rows = [("integer model", canonical), *([("float32 reference", float32)] if float32 else [])]
    for name, loss in rows:
        table.add_row(
            name, str(loss.tokens), f"{loss.nats_per_token:.5f}", f"{loss.perplexity:.4f}"
        )
    out.print(table)
    if comparison.change_percent is not None:
        out.print(f"change of perplexity: {comparison.change_percent:+.3f} %")


def _read(file: str) -> str:
    from pathlib import Path

    from unisono.errors import ConfigurationError

    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise ConfigurationError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text: {error}") from error
