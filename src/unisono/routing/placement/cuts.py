"""Where to cut a model over the nodes of a chain, and how much load to give the chain.

A block of work w (its layers, and the output matrix counted in layers) takes a·w alone, and keeps
its node busy for b·w per token, so that at x tokens per time a token takes a·w / (1 − b·w·x). This
holds for a queue of single rows and for passes that batch them: if n rows take a·w + (n − 1)·b·w
and n = x · time, then time = (a − b)·w / (1 − b·w·x). With loop times Λ, a chain costs
`x · (Λ + Σ a·w / (1 − b·w·x))` per time, and is worth `price · x` minus that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from unisono.routing.placement.fleet import Fleet, Floats, Ints

_HALVINGS = 26
_ROUGH = 14
"""Enough while cuts and flow are still being improved."""


class Cuts(NamedTuple):
    """M chains of k nodes, cut."""

    layers: Ints
    """[M, k]; a row of zeros where memory does not suffice."""
    flow: Floats
    """[M] tokens per microsecond at the price."""
    value: Floats
    """[M] what the chain saves per microsecond at the price; 0 if it is not worth using."""


def work_of(fleet: Fleet, layers: Ints) -> Floats:
    """Work in layers of the blocks `layers` [M, k], the output matrix with the last."""
    work = layers.astype(np.float64)
    work[:, -1] += fleet.model.head_work
    return work


def cut(fleet: Fleet, chains: Ints, price: float) -> Cuts:
    """The best cuts of `chains` [M, k] (node indices, first hop first) at a price per token.

    For a given flow, cutting is a separable convex resource allocation: the marginal times of
    all nodes are equal where memory allows (found by bisection, then rounded by least marginal
    time). Flow and cuts are improved in turn.
    """
    count, size = chains.shape
    total = fleet.model.layers
    room = fleet.middle[chains]
    if size == 1:
        room = np.where(fleet.whole[chains], total, 0)
    else:
        room[:, 0], room[:, -1] = fleet.end[chains[:, 0]], fleet.end[chains[:, -1]]
    good = (room.min(axis=1) >= 1) & (room.sum(axis=1) >= total) & (size <= total)
    layers: Ints = np.zeros((count, size), dtype=np.int64)
    flow, value = np.zeros(count), np.zeros(count)
    kept = np.flatnonzero(good)
    if not len(kept):
        return Cuts(layers, flow, value)
    chains, room = chains[kept], room[kept]
    step, row, loop = fleet.step[chains], fleet.row[chains], fleet.loop(chains)
    extra = np.zeros(size)
    extra[-1] = fleet.model.head_work
    if size == 1:
        best = room
    else:
        most = _most_flow(row, room, extra, total)
        best = _shares(step, row, room, extra, total, 0.5 * most)
        at = most
        for _ in range(2):
            work = best + extra
            at = flow_at(step, row * work, work, loop, price, _ROUGH)
            at = np.clip(at, 0.02 * most, 0.98 * most)
            best = _shares(step, row, room, extra, total, at)
        best = _rounded(best, step, row, room, extra, total, at)
    work = best + extra
    at = flow_at(step, row * work, work, loop, price)
    busy = row * work * at[:, None]
    layers[kept], flow[kept] = best, at
    value[kept] = at * (price - loop - (step * work / (1 - busy)).sum(axis=1))
    return Cuts(layers, flow, value)


def flow_at(
    step: Floats,
    busy: Floats,
    work: Floats,
    loop: Floats,
    price: float,
    halvings: int = _HALVINGS,
) -> Floats:
    """The flow [M] at which one more token costs `price`: 0 if the first one costs more.

    `busy` [M, k] is the busy time of each hop per token.
    """
    alone = step * work
    low: Floats = np.zeros(len(loop))
    high: Floats = 1 / busy.max(axis=1)
    for _ in range(halvings):
        middle: Floats = (low + high) / 2
        dear: Any = loop + (alone / (1 - busy * middle[:, None]) ** 2).sum(axis=1) > price
        low, high = np.where(dear, low, middle), np.where(dear, middle, high)
    return low


def _most_flow(row: Floats, room: Ints, extra: Floats, total: int) -> Floats:
    """The flow [M] at which some node is busy all the time, however the model is cut."""
    low: Floats = np.zeros(len(row))
    high: Floats = (row * (room + extra)).max(axis=1)
    for _ in range(_ROUGH):
        middle: Floats = (low + high) / 2
        share: Floats = np.clip(middle[:, None] / row - extra, 0, room)
        enough: Any = (share.sum(axis=1) >= total) & (share.min(axis=1) >= 1)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return 1 / high


def _shares(
    step: Floats, row: Floats, room: Ints, extra: Floats, total: int, flow: Floats
) -> Floats:
    """Layers per node [M, k], not whole numbers, that take the least time at `flow`."""
    root = np.sqrt(step)
    scale = 1 / (row * flow[:, None])
    low: Floats = np.zeros(len(flow))
    high: Floats = 1 / root.min(axis=1)
    for _ in range(_ROUGH):
        middle: Floats = (low + high) / 2
        share: Floats = np.clip((1 - root * middle[:, None]) * scale - extra, 1, room)
        enough: Any = share.sum(axis=1) >= total
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    more: Floats = np.clip((1 - root * low[:, None]) * scale - extra, 1, room)
    less: Floats = np.clip((1 - root * high[:, None]) * scale - extra, 1, room)
    # The two differ where the sum jumps: between them every mixture costs the same.
    above: Floats = more.sum(axis=1) - total
    both: Floats = above + total - less.sum(axis=1)
    part: Floats = np.clip(above / np.where(both > 1e-9, both, np.inf), 0, 1)[:, None]
    return more + (less - more) * part


def _rounded(
    share: Floats, step: Floats, row: Floats, room: Ints, extra: Floats, total: int, flow: Floats
) -> Ints:
    """Whole layers: the floors, and the rest one by one where it takes the least time."""
    layers = np.maximum(1, np.floor(share + 1e-6)).astype(np.int64)
    lines = np.arange(len(share))
    at = flow[:, None]

    def time(layers: Floats | Ints) -> Floats:
        work = layers + extra
        free = 1 - row * work * at
        return np.where(free > 1e-3, step * work / np.maximum(free, 1e-3), 1e12 * (1 + work * row))

    for _ in range(share.shape[1] + 1):
        missing = total - layers.sum(axis=1)
        if not missing.any():
            break
        now = time(layers)
        up = np.where(layers < room, time(layers + 1) - now, np.inf)
        down = np.where(layers > 1, now - time(layers - 1), -np.inf)
        grow, shrink = missing > 0, missing < 0
        layers[lines[grow], up.argmin(axis=1)[grow]] += 1
        layers[lines[shrink], down.argmax(axis=1)[shrink]] -= 1
    return layers
