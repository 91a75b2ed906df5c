"""A node process that computes with one altered weight, and stands by it when it is asked.

python -m tests.compose.altered SETTINGS
"""

from __future__ import annotations

from dataclasses import replace

from unisono.models.loading import load_block
from unisono.models.store import StoredModel
from unisono.models.weights import BlockWeights
from unisono.types import LayerRange


def altered_block(model: StoredModel, layers: LayerRange) -> BlockWeights:
    """The block, but for one weight of its last layer."""
    good = load_block(model, layers)
    layer = good.layer[layers.stop - 1]
    values = layer.down.values.copy()
    values[3, 5] = -values[3, 5] if values[3, 5] else 64
    changed = replace(layer, down=replace(layer.down, values=values))
    return replace(good, layer={**good.layer, layers.stop - 1: changed})
