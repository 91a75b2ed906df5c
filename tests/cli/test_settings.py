"""Flags beat variables, variables beat the file, and mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from unisono.cli import status
from unisono.cli.app import app
from unisono.config import state_directory
from unisono.errors import WireError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.toml"
    monkeypatch.setenv("UNISONO_CONFIG", str(path))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The gateways that `unisono status` turned to."""
    urls: list[str] = []

    class Client:
        def __init__(self, url: str, api_key: str | None) -> None:
            urls.append(url)

        def __enter__(self) -> Any:
            raise WireError("nobody there")

        def __exit__(self, *error: object) -> None:
            raise AssertionError

    monkeypatch.setattr("unisono.cli.client.GatewayClient", Client)
    return urls


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(
    config: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("")
    run("status")
    config.write_text('[status]\nbase-url = "http://file"\n')
    run("status")
    monkeypatch.setenv("UNISONO_BASE_URL", "http://variable")
    run("status")
    monkeypatch.setenv("UNISONO_STATUS_BASE_URL", "http://own-variable")
    run("status")
    run("status", "--base-url", "http://flag")
    assert asked == [
        status.DEFAULT_URL,
        "http://file",
        "http://variable",
        "http://own-variable",
        "http://flag",
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[run]\nnoodles = 3\n", "noodles"),
        ("[walk]\nnodes = 3\n", "walk"),
        ("nodes = 3\n", "nodes"),
        ('[run]\nnodes = "three"\n', "nodes"),
        ("[run]\nnodes = true\n", "nodes"),
        ("[up]\napi-key = [1]\n", "api-key"),
        ("[run\n", "TOML"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_key(
    config: Path, text: str, named: str
) -> None:
    config.write_text(text)
    result = run("status")
    assert result.exit_code == 1
    assert str(config) in result.stderr
    assert named in result.stderr


def test_every_kind_of_key_is_read(config: Path, asked: list[str]) -> None:
    config.write_text(
        '[run]\nnodes = 2\nmax-tokens = 9\ntemperature = 1\ntransport = "tcp"\njson = true\n'
        '[up]\napi-key = ["a", "b"]\nspare = 1\n[status]\nbase_url = "http://file"\n'
    )
    run("status")
    assert asked == ["http://file"]


def test_a_named_file_must_exist(config: Path) -> None:
    result = run("status")
    assert result.exit_code == 1
    assert str(config) in result.stderr


def test_the_state_directory_is_the_users_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNISONO_STATE", str(tmp_path))
    assert state_directory() == tmp_path
    monkeypatch.delenv("UNISONO_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "x"))
    assert state_directory() == tmp_path / "x" / "unisono"
