from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import tiny


@pytest.fixture(autouse=True)
def own_folders(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test reads or writes the user's settings and state."""
    for name in ("NODES", "MODEL", "MAX_TOKENS", "SEED", "PORT", "JSON"):
        monkeypatch.delenv(f"UNISONO_{name}", raising=False)
    monkeypatch.delenv("UNISONO_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("UNISONO_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("UNISONO_CACHE", str(tmp_path_factory.getbasetemp() / "cli-cache"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `--model` takes: random weights, 3 layers, 320 tokens."""
    return tiny.save(tiny.build("qwen3"), tmp_path_factory.mktemp("tiny-qwen3"))
