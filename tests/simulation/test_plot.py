"""Curves become a picture, or one line says what is missing."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from unisono.errors import ConfigurationError
from unisono.simulation import plot
from unisono.simulation.run import simulate
from unisono.simulation.settings import Settings


def test_a_run_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "run.png"
    plot.check_target(target)
    plot.draw(simulate(Settings(nodes=40, hours=0.02)), target)
    assert target.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"unisono\[bench\]"):
        plot.check_target(tmp_path / "run.png")


def test_a_bad_target_is_refused_before_the_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigurationError, match=r"ends with \.png"):
        plot.check_target(tmp_path / "run.txt")
    with pytest.raises(ConfigurationError, match="no folder"):
        plot.check_target(tmp_path / "missing" / "run.png")
