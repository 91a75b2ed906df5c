"""What goes wrong is one clear line, and the exit code says which kind it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from unisono.cli.app import app
from unisono.cli.terminal import printable


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def the_line(result: Result, exit_code: int = 1) -> str:
    assert result.exit_code == exit_code
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    return line


@pytest.mark.parametrize("layers", ["5", "6:6", "9:2", "a:b", "-1:3", ":"])
def test_layers_that_are_no_block_are_a_usage_error(layers: str) -> None:
    result = run("node", "--layers", layers)
    assert result.exit_code == 2
    assert "--layers" in result.stderr


def test_an_unknown_flag_is_a_usage_error() -> None:
    assert run("run", "text", "--noodles", "3").exit_code == 2


@pytest.mark.parametrize("verb", ["run", "chat", "up"])
def test_a_network_without_nodes_is_a_usage_error(verb: str) -> None:
    result = run(verb, "--nodes", "0")
    assert result.exit_code == 2
    assert "--nodes" in result.stderr


def test_a_bad_join_address_says_what_one_looks_like() -> None:
    assert "TRANSPORT://NODE_ID@HOST:PORT" in the_line(run("node", "--join", "localhost:4433"))


def test_a_network_of_another_transport_is_named() -> None:
    address = f"tcp://{'ab' * 32}@127.0.0.1:1"
    line = the_line(run("node", "--join", address, "--transport", "iroh"))
    assert "--transport tcp" in line


def test_a_missing_receipt_is_named(tmp_path: Path) -> None:
    assert "nowhere.json" in the_line(run("verify", str(tmp_path / "nowhere.json")), 2)


def test_what_is_no_receipt_is_said_so(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text('{"version": 1}')
    assert "not a receipt" in the_line(run("verify", str(path)), 2)


def test_an_unreachable_gateway_is_named() -> None:
    line = the_line(run("status", "--base-url", "http://127.0.0.1:9"))
    assert "http://127.0.0.1:9" in line
    assert "unisono up" in line


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    assert "no.txt" in the_line(run("perplexity", str(tmp_path / "no.txt")))


def test_an_unknown_stored_model_is_named() -> None:
    assert "nosuch" in the_line(run("models", "show", "nosuch"))


def test_an_answer_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\n\tc\x9b5md\x7f") == "a[2Jb\n\tc5md"


@pytest.mark.parametrize("models", ["a", "a,,b", ",", ",".join("abcdefghi")])
def test_models_that_are_no_ensemble_are_refused(models: str) -> None:
    line = the_line(run("run", "text", "--ensemble", models))
    assert "expected 2 to 8 models with commas between them" in line


def test_an_ensemble_has_no_quorum() -> None:
    line = the_line(run("run", "text", "--ensemble", "a,b", "--quorum", "3"))
    assert "choose one of them" in line
