"""What a machine offers, and what a model asks of it."""

from __future__ import annotations

import math
from pathlib import Path

from unisono.models.cache import PAGE, layer_groups, page_bytes
from unisono.models.manifest import TensorEntry, part_of
from unisono.models.store import StoredModel
from unisono.numerics.tensors import GROUP
from unisono.routing.placement import ModelFacts
from unisono.types import LayerRange

FREE_SHARE = 0.7
"""Of the memory that is free, how much a node offers unless it is told."""
PLANNED_POSITIONS = 8192
"""Positions of keys and values for which placement keeps room, if the context is that long."""
_UNKNOWN_MEMORY = 4 << 30


def free_memory() -> int:
    """Bytes that new programs can use on this machine; 4 GiB where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return _UNKNOWN_MEMORY
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return _UNKNOWN_MEMORY


def offered_memory(asked: int | None) -> int:
    """Bytes for weights, keys and values: as asked, else a share of what is free."""
    return int(free_memory() * FREE_SHARE) if asked is None else asked


def model_facts(model: StoredModel) -> ModelFacts:
    """What placement asks about a model, from its manifest."""
    config = model.manifest.config
    count = model.layer_count
    sizes = {"embedding": 0, "head": 0}
    layers = [0] * count
    for name, entry in model.manifest.tensors.items():
        part = part_of(name)
        if part in sizes:
            sizes[part] += _stored_bytes(entry)
        else:
            layers[int(part.split(".")[1])] += _stored_bytes(entry)
    groups = layer_groups(config, LayerRange(0, count))
    kv = sum(page_bytes(config, g) for g in groups) / PAGE / count
    return ModelFacts(
        model=model.id,
        layers=count,
        layer_bytes=max(layers),
        head_bytes=max(sizes.values()),
        kv_bytes=math.ceil(kv),
        positions=min(PLANNED_POSITIONS, config.context_length),
        row_bytes=4 * config.hidden_size,
    )


def _stored_bytes(entry: TensorEntry) -> int:
    elements = math.prod(entry.shape)
    if entry.kind == "matrix":  # int8 values, and a uint16 multiplier per group
        return elements + 2 * elements // GROUP
    return 8 * elements
