"""The cheapest chain among offered blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """What one node offers: layers `start:stop`, at prices of the whole model."""

    start: int
    stop: int
    per_input: int
    """Millionths of the unit per million tokens; the node is paid its share of the layers."""
    per_output: int


def cheapest(
    blocks: Iterable[Block], layer_count: int, prompt: int, tokens: int
) -> tuple[float, float] | None:
    """Prices per million tokens read and written, in millionths of the unit, of the chain that
    costs least for so many tokens; None if no blocks tile the layers."""
    best: dict[int, tuple[float, float, float]] = {0: (0.0, 0.0, 0.0)}
    for block in sorted(blocks, key=lambda b: (b.start, b.stop)):
        if block.start not in best or not block.start < block.stop <= layer_count:
            continue
        share = (block.stop - block.start) / layer_count
        _, reads, writes = best[block.start]
        reads, writes = reads + share * block.per_input, writes + share * block.per_output
        offer = prompt * reads + tokens * writes, reads, writes
        best[block.stop] = min(offer, best.get(block.stop, offer))
    if layer_count not in best or layer_count == 0:
        return None
    return best[layer_count][1:]
