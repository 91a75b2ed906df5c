"""How fast placements are planned and repaired, and how good they are.

    python -m bench.placement [--quick]

The network is that of `placement_world`. Ratios are of the expected time per token at the target
load, the plan's over the proven bound, and of the other rules over the plan's. Other rules are
rated with routing that may mix nodes freely (`placement_rules.routed`), the plan with its
own chains only.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Sequence

from bench.machine import publish
from bench.packing_bound import packing_bound
from bench.placement_rules import even_parts, even_split, petals, routed
from bench.placement_world import large_model, world
from unisono.routing.placement import choose_block
from unisono.routing.placement.bound import lower_bound
from unisono.routing.placement.facts import ModelFacts, NodeFacts
from unisono.routing.placement.fleet import Fleet
from unisono.routing.placement.planner import plan
from unisono.routing.placement.plans import Plan, check_plan, cuts_of
from unisono.routing.placement.repairs import moved, repair
from unisono.types import LayerRange, PeerAddress
from unisono.wire.records import NodeRecord

EVENTS = 20
CASES = (
    # nodes, tokens per second, GiB of the smallest and the largest, what it shows
    (10, 60.0, 6, 24, "chains"),
    (30, 200.0, 6, 24, "chains"),
    (100, 700.0, 6, 24, "chains"),
    (300, 2000.0, 6, 24, "chains"),
    (1000, 1000.0, 6, 24, "chains, low load"),
    (1000, 7000.0, 6, 24, "chains"),
    (1000, 7000.0, 24, 32, "short chains"),
    (1000, 7000.0, 6, 80, "some hold all"),
)

FEW_HOPS = (
    # nodes, tokens per second, GiB of the smallest and the largest, hops
    (60, 500.0, 12, 24, 3),
    (200, 1500.0, 12, 24, 3),
    (300, 2000.0, 24, 32, 2),
    (1000, 7000.0, 24, 32, 2),
)

Row = dict[str, object]


def compared(count: int, load: float, smallest: int, largest: int, what: str, rounds: int) -> Row:
    """One line of the table."""
    nodes = world(count + EVENTS, 1, smallest=smallest, largest=largest)
    nodes, later = nodes[:count], nodes[count:]
    model = large_model(load)
    fleet = Fleet(nodes, model)
    wall, busy = time.perf_counter(), time.process_time()
    made = plan(nodes, model)
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    print(count, what, file=sys.stderr, flush=True)
    bound = lower_bound(fleet, cuts_of(fleet, made.chains), rounds).token_us
    greedy = routed(fleet, petals(fleet))
    even = min(routed(fleet, even_split(fleet, parts)) for parts in even_parts(fleet))
    return {
        "nodes": count,
        "case": what,
        "load tok/s": load,
        "chains": len(made.chains),
        "standby": len(made.standby),
        "plan s": wall,
        "plan cpu s": busy,
        "ms/token": made.token_us / 1e3,
        "÷ bound": made.token_us / bound,
        "Petals ÷": greedy / made.token_us,
        "even ÷": even / made.token_us,
        **_repaired(made, nodes, later, model),
    }


def proven(count: int, load: float, smallest: int, largest: int, hops: int) -> Row:
    """A plan with chains of at most `hops` against the bound over all such chains."""
    nodes = world(count, 1, smallest=smallest, largest=largest)
    model = large_model(load, most_hops=hops)
    made = plan(nodes, model)
    bound = packing_bound(Fleet(nodes, model), made.price_us, hops)
    return {
        "nodes": count,
        "hops at most": hops,
        "load tok/s": load,
        "chains": len(made.chains),
        "ms/token": made.token_us / 1e3,
        "÷ bound of chains": made.token_us / bound,
    }


def by_themselves(count: int, load: float) -> Row:
    """Nodes that join one by one and choose their own block, against a plan."""
    nodes = world(count, 1)
    model = large_model(load)
    records: list[NodeRecord] = []
    busy = time.process_time()
    for node in nodes:
        block = choose_block(records, node, model)
        records.append(_record(node, block, model))
    busy = time.process_time() - busy
    fleet = Fleet(nodes, model)
    held = {i: r.layers for i, r in enumerate(records)}
    return {
        "nodes": count,
        "load tok/s": load,
        "cpu ms per choice": 1e3 * busy / count,
        "÷ plan": routed(fleet, held) / plan(nodes, model).token_us,
    }


def _record(node: NodeFacts, block: LayerRange, model: ModelFacts) -> NodeRecord:
    work = model.work(block)
    return NodeRecord(
        node=node.node,
        address=PeerAddress(node.node, "memory", ("memory:0",)),
        model=model.model,
        layers=block,
        free_positions=model.positions,
        sessions=0,
        sequence=1,
        expires=1,
        step_us=int(node.step_us * work),
        row_us=int(node.row_us * work),
        memory=node.memory,
        coordinate=node.coordinate,
    )


def _repaired(
    made: Plan, nodes: Sequence[NodeFacts], later: Sequence[NodeFacts], model: ModelFacts
) -> Row:
    """Leaves and joins in turn: how long a repair takes, what moves, what is lost."""
    draw = random.Random(1)
    there = list(nodes)
    times: list[float] = []
    busy: list[float] = []
    moves = 0
    for event, new in enumerate(later):
        if event % 2:
            there.append(new)
        else:
            chain = draw.choice(made.chains)
            gone = draw.choice(chain.nodes)
            there = [n for n in there if n.node != gone]
        wall, cpu = time.perf_counter(), time.process_time()
        after = repair(made, there, model)
        times.append(1e3 * (time.perf_counter() - wall))
        busy.append(1e3 * (time.process_time() - cpu))
        moves += len(moved(made, after))
        broken = check_plan(after, ((n.node, n.memory) for n in there), model)
        assert broken is None, broken
        made = after
    return {
        "repair ms": statistics.median(times),
        "repair cpu ms": statistics.median(busy),
        "most": max(busy),
        "moves": moves / len(later),
        "after ÷ replanned": made.token_us / plan(there, model).token_us,
    }


def main() -> None:
    quick = "--quick" in sys.argv
    plan(world(60, 2), large_model(100.0))  # loads what is loaded on first use
    cases = [c for c in CASES if not quick or c[0] <= 100]
    rows = [compared(*case, rounds=40 if quick else 80) for case in cases]
    few = [proven(*case) for case in FEW_HOPS if not quick or case[0] <= 60]
    publish("placement-quick" if quick else "placement", rows)
    publish("placement-chains-quick" if quick else "placement-chains", few)
    alone = [by_themselves(*case) for case in ((100, 700.0), (300, 2000.0))]
    publish("placement-joining-quick" if quick else "placement-joining", alone)


if __name__ == "__main__":
    main()
