"""The verbs together: settings from variables and the file, errors as one line, exit codes."""

from __future__ import annotations

import inspect
import logging
import re
import signal
import sys
from typing import Annotated, Any, NoReturn, cast, get_args, get_type_hints

import typer
from typer.core import TyperGroup

from unisono.cli import (
    INTERRUPTED,
    audit,
    bench,
    chain,
    chat,
    cost,
    dispute,
    gateway,
    keys,
    models,
    node,
    perplexity,
    price,
    run,
    simulate,
    stake,
    status,
    up,
    verify,
    wallet,
)
from unisono.cli.options import VERBOSE
from unisono.cli.terminal import fail
from unisono.config import Kind, Value, config_file, load_config
from unisono.errors import UnisonoError

TERMINATED = 128 + signal.SIGTERM


class Verbs(TyperGroup):
    """The top level: ends every error of ours in one line and a fixed exit code."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for name, command in self.commands.items():
            _name_variables(command, name)
            _flow(command)

    def invoke(self, ctx: Any) -> Any:
        """Run a verb. Exit codes: 1 for what went wrong, 130 for Ctrl-C, 143 for SIGTERM."""
        try:
            return super().invoke(ctx)
        except UnisonoError as error:
            if ctx.meta.get(VERBOSE):
                logging.getLogger(__name__).exception("the command failed")
            fail(str(error))
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            fail("stopped")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=(
        '[bold]Start here[/]: [cyan]unisono run "The sea is"[/]  ·  '
        "Every flag is also a variable (--max-tokens: UNISONO_MAX_TOKENS, or "
        "UNISONO_RUN_MAX_TOKENS for one verb) and a key of the verb's section in "
        "~/.config/unisono/config.toml ($UNISONO_CONFIG), e.g. max-tokens = 128 under "
        "\\[run]. Flags come first, then variables, then the file."
    ),
)


def _show_version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        sys.stdout.write(f"unisono {version('unisono')}\n")
        raise typer.Exit


@app.callback()
def unisono(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Large language models from a network of nodes, with a receipt that anyone can check."""
    del version
    signal.signal(signal.SIGTERM, _terminate)
    path = config_file()
    if path is not None:
        group = cast(Any, ctx.command)
        known = {name: _keys(command) for name, command in group.commands.items()}
        settings = load_config(path, known)
        cast(Any, ctx).default_map = {
            verb: _by_parameter(group.commands[verb], section) for verb, section in settings.items()
        }


def _terminate(number: int, frame: object) -> NoReturn:
    del number, frame
    raise SystemExit(TERMINATED)


def _name_variables(command: Any, verb: str) -> None:
    """Give every flag its variables: `UNISONO_VERB_FLAG` and, for all verbs, `UNISONO_FLAG`."""
    for parameter in command.params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            flag = _flag(parameter).upper()
            parameter.envvar = [f"UNISONO_{verb.upper()}_{flag}", f"UNISONO_{flag}"]
            parameter.show_envvar = False
    for child in getattr(command, "commands", {}).values():
        _name_variables(child, verb)


def _flag(parameter: Any) -> str:
    """A flag's name as variables and files spell it: `--max-tokens` is `max_tokens`."""
    longest = max(parameter.opts, key=len)
    return str(longest).lstrip("-").replace("-", "_")


def _flow(command: Any) -> None:
    """Let a help text's paragraphs flow: its line breaks are those of the source."""
    if command.help:
        command.help = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help)
    for child in getattr(command, "commands", {}).values():
        _flow(child)


def _by_parameter(command: Any, section: dict[str, Value]) -> dict[str, Value]:
    """A section's values under the names of the verb's parameters."""
    names = {_flag(p): p.name for p in command.params if p.param_type_name == "option"}
    return {names[key]: value for key, value in section.items()}


def _keys(command: Any) -> dict[str, Kind]:
    """The keys that a verb's section of the file may have, from the verb's annotations."""
    hints = get_type_hints(inspect.unwrap(command.callback))
    return {
        _flag(parameter): _kind(hints[parameter.name])
        for parameter in command.params
        if parameter.param_type_name == "option" and parameter.name in hints
    }


def _kind(hint: Any) -> Kind:
    for part in get_args(hint) or (hint,):  # such as the parts of `int | None`
        if part in _KINDS:
            return _KINDS[part]
    return Kind.TEXTS if list[str] in get_args(hint) else Kind.TEXT


_KINDS: dict[Any, Kind] = {bool: Kind.FLAG, int: Kind.INTEGER, float: Kind.NUMBER, str: Kind.TEXT}


app.command()(run.run)
app.command()(up.up)
app.command()(node.node)
app.command()(gateway.gateway)
app.command()(chat.chat)
app.command()(verify.verify)
app.command()(audit.audit)
app.command()(dispute.dispute)
app.command()(perplexity.perplexity)
app.add_typer(models.app, name="models")
app.command()(status.status)
app.command()(bench.bench)
app.command()(simulate.simulate)
app.add_typer(chain.app, name="chain")
app.add_typer(keys.app, name="keys")
app.add_typer(wallet.app, name="wallet")
app.add_typer(stake.app, name="stake")
app.command()(price.price)
app.command()(cost.cost)
