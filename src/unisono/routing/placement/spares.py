"""What nodes do that are in no chain."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from unisono.routing.placement.fleet import Fleet
from unisono.routing.placement.plans import Cut
from unisono.types import LayerRange, NodeId


def stand_by(fleet: Fleet, cuts: Sequence[Cut]) -> list[tuple[NodeId, LayerRange]]:
    """A block for each node in no chain: of the chains' blocks that fit it, the one that is most
    likely to have no holder. The nodes with the least memory choose first: they have the least
    choice.
    """
    model = fleet.model
    safety: dict[LayerRange, float] = {}
    busy: set[int] = set()
    for nodes, layers in cuts:
        start = 0
        for i, count in zip(nodes, layers, strict=True):
            block = LayerRange(start, start + count)
            # Any holder of the same block can stand in for another.
            gone = max(1e-6, 1 - fleet.nodes[i].availability)
            safety[block] = safety.get(block, 0.0) - math.log(gone)
            start += count
            busy.add(i)
    queue = [(safe, block) for block, safe in safety.items() if block != model.whole]
    heapq.heapify(queue)
    given: list[tuple[NodeId, LayerRange]] = []
    idle = [n for i, n in enumerate(fleet.nodes) if i not in busy]
    for node in sorted(idle, key=lambda n: (n.memory, n.node)):
        passed: list[tuple[float, LayerRange]] = []
        while queue:
            safe, block = heapq.heappop(queue)
            if model.fits(node.memory, block):
                given.append((node.node, block))
                gone = max(1e-6, 1 - node.availability)
                heapq.heappush(queue, (safe - math.log(gone), block))
                break
            passed.append((safe, block))
        for entry in passed:
            heapq.heappush(queue, entry)
    return given
