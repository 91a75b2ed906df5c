"""The facts of many nodes as arrays: what the planner computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisono.routing.placement.facts import ModelFacts, NodeFacts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Fleet:
    """N nodes under one model. Times are in microseconds, rates in tokens per microsecond."""

    def __init__(self, nodes: Sequence[NodeFacts], model: ModelFacts) -> None:
        self.nodes = tuple(nodes)
        self.model = model
        per_layer, head = model.bytes_per_layer, model.end_bytes
        memory = np.array([n.memory for n in nodes], dtype=np.int64)
        at_end = np.clip((memory - head) // per_layer, 0, model.layers)
        self.middle: Ints = np.clip(memory // per_layer, 0, model.layers)
        """Layers that fit between two other blocks."""
        self.end: Ints = np.minimum(at_end, model.layers - 1)
        """Layers that fit together with the matrix of the ends, as a first or a last block."""
        self.whole: NDArray[np.bool_] = at_end >= model.layers
        self.step: Floats = _measured([n.step_us for n in nodes])
        """Time per layer of a row alone."""
        self.row: Floats = _measured([n.row_us for n in nodes]) * (1 + model.prompt_rows)
        """Busy time per layer and token, the prompt's share included."""
        places = np.array([n.coordinate for n in nodes], dtype=np.float64).reshape(-1, 4)
        self.place: Floats = places[:, :3] / 2
        """Distances between these are one-way times."""
        sending = np.array(
            [1e6 * model.row_bytes / n.bandwidth if n.bandwidth else 0.0 for n in nodes]
        )
        self.toll: Floats = places[:, 3] + sending
        """What a hop over this node adds to a loop, wherever its neighbours are: its height on
        the way in and on the way out, and the time to send a row."""

    def __len__(self) -> int:
        return len(self.nodes)

    def loop(self, chains: Ints) -> Floats:
        """One-way times around each loop of `chains` [M, k], from the last hop to the first too
        [M]. A lone hop has none."""
        if chains.shape[1] == 1:
            return np.zeros(len(chains))
        places = self.place[chains]
        hops: Any = places - np.roll(places, 1, axis=1)
        away: Floats = np.sqrt(np.einsum("mkd,mkd->mk", hops, hops)).sum(axis=1)
        return away + self.toll[chains].sum(axis=1)


def _measured(times: list[float]) -> Floats:
    """Times that were not measured (0) count as the median of those that were, 1 ms if none."""
    given = np.array(times, dtype=np.float64)
    known = given[given > 0]
    return np.where(given > 0, given, np.median(known) if len(known) else 1000.0)
