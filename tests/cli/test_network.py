"""The verbs on real processes and sockets, with a tiny model."""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.cli.program import answered, processes_of, signal_group, started, unisono
from unisono.cli.app import app

Change = Callable[[dict[str, Any]], None]


def increment(receipt: dict[str, Any]) -> None:
    receipt["tokens"][0] += 1


def other_prompt(receipt: dict[str, Any]) -> None:
    receipt["request"]["prompt"][0] += 1


def other_reason(receipt: dict[str, Any]) -> None:
    receipt["finish_reason"] = "stop"


def other_rows(receipt: dict[str, Any]) -> None:
    receipt["hops"][1]["rows_out"] = "00" * 32


def other_time(receipt: dict[str, Any]) -> None:
    receipt["created"] += 1


CHANGES: list[tuple[Change, str]] = [
    (increment, "tokens_altered"),
    (other_prompt, "request_altered"),
    (other_reason, "finish_reason"),
    (other_rows, "claim_signature"),
    (other_time, "gateway_signature"),
]


@pytest.fixture(scope="module")
def answer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `unisono run` printed, once for all tests here."""
    folder = tmp_path_factory.mktemp("answer")
    settings = {
        "UNISONO_STATE": str(folder),
        "UNISONO_CACHE": str(tmp_path_factory.getbasetemp() / "cli-cache"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        return answered(
            "run", "The quick brown", "--model", tiny_model, "--nodes", "2", "--max-tokens", "6"
        )


def test_run_prints_one_object_with_text_tokens_and_receipt(answer: dict[str, Any]) -> None:
    assert answer["verdict"] == "VALID"
    assert answer["nodes"] == len(answer["receipt"]["hops"]) == 2
    assert answer["token_ids"] == answer["receipt"]["tokens"]
    assert 1 <= len(answer["token_ids"]) <= 6
    assert answer["tokens_per_second"] > 0
    assert isinstance(answer["text"], str)
    assert Path(answer["receipt_path"]).name == f"{answer['receipt_id']}.json"


def test_the_saved_receipt_verifies(answer: dict[str, Any]) -> None:
    done = unisono("verify", answer["receipt_path"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VALID")


@pytest.mark.parametrize(("change", "kind"), CHANGES)
def test_an_altered_receipt_is_refused(
    answer: dict[str, Any], change: Change, kind: str, tmp_path: Path
) -> None:
    receipt = copy.deepcopy(answer["receipt"])
    change(receipt)
    path = tmp_path / "altered.json"
    path.write_text(json.dumps(receipt))
    done = CliRunner().invoke(app, ["verify", str(path), "--json"])
    verdict = json.loads(done.stdout)
    assert done.exit_code == 1
    assert verdict["verdict"] == "INVALID"
    assert verdict["fault"]["kind"] == kind
    assert len(verdict["receipt_id"]) == 32


def test_models_are_listed_and_removed(
    answer: dict[str, Any], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNISONO_CACHE", str(tmp_path / "cache"))
    added = answered("models", "add", tiny_model)
    assert added["id"] == answer["model_id"]
    assert added["layers"] == 3
    assert [model["id"] for model in answered("models")["models"]] == [added["id"]]
    assert answered("models", "remove", added["id"][:12])["removed"] == added["id"]
    assert answered("models", "list")["models"] == []


def test_perplexity_is_close_to_the_references(
    answer: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 3)
    measured = answered(
        "perplexity", text, "--model", tiny_model, "--reference", "--max-tokens", "60"
    )
    assert measured["tokens"] == 60
    assert abs(measured["change_percent"]) < 2
    assert measured["perplexity"] == pytest.approx(measured["reference_perplexity"], rel=0.02)


def assert_nothing_left(session: int) -> None:
    """Python's own tracker of semaphores ends a moment after the program whose pipe it reads."""
    deadline = time.monotonic() + 3
    while (left := processes_of(session)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_dead_node_is_started_again_and_ctrl_c_leaves_no_process(
    answer: dict[str, Any], tiny_model: Path
) -> None:
    network = started(
        "up", "--model", tiny_model, "--nodes", "2", "--port", "0", "--transport", "tcp"
    )
    try:
        assert network.stdout is not None
        assert network.stderr is not None
        lines: list[str] = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(network.stdout.readline())
            assert lines[-1] or network.poll() is None, network.stderr.read()
        url = next(line.split()[1] for line in lines if line.startswith("base_url"))
        status = answered("status", "--base-url", url)
        assert status["ready"]
        (model,) = status["models"]
        assert model["coverage"] == [{"start": 0, "stop": 3, "nodes": 1}]
        assert model["availability"] == 1
        victim = next(line for line in lines if line.startswith("node 0"))
        os.kill(int(victim.rsplit(" ", 1)[1]), signal.SIGKILL)
        assert "signal 9" in network.stderr.readline()
        assert "is back" in network.stderr.readline()
        signal_group(network, signal.SIGINT)
        assert network.wait(20) == 130
        assert_nothing_left(network.pid)
        assert "Traceback" not in network.stderr.read()
    finally:
        signal_group(network, signal.SIGKILL) if network.poll() is None else None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("seconds", "number", "code"),
    [(1.0, signal.SIGINT, 130), (2.0, signal.SIGINT, 130), (2.5, signal.SIGTERM, 143)],
)
def test_a_start_that_is_interrupted_leaves_no_process(
    answer: dict[str, Any], tiny_model: Path, seconds: float, number: int, code: int
) -> None:
    network = started("up", "--model", tiny_model, "--nodes", "2", "--port", "0")
    time.sleep(seconds)
    signal_group(network, number)
    output, errors = network.communicate(timeout=20)
    assert network.returncode == code, (output, errors)
    assert "Traceback" not in errors
    assert_nothing_left(network.pid)
