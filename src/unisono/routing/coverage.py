"""Whether nodes form a chain."""

from __future__ import annotations

from collections.abc import Iterable

from unisono.types import ModelId
from unisono.wire.records import NodeRecord


def first_gap(records: Iterable[NodeRecord], model: ModelId, layer_count: int) -> int | None:
    """The layer at which no chain of whole blocks from layer 0 goes on; None: one is complete.

    That every layer is held by somebody is not enough: blocks that overlap make no chain.
    """
    starts: dict[int, set[int]] = {}
    for record in records:
        if record.model == model and not record.leaving and record.layers.count:
            starts.setdefault(record.layers.start, set()).add(record.layers.stop)
    reached, ahead = {0}, [0]
    while ahead:
        for stop in starts.get(ahead.pop(), ()):
            if stop not in reached and stop <= layer_count:
                reached.add(stop)
                ahead.append(stop)
    return None if layer_count in reached else max(reached)
