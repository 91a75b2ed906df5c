"""One model in three blocks, 50 ms apart: guesses against one token per loop.

    python -m bench.wan [REPEATS]

Needs root and network namespaces (`bench.netlab`). Between every two of three nodes and the
gateway lie 50 ms one way, 5 ms of jitter and 0.1 % loss. The same answers are asked for with
and without guesses, in turn, and of the same network without delay; the tokens of all must be
equal. With UNISONO_LLAMA_CPP and UNISONO_GGUF set, llama.cpp with three RPC servers runs under
the same delay in the same run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.machine import publish
from bench.netlab import WideArea, missing
from bench.wan_gateway import MODEL, first_token, rate
from bench.wan_prompts import PROSE, REPETITIVE

NODES = ("a", "b", "c")
BLOCKS = ("0:6", "6:12", "12:18")
DELAY_MS, JITTER_MS, LOSS = 50.0, 5.0, 0.001
TOKENS = 128
STREAMS = 16
UNGUESSED = 2
"""Prompts of each kind that are also asked without guesses, which takes long."""
WARM_UP = "Numbers in order: one, two, three,"
LOOP = 3 * DELAY_MS / 1000
"""Seconds that a token needs through the ring, at least."""
TRAVERSAL = 4 * (DELAY_MS + JITTER_MS) / 1000
"""Seconds from the gateway through all nodes and back, at most."""


class Network:
    """Three nodes and a gateway in an area; `ask` gives a job to the gateway."""

    def __init__(self, area: WideArea) -> None:
        gateway = [sys.executable, "-m", "bench.wan_gateway", f"{area.address('gateway')}:7000"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._gateway = area.start("gateway", gateway, **pipes)
        address = self._line()
        for name, block in zip(NODES, BLOCKS, strict=True):
            bind = f"{area.address(name)}:7000"
            node = ["-m", "unisono", "node", "--model", MODEL, "--layers", block, "--threads", "1"]
            join = ["--transport", "tcp", "--bind", bind, "--join", address]
            area.start(name, [sys.executable, *node, *join], stdout=subprocess.DEVNULL)
        if self._line() != "ready":
            raise RuntimeError("the network did not start; see the messages above")

    def _line(self) -> str:
        assert self._gateway.stdout is not None
        return str(self._gateway.stdout.readline()).strip()

    def ask(self, prompts: list[str], draft: bool, **more: Any) -> dict[str, Any]:
        """Have prompts answered in turn, or all at once with `together=True`."""
        job = {"prompts": prompts, "draft": draft, "max_tokens": TOKENS, "together": False} | more
        assert self._gateway.stdin is not None
        self._gateway.stdin.write(json.dumps(job) + "\n")
        self._gateway.stdin.flush()
        return json.loads(self._line())


def area(delayed: bool) -> WideArea:
    """Places for all, near each other or far apart."""
    far = {"delay_ms": DELAY_MS, "jitter_ms": JITTER_MS, "loss": LOSS}
    return WideArea(["gateway", *NODES], **(far if delayed else {}))


def singles(delayed: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """One stream at a time, in a network that has answered nothing like it before."""
    found: dict[str, float] = {}
    tokens: dict[str, Any] = {}
    with area(delayed) as places:
        network = Network(places)
        network.ask([WARM_UP], False)
        for kind, prompts in (("repetition", REPETITIVE), ("prose", PROSE)):
            done = network.ask(list(prompts.values()), True)
            found[kind] = rate(done)
            found[f"first {kind}"] = first_token(done)
            tokens[kind] = [a["tokens"] for a in done["answers"]]
            for name, a in zip(prompts, done["answers"], strict=True):
                found[name] = (len(a["tokens"]) - 1) / a["seconds"]
        for kind, prompts in (("repetition", REPETITIVE), ("prose", PROSE)):
            done = network.ask(list(prompts.values())[:UNGUESSED], False)
            found[f"{kind} without"] = rate(done)
            tokens[f"{kind} without"] = [a["tokens"] for a in done["answers"]]
    for kind in ("repetition", "prose"):
        same = tokens[kind][:UNGUESSED] == tokens[f"{kind} without"]
        assert same, "guesses changed tokens"
    return found, tokens


def together(delayed: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """Many streams at once, in a network that has answered nothing like it before."""
    many = [*REPETITIVE.values(), *PROSE.values()] * 2
    with area(delayed) as places:
        network = Network(places)
        network.ask([WARM_UP], False)
        done = network.ask(many[:STREAMS], True, together=True)
    total = sum(len(a["tokens"]) for a in done["answers"])
    return {"streams": total / done["wall"]}, {"streams": [a["tokens"] for a in done["answers"]]}


def figures(repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Medians with delay and without, of networks that are new for every repetition."""
    runs: dict[bool, dict[str, list[float]]] = {True: {}, False: {}}
    for _ in range(repeats):
        for measure in (singles, together):
            tokens: list[Any] = []
            for delayed in (True, False):
                found, said = measure(delayed)
                tokens.append(said)
                for name, value in found.items():
                    runs[delayed].setdefault(name, []).append(value)
            assert tokens[0] == tokens[1], "delay changed tokens"
    slow, fast = (
        {name: statistics.median(values) for name, values in runs[delayed].items()}
        for delayed in (True, False)
    )
    return slow, fast


