"""Dishonest nodes for demonstrations: one that computes with a wrong weight, and one that computes
a number of any step wrong and stands by it."""

from __future__ import annotations

from dataclasses import replace

from unisono.compose.node import Node
from unisono.compose.node_settings import NodeSettings
from unisono.models.decoder import Decoder
from unisono.models.loading import load_block
from unisono.models.store import StoredModel
from unisono.models.weights import BlockWeights
from unisono.types import LayerRange
from unisono.verification.adversaries.lying import LyingDecoder

WEIGHTS = "weights"
"""The conduct of the first; of the second it is the kind of the step."""
LYING = "unisono.verification.adversaries.lying:lying"


def crooked_node(settings: NodeSettings, conduct: str) -> Node:
    """A node of this conduct."""
    if conduct == WEIGHTS:
        return Node(settings, weights=crooked_block)

    def wrap(decoder: Decoder, model: StoredModel, weights: BlockWeights) -> Decoder:
        return LyingDecoder(decoder, model.manifest, weights, conduct)

    return Node(settings, holdings=f"{LYING}:{conduct}", wrap=wrap)


def crooked_block(model: StoredModel, layers: LayerRange) -> BlockWeights:
    """The block, but for one row of its last layer's last matrix."""
    good = load_block(model, layers)
    last = layers.stop - 1
    layer = good.layer[last]
    values = layer.down.values.copy()
    values[3] = 64
    changed = replace(layer, down=replace(layer.down, values=values))
    return replace(good, layer={**good.layer, last: changed})
