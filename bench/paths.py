"""Ways to choose a path, side by side on simulated nodes: latency and throughput.

    python -m bench.paths

`four, one slow`: four replicas, one of them four times slower. `fifty`: nodes of eightfold
different speed on three continents that hold halves and quarters of a model, three gateways; what
one more session adds to a pass differs tenfold too, and nobody is told.
Offered load: requests come at random. Crowded: more clients than the nodes can please, each
asking again when it is answered. `choosing`: the time of one choice among 300 nodes.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

from bench.choices import by_best_path, by_chance, by_fewest_sessions, by_round_robin
from bench.fleet import Chooser, Fleet, Machine
from bench.machine import publish
from bench.traffic import Traffic, crowded, offered
from unisono.clock import SystemClock
from unisono.routing.experience import Experience
from unisono.routing.paths import best_path
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.records import NodeRecord

CHOOSERS: dict[str, Chooser] = {
    "best path": by_best_path,
    "fewest hops, sessions": by_fewest_sessions,
    "round robin": by_round_robin,
    "random": by_chance,
}
CONTINENTS = ((1, 0, 0, 1000), (85_000, 0, 0, 1000), (40_000, 120_000, 0, 1000))


def four(slow: float = 4.0) -> list[Machine]:
    """Four replicas of a model on one network, the last of them slow."""
    return [Machine(LayerRange(0, 26), 0.012 * f, 0.0003 * f) for f in (1, 1, 1, slow)]


def fifty(seed: int = 0) -> list[Machine]:
    """Fifty nodes on three continents that hold halves and quarters of 32 layers."""
    rng = random.Random(seed)
    machines: list[Machine] = []
    for i in range(50):
        size = 16 if i % 5 == 0 else 8
        start = size * (i // 5 % 2) if size == 16 else 8 * (i % 4)
        layer = 0.0012 * 8 ** rng.uniform(-0.5, 0.5)
        x, y, z, height = CONTINENTS[rng.randrange(3)]
        machines.append(
            Machine(
                LayerRange(start, start + size),
                layer * size,
                layer * size / 40,
                (
                    x + rng.randrange(10_000),
                    y + rng.randrange(10_000),
                    z + rng.randrange(10_000),
                    height + rng.randrange(3000),
                ),
                share=0.1 * 10 ** rng.uniform(-0.5, 0.5),
            )
        )
    return machines


LOADS: dict[str, Callable[[Fleet, Traffic, float], float]] = {
    "four, one slow; offered": lambda f, t, scale: offered(f, t, 6.0, round(1200 * scale)),
    "four, one slow; crowded": lambda f, t, scale: crowded(f, t, 48, 120 * scale),
    "fifty; offered": lambda f, t, scale: offered(f, t, 8.0, round(1200 * scale)),
    "fifty; crowded": lambda f, t, scale: crowded(f, t, 300, 120 * scale),
}


def figures(name: str, choose: Chooser, *, scale: float = 1.0, seed: int = 0) -> dict[str, float]:
    """One of `LOADS` with one way to choose; `scale` shortens it. Latencies are of all answers, in
    seconds."""
    if name.startswith("four"):
        fleet = Fleet(four(), choose, layer_count=26, seed=seed)
    else:
        fleet = Fleet(fifty(seed), choose, layer_count=32, gateways=CONTINENTS, seed=seed)
    rate = LOADS[name](fleet, Traffic(random.Random(seed + 1)), scale)
    ended = [o for o in fleet.outcomes if not o.failed]
    answers = sorted(o.ended - o.asked for o in ended)
    firsts = sorted(o.first - o.asked for o in ended)
    return {
        "answers": len(ended),
        "failed": len(fleet.outcomes) - len(ended),
        "tokens per second": rate,
        "p50 s": statistics.median(answers),
        "p95 s": answers[int(0.95 * len(answers))],
        "first token p50 s": statistics.median(firsts),
        "first token p95 s": firsts[int(0.95 * len(firsts))],
    }


def choosing(nodes: int = 300, layer_count: int = 80, repeat: int = 60) -> dict[str, float]:
    """Processor milliseconds of one choice among nodes in blocks of a quarter, an eighth, and a
    sixteenth, their records all new each time."""
    rng, model = random.Random(0), ModelId("5a" * 32)
    experience = Experience(SystemClock())
    taken: list[float] = []
    for _ in range(repeat):
        records: list[NodeRecord] = []
        for i in range(nodes):
            size = layer_count // rng.choice((4, 8, 16))
            start = size * rng.randrange(layer_count // size)
            node = NodeId(f"{i:064x}")
            records.append(
                NodeRecord(
                    node=node,
                    address=PeerAddress(node, "memory", ("memory:0",)),
                    model=model,
                    layers=LayerRange(start, start + size),
                    free_positions=10_000,
                    sessions=rng.randrange(8),
                    sequence=1,
                    expires=1,
                    step_us=size * rng.randrange(300, 3000),
                    row_us=size * rng.randrange(10, 100),
                    coordinate=(*(rng.randrange(1, 80_000) for _ in range(3)), 2000),
                )
            )
            experience.links.pinged(node, rng.uniform(0.02, 0.2))
        costs = experience.costs((1,) * 500, 200, keys=())
        start_time = time.thread_time()
        best_path(records, model, layer_count, 700, costs)
        taken.append(1000 * (time.thread_time() - start_time))
    taken.sort()
    return {"median ms": statistics.median(taken), "p95 ms": taken[int(0.95 * len(taken))]}


def main() -> None:
    rows: list[dict[str, object]] = []
    for name in LOADS:
        for label, choose in CHOOSERS.items():
            rows.append({"scenario": name, "choice": label, **figures(name, choose)})
    choice = choosing()
    publish("paths", rows, choosing_among_300=choice)
    print(", ".join(f"{k} {v:.2f}" for k, v in choice.items()), "for a choice among 300 nodes")


if __name__ == "__main__":
    main()