def llama_cpp() -> dict[str, float]:
    """Tokens per second of llama.cpp with three RPC servers under the same delay."""
    folder, models = os.environ.get("UNISONO_LLAMA_CPP"), os.environ.get("UNISONO_GGUF")
    if not folder or not models:
        return {}
    found: dict[str, float] = {}
    with area(True) as places:
        for name in NODES:
            server = [f"{folder}/ggml-rpc-server", "-H", places.address(name), "-p", "7100"]
            places.start(name, [*server, "-t", "1"], stdout=subprocess.DEVNULL)
        time.sleep(2)
        rpc = ",".join(f"{places.address(name)}:7100" for name in NODES)
        for model in models.split(","):
            split = ["--rpc", rpc, "-dev", "RPC0/RPC1/RPC2", "-ngl", "99", "-ts", "1/1/1"]
            command = [f"{folder}/llama-bench", "-m", model, *split, "-t", "1", "-p", "0"]
            done = places.run(
                "gateway",
                [*command, "-n", "16", "-r", "1", "-o", "json"],
                capture_output=True,
                text=True,
                timeout=600,
            )
            if done.returncode:
                print(f"llama.cpp failed: {done.stderr[-300:]}", file=sys.stderr)
                continue
            found[os.path.basename(model)] = float(json.loads(done.stdout)[0]["avg_ts"])
    return found


def main() -> None:
    if problem := missing():
        print(f"skipped: {problem}")
        return
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    slow, fast = figures(repeats)
    bound = 1 / LOOP
    rows: list[dict[str, object]] = []
    for name in ("repetition", "prose", *REPETITIVE, *PROSE):
        rows.append(
            {
                "work": f"{name}, tok/s",
                "measured": slow[name],
                "against": "one token per loop",
                "reference": bound,
                "ratio": slow[name] / bound,
                "target": {"repetition": 3.0, "prose": 1.5}.get(name, ""),
                "without guesses": slow.get(f"{name} without", ""),
                "without delay": fast[name],
            }
        )
    rows.append(
        {
            "work": f"{STREAMS} streams, tok/s",
            "measured": slow["streams"],
            "against": "the same without delay",
            "reference": fast["streams"],
            "ratio": slow["streams"] / fast["streams"],
            "target": 0.9,
        }
    )
    for kind in ("repetition", "prose"):
        limit = fast[f"first {kind}"] + TRAVERSAL + 0.05
        measured = slow[f"first {kind}"]
        rows.append(
            {
                "work": f"first token of {kind}, s",
                "measured": measured,
                "against": "limit: traversal + prefill + 50 ms",
                "reference": limit,
                "ratio": measured / limit,
                "target": 1.0,
            }
        )
    for model, peer in llama_cpp().items():
        rows.append(
            {
                "work": "prose, tok/s",
                "measured": slow["prose"],
                "against": f"llama.cpp, 3 RPC servers, {model}",
                "reference": peer,
                "ratio": slow["prose"] / peer,
            }
        )
    publish("wan", rows, delay_ms=DELAY_MS, jitter_ms=JITTER_MS, loss=LOSS, tokens=TOKENS)


if __name__ == "__main__":
    main()
