"""The audit's process holds no weights, and says clearly what it cannot do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import unisono

WATCHED = """
import json, sys
from typer.testing import CliRunner
from unisono.cli.app import app
import unisono.verification.light.client, unisono.compose.visitor, unisono.verification.form
done = CliRunner().invoke(app, sys.argv[1:])
loaded = [name for name in sys.modules if name.startswith("unisono.models")]
print(json.dumps({"code": done.exit_code, "loaded": loaded, "out": done.output}))
"""
WEIGHTS = {"unisono.models.loading", "unisono.models.weights", "unisono.models.decoder"}


def test_an_audit_never_loads_what_reads_weights(tmp_path: Path) -> None:
    nothing = tmp_path / "receipt.json"
    nothing.write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "audit", str(nothing)],
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["code"] == 2
    assert not WEIGHTS & set(report["loaded"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["audit"], "RECEIPT or --prepare"),
        (["audit", "none.json"], "cannot read the receipt"),
        (["dispute", "none.json"], "cannot read the receipt"),
        (["audit", "http://127.0.0.1:9/v1/other"], "names no receipt"),
        (["audit", "--prepare", "no-such-model"], "no-such-model"),
        (["verify", "none.json", "--trust", "00" * 32], "goes with --evidence"),
    ],
)
def test_what_cannot_be_done_ends_with_two(arguments: list[str], said: str) -> None:
    done = unisono(*arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())
