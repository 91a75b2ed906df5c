"""`unisono models`: the converted models of this machine."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unisono.cli import options as o

if TYPE_CHECKING:
    from unisono.models.store import StoredModel

app = typer.Typer(
    help="List, add, show and remove converted models.\n\n"
    "[bold]Examples[/]\n\n"
    "[cyan]unisono models[/]\n\n"
    "[cyan]unisono models add ./my-model.gguf[/]\n\n"
    "[cyan]unisono models show 66175a49 --json[/]",
    rich_markup_mode="rich",
)

ModelId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="A model id, its first digits (8 or more), or a model's name."
    ),
]


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, as_json: o.Json = False) -> None:
    if ctx.invoked_subcommand is None:
        list_models(as_json)


@app.command("list")
def list_models(as_json: o.Json = False, verbose: o.Verbose = False) -> None:
    """List the converted models.

    [bold]Example[/]

    [cyan]unisono models list --json | jq -r '.models[].id'[/]
    """
    del verbose
    from unisono.models.store import ModelStore

    store = ModelStore()
    stored = store.list()
    if as_json:
        _print_json({"folder": str(store.root), "models": [_facts(model) for model in stored]})
        return
    from rich.table import Table

    from unisono.cli.terminal import dim, out, printable

    if not stored:
        dim(f"No converted models in {store.root}. Add one: unisono models add SOURCE")
        return
    table = Table(header_style="bold", pad_edge=False)
    for name in ("model", "id", "layers", "context", "size"):
        table.add_column(name, justify="left" if name in ("model", "id") else "right")
    for model in stored:
        facts = _facts(model)
        table.add_row(
            printable(model.name),
            f"{model.id[:16]}…",
            str(facts["layers"]),
            f"{facts['context_length']:,}",
            _megabytes(facts["bytes"]),
        )
    out.print(table)


@app.command("add")
def add_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A catalog name, .gguf file, folder with config.json, or owner/name.",
        ),
    ],
    as_json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Convert a model, once, into the exact integers that all nodes share.

    [bold]Examples[/]

    [cyan]unisono models add gemma-3-270m[/]

    [cyan]unisono models add ~/models/smollm2-135m[/]

    [cyan]unisono models add Qwen/Qwen3-0.6B[/]
    """
    del verbose
    from unisono.cli.preparation import prepared

    model = prepared(source)
    if as_json:
        _print_json(_facts(model))
        return
    from unisono.cli.terminal import out, printable

    out.print(f"{printable(model.name)}  {model.id}", soft_wrap=True, markup=False)


@app.command("show")
def show_model(model: ModelId, as_json: o.Json = False, verbose: o.Verbose = False) -> None:
    """Show one model: its shape, size and where it lies.

    [bold]Example[/]

    [cyan]unisono models show gemma-3-270m[/]
    """
    del verbose
    facts = _facts(_found(model))
    if as_json:
        _print_json(facts)
        return
    from rich.table import Table
    from rich.text import Text

    from unisono.cli.terminal import out, printable

    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        shown = _megabytes(value) if name == "bytes" else str(value)
        table.add_row(name.replace("_", " "), Text(printable(shown)))
    out.print(table)


@app.command("remove")
def remove_model(model: ModelId, as_json: o.Json = False, verbose: o.Verbose = False) -> None:
    """Delete a converted model; its source stays.

    [bold]Example[/]

    [cyan]unisono models remove 66175a49[/]
    """
    del verbose
    import shutil

    from unisono.errors import ConfigurationError

    stored = _found(model)
    facts = _facts(stored)
    try:
        # The manifest first: without it the folder is no model, however far the rest gets.
        (stored.path / "manifest.json").unlink()
        shutil.rmtree(stored.path)
    except OSError as error:
        raise ConfigurationError(
            f"cannot remove {error.filename or stored.path}: {error.strerror}"
        ) from error
    if as_json:
        _print_json({"removed": facts["id"], "bytes": facts["bytes"]})
        return
    from unisono.cli.terminal import dim

    dim(f"Removed {stored.name} ({_megabytes(facts['bytes'])}).")


def _found(text: str) -> StoredModel:
    """A stored model by id, prefix of it, or name.

    Raises:
        ConfigurationError: none, or several.
    """
    from unisono.errors import ConfigurationError
    from unisono.models.store import ModelStore

    store = ModelStore()
    stored = store.list()
    found = [
        m
        for m in stored
        if m.id == text or m.name == text or (len(text) > 7 and m.id.startswith(text))
    ]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(m.id[:16] for m in found)
        raise ConfigurationError(f"several models are called '{text}': name one by its id: {ids}")
    raise ConfigurationError(
        f"there is no converted model '{text}' in {store.root}: 'unisono models' lists those that "
        "are, 'unisono models add SOURCE' makes one"
    )


def _facts(model: StoredModel) -> dict[str, Any]:
    config = model.manifest.config
    return {
        "name": model.name,
        "id": model.id,
        "layers": config.layer_count,
        "hidden_size": config.hidden_size,
        "vocabulary_size": config.vocabulary_size,
        "context_length": config.context_length,
        "bytes": sum(file.stat().st_size for file in model.path.iterdir() if file.is_file()),
        "path": str(model.path),
    }


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _print_json(report: dict[str, Any]) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
