"""`unisono price` and `unisono cost`: sums that can be checked by hand, and bad values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from unisono.cli.app import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


DECLARED = ("price", "--watts", "100", "--electricity", "0.3", "--reads", "10000")


def test_a_declared_machine_is_priced_without_a_model() -> None:
    result = run(*DECLARED, "--decodes", "1000", "--margin", "0", "--json")
    assert result.exit_code == 0
    price = json.loads(result.stdout)["floor"]["price"]
    assert price == {"per_input": 834, "per_output": 8334}
    shown = run(*DECLARED, "--decodes", "1000", "--off-peak", "22:00-06:00=0.1").stdout
    for word in ("electricity", "depreciation", "margin", "decodes", "price", "22:00-06:00"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((*DECLARED, "--decodes", "0"), "decodes"),
        ((*DECLARED, "--decodes", "1", "--off-peak", "night"), "night"),
        ((*DECLARED, "--decodes", "1", "--use", "2"), "use"),
        (("cost",), "--price-in"),
        (("cost", "--price-in", "-1", "--price-out", "1"), "positive"),
        (("cost", "--price-in", "1", "--price-out", "1", "--prices", "/none"), "/none"),
        (("cost", "--base-url", "http://127.0.0.1:1"), "cannot reach"),
    ],
)
def test_bad_values_are_one_line(arguments: tuple[str, ...], named: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert named in result.stderr


def test_costs_are_compared_with_a_list_of_ones_own(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(
        '[[offer]]\nprovider = "P"\nmodel = "m"\ninput = 1\noutput = 2\n'
        'checked = 2026-01-02\nsource = "s"\n'
    )
    asked = ("cost", "--price-in", "0.5", "--price-out", "1", "--tokens", "1000000")
    free = ("--gas", "0", "--failures", "0", "--audits", "0", "--speculation", "0")
    result = run(
        *asked, *free, "--locked", "0", "--prompt-tokens", "0", "--prices", str(prices), "--json"
    )
    figures = json.loads(result.stdout)
    assert figures["ours"]["total"] == 1
    assert figures["others"][0]["cost"] == 2
    assert "2.00x" in run(*asked, *free, "--locked", "0", "--prices", str(prices)).stdout
