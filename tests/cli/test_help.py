"""Help teaches, and costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from unisono.cli.app import app

VERBS = [
    "run",
    "up",
    "node",
    "gateway",
    "chat",
    "verify",
    "perplexity",
    "models",
    "status",
    "bench",
]


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_shows_an_example(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"])
    assert shown.exit_code == 0
    assert "Example" in shown.stdout
    assert f"unisono {verb}" in shown.stdout.partition("Example")[2]


def test_help_names_every_verb() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert all(verb in shown.stdout for verb in VERBS)


def test_help_loads_neither_torch_nor_the_web_server() -> None:
    program = (
        "import sys; sys.argv = ['unisono', 'run', '--help']\n"
        "from unisono.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'fastapi', 'numpy', 'httpx', 'multiprocessing'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
