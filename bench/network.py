"""The local network of `unisono run` on the default model, over several numbers of nodes.

    python -m bench.network [REPEATS]

Every run starts its own processes; runs of different sizes are interleaved and medians
reported. The token ids of all runs must be equal, or the bench fails.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from bench.machine import publish

PROMPT = "The most beautiful thing about the sea is"
SIZES = (1, 2, 3, 6)


def answer(nodes: int) -> dict[str, object]:
    """The JSON that one run prints."""
    command = [sys.executable, "-m", "unisono", "run", PROMPT, "--json", "--max-tokens", "64"]
    done = subprocess.run(
        [*command, "--nodes", str(nodes)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    runs: dict[int, list[dict[str, object]]] = {n: [] for n in SIZES}
    for _ in range(repeats):
        for nodes in SIZES:
            runs[nodes].append(answer(nodes))
    first = runs[1][0]["token_ids"]
    rows: list[dict[str, object]] = []
    for nodes, answers in runs.items():
        assert all(a["token_ids"] == first and a["verdict"] == "VALID" for a in answers), nodes

        def median(key: str, answers: list[dict[str, object]] = answers) -> float:
            return statistics.median(float(str(a[key])) for a in answers)

        rows.append(
            {
                "nodes": nodes,
                "tokens per second": median("tokens_per_second"),
                "start to first token s": median("start_seconds"),
            }
        )
    base = rows[0]["tokens per second"]
    for row in rows:
        ms = 1000 / float(str(row["tokens per second"])) - 1000 / float(str(base))
        row["ms per token more than one node"] = ms
    publish("network", rows)


if __name__ == "__main__":
    main()
