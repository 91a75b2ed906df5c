"""Nodes in processes of their own are asked about their answers, by audits and in disputes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.cli.program import UNISONO
from tests.conftest import TinyModels
from tests.gateway.running import until
from unisono.compose.gateway import Front, FrontSettings
from unisono.compose.node_settings import NodeSettings
from unisono.routing.experience import Trial
from unisono.types import LayerRange

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ALTERED = 1
"""The hop whose node computes with one altered weight."""
BLOCKS = (LayerRange(0, 2), LayerRange(2, 4), LayerRange(4, 6))


class Asked:
    """A running network with an answer, and the program to question it with."""

    def __init__(self, url: str, receipt: dict[str, Any], folder: Path, cache: Path) -> None:
        self.url, self.receipt, self.folder = url, receipt, folder
        self.path = folder / "receipt.json"
        self.path.write_text(json.dumps(receipt))
        self._environment = os.environ | {
            "UNISONO_CACHE": str(cache),
            "UNISONO_STATE": str(folder / "state"),
        }

    async def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The program, to its end, in the folder."""
        return await asyncio.to_thread(
            subprocess.run,
            [*UNISONO, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=100,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env=self._environment,
            check=False,
        )

    async def told(self, *arguments: str | Path, code: int) -> dict[str, Any]:
        """The JSON that a verb prints which ends with this code."""
        done = await self.run(*arguments, "--json")
        assert done.returncode == code, (done.stdout, done.stderr)
        return json.loads(done.stdout)


def launched(settings: NodeSettings, conduct: str) -> subprocess.Popen[bytes]:
    text = msgspec.json.encode(settings).decode()
    return subprocess.Popen([sys.executable, "-m", "tests.compose.launched", text, conduct])


@asynccontextmanager
async def asked(
    models: TinyModels,
    folder: Path,
    altered: int | None,
    prompt: str = "The quick brown fox",
    times: int = 1,
) -> AsyncIterator[Asked]:
    """With the receipt of the last of `times` answers to a prompt."""
    cache = models.store.root
    front = Front(FrontSettings(model=models.gemma.id, port=0, transport="tcp", cache=str(cache)))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        join = await front.bind()
        for hop, layers in enumerate(BLOCKS):
            settings = NodeSettings(
                model=models.gemma.id,
                join=str(join),
                layers=layers,
                transport="tcp",
                cache=str(cache),
                kv_bytes=16 << 20,
                threads=1,
            )
            processes.append(launched(settings, "altered" if hop == altered else "honest"))
        await front.start()
        await front.wait_for_coverage(60)
        assert front.server is not None
        url = front.server.url
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
            body = {
                "model": models.gemma.name,
                "prompt": prompt,
                "seed": 21,
                "temperature": 1.0,
                "max_tokens": 16,
            }
            for _ in range(times):
                answer = await http.post("/v1/completions", json=body)
                assert answer.status_code == 200
            name = answer.headers["x-unisono-receipt"]
            await until(lambda: front.receipts is not None)
            receipt = (await http.get(f"/v1/receipts/{name}")).json()
        yield Asked(url, receipt, folder, cache)
    finally:
        await front.close()
        for process in processes:
            process.kill()
            process.wait()


async def test_one_altered_weight_is_caught_by_an_audit_and_convicted_in_a_dispute(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    async with asked(tiny_models, tmp_path, ALTERED) as network:
        liar = network.receipt["hops"][ALTERED]["node"]
        made = await network.told("audit", "--prepare", tiny_models.gemma.id, code=0)
        audit = await network.told("audit", network.path, "--base-url", network.url, code=1)
        assert audit["fault"]["node"] == liar
        assert audit["fault"]["kind"] == "operator"
        assert audit["fault"]["layers"] == {"start": 3, "stop": 4}
        assert "down" in audit["message"]
        verdicts = [{c["verdict"] for c in hop["checks"]} for hop in audit["hops"]]
        assert [v == {"VALID"} for v in verdicts] == [True, False, True]
        # what it opened convicts it for whoever has secrets, and for nobody else
        evidence = audit["evidence"]
        other = await network.told("verify", "--evidence", evidence, code=1)
        assert (other["convicted"], other["fault"]["suspects"]) == (False, [liar])
        told = await network.told(
            "verify", "--evidence", evidence, "--secrets", made["path"], code=0
        )
        assert told["fault"]["node"] == liar
        # the game convicts it for everybody: its weight does not open under the model id
        game = await network.told("dispute", network.path, "--base-url", network.url, code=1)
        assert (game["fault"]["kind"], game["fault"]["node"]) == ("malformed", liar), game
        judged = await network.told("verify", "--evidence", game["transcript"], code=0)
        assert judged["fault"] == game["fault"]


async def test_honest_nodes_pass_audits_and_win_disputes(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    async with asked(tiny_models, tmp_path, None) as network:
        await network.told("audit", "--prepare", tiny_models.gemma.id, code=0)
        where = "--base-url", network.url
        audit = await network.told("audit", network.path, *where, "--columns", "3", code=0)
        assert audit["verdict"] == "VALID"
        assert [len(hop["checks"]) for hop in audit["hops"]] == [6, 6, 7]
        assert (await network.run("dispute", network.path, *where)).returncode == 0
        shown = (await network.run("audit", network.path, *where, "--tokens", "0")).stdout
        assert "VALID: all that the nodes opened" in shown
        nodes = [hop["node"] for hop in network.receipt["hops"]]
        async with httpx.AsyncClient(base_url=network.url, trust_env=False) as http:
            known = (await http.get("/v1/network")).json()["data"]
        addresses = {n["node"]: n["address"] for n in known}
        for hop, extra in ((1, []), (2, ["--arbiter", addresses[nodes[0]]])):
            arguments = "dispute", network.path, *where, "--hop", str(hop), *extra
            game = await network.told(*arguments, code=1)
            assert game["fault"]["node"] not in nodes
            assert "challenger" in game["message"]
            judged = await network.told("verify", "--evidence", game["transcript"], code=0)
            assert judged["fault"] == game["fault"]


async def test_nodes_answer_for_pages_that_they_took_over(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer covers rows that its session never saw: each hop had them from an earlier one."""
    spared: list[int] = []
    monkeypatch.setattr(Trial, "spared", lambda _, pages: spared.append(pages))
    prompt = "The quick brown fox jumps over the lazy dog. " * 6
    # what reaches a hop in one piece, while the first link is made, leaves no page of a window
    async with asked(tiny_models, tmp_path, None, prompt, times=3) as network:
        assert spared[-1] >= 2
        assert network.receipt["hops"][1]["positions"] > 64 * spared[-1]
        await network.told("audit", "--prepare", tiny_models.gemma.id, code=0)
        where = "--base-url", network.url
        audit = await network.told("audit", network.path, *where, code=0)
        assert audit["verdict"] == "VALID"
        assert all(hop["checks"] for hop in audit["hops"])
        assert (await network.run("verify", network.path)).returncode == 0
        nodes = [hop["node"] for hop in network.receipt["hops"]]
        game = await network.told("dispute", network.path, *where, "--hop", "1", code=1)
        assert game["fault"]["node"] not in nodes
