"""One model over machines that cannot be dialled: two homes, a relay, and a gateway."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path as File

import pytest
from bench.netlab import Town, missing

WHY_NOT = missing("nft")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or ""),
]

UNISONO = [sys.executable, "-m", "unisono"]
ASK = """
import httpx, sys
body = {"model": "gemma-3-270m", "prompt": "The sea is", "max_tokens": 24, "temperature": 0}
for _ in range(120):
    try:
        reply = httpx.post("http://127.0.0.1:8000/v1/completions", json=body, timeout=60)
    except httpx.ConnectError:
        reply = None
    if reply is not None and reply.status_code == 200:
        print(reply.text)
        sys.exit(0)
    import time
    time.sleep(0.5)
sys.exit(f"no answer: {reply.text if reply is not None else 'no gateway'}")
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["cone", "symmetric"])
def test_a_model_in_three_blocks_of_which_two_are_behind_nat(tmp_path: File, kind: str) -> None:
    with Town(["gateway", "relay"], {"alice": kind, "bob": "cone"}) as town:
        logs = {}

        def start(place: str, *argv: str) -> None:
            logs[place] = (tmp_path / place).open("w+")
            town.start(place, [*UNISONO, *argv], stdout=logs[place], stderr=subprocess.STDOUT)

        def node(place: str, layers: str, *more: str) -> None:
            bind = ("--bind", f"{town.address(place)}:7000", "--threads", "1")
            start(place, "node", "--layers", layers, "--join", joined, *bind, *more)

        start("gateway", "gateway", "--bind", f"{town.address('gateway')}:7000")
        joined = ""
        for _ in range(300):
            found = re.search(r"iroh://\S+", (tmp_path / "gateway").read_text())
            if found:
                joined = found.group()
                break
            time.sleep(0.1)
        assert joined, (tmp_path / "gateway").read_text()
        node("relay", "0:6", "--serve-relay")
        node("alice", "6:12")
        node("bob", "12:18")
        done = town.run("gateway", [sys.executable, "-c", ASK], capture_output=True, text=True)
        said = {place: (tmp_path / place).read_text() for place in logs}
        assert done.returncode == 0, (done.stderr, said)
        answer = json.loads(done.stdout)
        assert answer["usage"]["completion_tokens"] == 24
        assert answer["choices"][0]["text"]
