"""Contiguous blocks of layers."""

from __future__ import annotations

from itertools import pairwise

from unisono.errors import ConfigurationError
from unisono.types import LayerRange


def even_blocks(layer_count: int, parts: int) -> tuple[LayerRange, ...]:
    """Cut `layer_count` layers into contiguous blocks whose sizes differ by at most one.

    The first blocks are the smaller ones: the last hop also computes the output matrix, but
    the first and the last both hold the large token matrix, and either rule is as good.

    Raises:
        ConfigurationError: fewer layers than parts.
    """
    if not 1 <= parts <= layer_count:
        raise ConfigurationError(
            f"{layer_count} layers cannot be cut into {parts} blocks: "
            f"choose between 1 and {layer_count} nodes"
        )
    edges = [layer_count * i // parts for i in range(parts + 1)]
    return tuple(LayerRange(a, b) for a, b in pairwise(edges))
