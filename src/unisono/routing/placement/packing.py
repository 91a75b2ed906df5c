"""Many nodes into chains: an exact dynamic program along orders of the nodes, then exchanges."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from unisono.routing.placement.cuts import cut
from unisono.routing.placement.fleet import Fleet, Floats, Ints


class Packed(NamedTuple):
    """Chains of different lengths, as node indices, with what they are worth at the price."""

    chains: list[Ints]
    values: list[float]
    flows: list[float]


def arranged(fleet: Fleet, chains: Ints) -> Ints:
    """Each of `chains` [M, k] turned along its loop so that its ends fit and its last hop, which
    computes the output matrix, is the fastest possible."""
    size = int(chains.shape[1])
    if size == 1:
        return chains
    lost = fleet.middle - fleet.end
    cost = fleet.step[chains] * fleet.model.head_work
    last, first = chains, np.roll(chains, -1, axis=1)
    room = fleet.middle[chains].sum(axis=1, keepdims=True) - lost[last] - lost[first]
    fits = (room >= fleet.model.layers) & (fleet.end[last] >= 1) & (fleet.end[first] >= 1)
    ranked: Floats = np.where(fits, cost, 1e18 - room)
    turn = ranked.argmin(axis=1)
    steps: Ints = np.arange(1, size + 1)
    at: Ints = (turn[:, None] + steps) % size
    return np.take_along_axis(chains, at, axis=1)


def along(fleet: Fleet, order: Ints, price: float, sizes: range) -> Packed:
    """The best way to take runs of `order` as chains and skip the rest: exact.

    Best value of the first i nodes = max(of the first i − 1, of the first i − k plus that of the
    run of k nodes that ends at i).
    """
    count = len(order)
    worth: dict[int, Floats] = {}
    flows: dict[int, Floats] = {}
    runs: dict[int, Ints] = {}
    for size in sizes:
        if size > count:
            break
        windows = np.lib.stride_tricks.sliding_window_view(order, size)
        runs[size] = arranged(fleet, windows)
        made = cut(fleet, runs[size], price)
        worth[size], flows[size] = made.value, made.flow
    best, taken = [0.0] * (count + 1), [0] * (count + 1)
    for stop in range(1, count + 1):
        best[stop] = best[stop - 1]
        for size, values in worth.items():
            if size <= stop:
                value = best[stop - size] + values[stop - size]
                if value > best[stop]:
                    best[stop], taken[stop] = value, size
    packed, stop = Packed([], [], []), count
    while stop:
        size = taken[stop]
        if size:
            at = stop - size
            packed.chains.append(runs[size][at])
            packed.values.append(float(worth[size][at]))
            packed.flows.append(float(flows[size][at]))
        stop -= max(1, size)
    return packed


def sizes_for(fleet: Fleet, members: Ints) -> range:
    """How many hops chains of these nodes may have."""
    room = np.sort(fleet.middle[members])[::-1]
    room = room[room > 0]
    if not len(room):
        return range(2, 2)
    fewest = int(np.searchsorted(np.cumsum(room), fleet.model.layers)) + 1
    usual = math.ceil(fleet.model.layers / max(1.0, float(np.median(room))))
    most = min(len(room), max(fewest, usual) + 3, fleet.model.most_hops)
    return range(max(2, fewest), most + 1)


def orders(fleet: Fleet, members: Ints) -> list[Ints]:
    """Orders in which neighbours make good chains: near each other, and alike in speed."""
    places = fleet.place[members]
    speed = fleet.row[members] * np.minimum(fleet.middle[members], fleet.model.layers)
    found: list[Ints] = []
    spread = float(np.linalg.norm(places - places.mean(axis=0), axis=1).max()) if len(places) else 0
    for part in (0.03, 0.12, 0.5):
        groups = _groups(places, max(1.0, part * spread))
        for key in (fleet.step[members], speed):
            found.append(members[np.lexsort((key, groups))])
    return found


def _groups(places: Floats, radius: float) -> Ints:
    """A group number per place: balls around seeds, numbered along a walk to the nearest seed."""
    group = np.full(len(places), -1, dtype=np.int64)
    at, number = 0, 0
    free = np.ones(len(places), dtype=bool)
    while free.any():
        away = np.linalg.norm(places - places[at], axis=1)
        inside = free & (away <= radius)
        group[inside] = number
        free &= ~inside
        number += 1
        away[~free] = np.inf
        at = int(away.argmin())
    return group
