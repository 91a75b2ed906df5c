"""Nodes as they might be found: in cities of five continents, with machines of many sizes."""

from __future__ import annotations

import hashlib
import random

from unisono.routing.placement.facts import ModelFacts, NodeFacts
from unisono.types import ModelId, NodeId

GIB = 1 << 30
SIZES = (6, 8, 10, 12, 16, 24, 32, 48, 80)
_CONTINENTS = ((0, 0), (80_000, 20_000), (-60_000, 90_000), (150_000, 60_000), (40_000, -120_000))
_CITIES = 8


def world(count: int, seed: int, *, smallest: int = 6, largest: int = 24) -> list[NodeFacts]:
    """`count` nodes that offer between `smallest` and `largest` GiB. Larger ones tend to be
    faster; a row in a batch takes between a thirtieth and an eighth of a row alone."""
    draw = random.Random(seed)
    cities = [
        (draw.gauss(x, 12_000), draw.gauss(y, 12_000), draw.gauss(0, 6_000))
        for x, y in _CONTINENTS
        for _ in range(_CITIES)
    ]
    sizes = [m for m in SIZES if smallest <= m <= largest]
    nodes: list[NodeFacts] = []
    for i in range(count):
        city = draw.choice(cities)
        memory = draw.choice(sizes)
        step = 1500.0 * draw.lognormvariate(0, 0.5) * (12 / memory) ** 0.5
        x, y, z = (int(draw.gauss(at, 1500)) for at in city)
        nodes.append(
            NodeFacts(
                NodeId(hashlib.sha256(b"%d/%d" % (seed, i)).hexdigest()),
                memory * GIB,
                step,
                step * draw.uniform(0.03, 0.12),
                coordinate=(x, y, z, int(draw.uniform(500, 6000))),
                availability=draw.uniform(0.9, 0.999),
            )
        )
    return nodes


def large_model(load: float, **changes: float) -> ModelFacts:
    """64 layers of half a GiB, 16,384 positions in each, under `load` tokens per second."""
    given = {
        "layer_bytes": GIB // 2,
        "head_bytes": GIB // 2,
        "kv_bytes": 4096,
        "positions": 16384,
        "row_bytes": 20480,
        "prompt_rows": 3.0,
    }
    return ModelFacts(
        ModelId("7b" * 32),
        64,
        tokens_per_second=load,
        **(given | changes),  # type: ignore[arg-type]
    )
