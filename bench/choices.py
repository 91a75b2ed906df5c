"""Ways to choose a path that are compared with the gateway's."""

from __future__ import annotations

from collections.abc import Callable

from bench.fleet import MODEL, Gateway, Request
from unisono.errors import NetworkError
from unisono.routing.paths import Path, best_path
from unisono.routing.prefixes import prefix_keys
from unisono.types import NodeId
from unisono.wire.records import NodeRecord


def by_best_path(gateway: Gateway, request: Request, avoid: frozenset[NodeId], retry: bool) -> Path:
    """What a gateway does."""
    keys = prefix_keys(request.prompt)
    costs = gateway.experience.costs(request.prompt, request.tokens, keys=keys, retry=retry)
    positions = len(request.prompt) + request.tokens
    records = gateway.records.values()
    return best_path(records, MODEL, gateway.fleet.layer_count, positions, costs, avoid)


def _by_turns(
    gateway: Gateway,
    request: Request,
    avoid: frozenset[NodeId],
    pick: Callable[[int, list[NodeRecord]], NodeRecord],
) -> Path:
    positions = len(request.prompt) + request.tokens
    path: list[NodeRecord] = []
    layer = 0
    while layer < gateway.fleet.layer_count:
        able = [
            r
            for r in gateway.records.values()
            if r.layers.start == layer and r.node not in avoid and r.free_positions >= positions
        ]
        if not able:
            raise NetworkError(f"nobody has room for layer {layer}")
        path.append(pick(layer, sorted(able, key=lambda r: r.node)))
        layer = path[-1].layers.stop
    return tuple(path)


def by_round_robin(
    gateway: Gateway, request: Request, avoid: frozenset[NodeId], retry: bool
) -> Path:
    """Every holder of the next layers in turn."""

    def pick(layer: int, able: list[NodeRecord]) -> NodeRecord:
        turn = gateway.turns[layer] = gateway.turns.get(layer, gateway.rng.randrange(100)) + 1
        return able[turn % len(able)]

    return _by_turns(gateway, request, avoid, pick)


def by_chance(gateway: Gateway, request: Request, avoid: frozenset[NodeId], retry: bool) -> Path:
    """Any holder of the next layers."""
    return _by_turns(gateway, request, avoid, lambda _, able: gateway.rng.choice(able))


def by_fewest_sessions(
    gateway: Gateway, request: Request, avoid: frozenset[NodeId], retry: bool
) -> Path:
    """The holder of the next layers with the longest block, and then the fewest sessions."""
    load = gateway.experience.load
    return _by_turns(
        gateway,
        request,
        avoid,
        lambda _, able: min(able, key=lambda r: (-r.layers.count, load.sessions(r))),
    )
