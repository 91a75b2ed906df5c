"""`unisono simulate` prints a summary, writes what was asked for, and names bad values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from unisono.cli.app import app

TINY = ("simulate", "--nodes", "40", "--hours", "0.02")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_summary_has_every_figure_and_says_what_is_modelled() -> None:
    result = run(*TINY)
    assert result.exit_code == 0
    for word in (
        "requests",
        "throughput",
        "first token",
        "per token",
        "availability",
        "utilisation",
        "control traffic",
        "retries",
        "failed",
        "modelled",
    ):
        assert word in result.stdout


def test_json_goes_to_a_file_or_to_stdout_and_is_the_same(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    assert run(*TINY, "--json", str(target)).exit_code == 0
    printed = run(*TINY, "--json", "-").stdout
    assert printed == target.read_text()
    assert json.loads(printed)["settings"]["nodes"] == 40


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nodes", "2"), "--nodes 2"),
        (("--hours", "0"), "--hours 0"),
        (("--seed", "-1"), "--seed -1"),
        (("--view", "300", "--gateway-view", "200"), "--gateway-view 200"),
        (("--json", "/no/such/folder/x.json"), "--json /no/such/folder/x.json"),
    ],
)
def test_bad_values_are_one_line(arguments: tuple[str, ...], named: str) -> None:
    result = run("simulate", *arguments)
    assert result.exit_code == 1
    assert named in result.stderr


@pytest.mark.parametrize("flag", ["--scenario", "--policy", "--regions"])
def test_an_unknown_choice_is_a_usage_error(flag: str) -> None:
    result = run("simulate", flag, "noodles")
    assert result.exit_code == 2
    assert flag in result.stderr
