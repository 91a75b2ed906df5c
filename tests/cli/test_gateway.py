"""`unisono gateway` without a single node, and what stands in for it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from tests.cli.program import signal_group, started
from tests.gateway.endpoint import endpoint, tells
from unisono.cli.app import app


async def base_url(gateway: subprocess.Popen[str]) -> str:
    """What it prints when it listens."""
    assert gateway.stdout is not None
    assert gateway.stderr is not None
    while True:
        line = await asyncio.to_thread(gateway.stdout.readline)
        assert line or gateway.poll() is None, gateway.stderr.read()
        if line.startswith("base_url"):
            return line.split()[1]


@pytest.mark.slow
async def test_a_remote_fallback_answers_and_its_receipt_is_not_verifiable(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", "sk-far")
    config = tmp_path / "config.toml"
    config.write_text("[gateway]\navailability-threshold = 75\n")
    monkeypatch.setenv("UNISONO_CONFIG", str(config))
    async with endpoint(tells("from afar")) as far:
        arguments = ["--fallback", f"remote:far-model@{far.url}", "--fallback-key", "env:FAR_KEY"]
        gateway = started(
            "gateway", "--model", tiny_model, "--port", "0", "--transport", "tcp", *arguments
        )
        try:
            url = await asyncio.wait_for(base_url(gateway), 60)
            async with httpx.AsyncClient(timeout=30, base_url=url) as http:
                name = (await http.get("/models")).json()["data"][0]["id"]
                body = {"model": name, "prompt": "The sea is", "max_tokens": 5}
                answer = await http.post("/completions", json=body)
                assert answer.json()["choices"][0]["text"] == "from afar"
                assert answer.headers["x-unisono-degraded"] == "unreachable"
                receipt = answer.headers["x-unisono-receipt"]
                data = (await http.get(f"/receipts/{receipt}")).content
            assert far.exchanges[0].headers["authorization"] == "Bearer sk-far"
            (tmp_path / "receipt.json").write_bytes(data)
            done = CliRunner().invoke(app, ["verify", str(tmp_path / "receipt.json"), "--json"])
            assert done.exit_code == 1
            assert json.loads(done.stdout)["source"] == far.url
            shown = CliRunner().invoke(app, ["status", "--base-url", url, "--json"])
            assert shown.exit_code == 0
            report = json.loads(shown.stdout)
            assert report["message"].startswith("ready by fallback to remote:127.0.0.1:")
            assert report["models"][0]["trouble"] == "unreachable"
        finally:
            signal_group(gateway, signal.SIGINT)
            _, errors = await asyncio.to_thread(gateway.communicate, timeout=20)
        assert "Traceback" not in errors
        assert "sk-far" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fallback", "gemma"], "is no fallback"),
        (["--fallback", "remote:m@http://a", "--fallback-key", "sk-secret"], "must not be written"),
        (["--fallback-key", "env:HOME"], "no remote fallback uses it"),
    ],
)
def test_a_fallback_that_cannot_be_read_is_refused_before_anything_slow(
    arguments: list[str], message: str
) -> None:
    done = CliRunner().invoke(app, ["gateway", "--model", "/nowhere", *arguments])
    assert done.exit_code == 1
    assert message in done.stderr
    assert "sk-secret" not in done.stderr
