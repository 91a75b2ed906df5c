"""The live map of a network: nodes, links, and how each model is covered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from operator import attrgetter

import msgspec

from unisono.gateway.audits import ConvictedNode
from unisono.gateway.served import ServedModel
from unisono.gateway.watch import Watch
from unisono.routing.coordinates import ORIGIN, estimated_rtt
from unisono.routing.health import WHOLE
from unisono.routing.network import NodeStatus
from unisono.types import LayerRange, ModelId, NodeId

MAX_LINKS = 256
"""Links between nodes in one map; a network of thousands has millions."""


class ModelMap(msgspec.Struct, frozen=True):
    """How one served model is covered."""

    name: str
    id: ModelId
    layers: int
    availability: float
    """0 to 1; `routing.health` defines it."""
    alive: int
    known: int
    holders: tuple[int, ...]
    """Per layer, how many live nodes hold it."""
    room: tuple[int, ...]
    """Per layer, the most free positions that a live holder has."""
    missing: tuple[LayerRange, ...]
    trouble: str | None
    """A value of `watch.Trouble`, or null."""


class Link(msgspec.Struct, frozen=True):
    """One way between two ends that answers may take."""

    source: NodeId | None
    """Null is the gateway."""
    target: NodeId
    rtt_us: int
    """Round trip in microseconds; 0 if unknown."""
    bandwidth: int
    """Bytes per second that the source can send; 0 if unknown."""
    estimated: bool
    """From coordinates; else as the gateway measured it or knows best."""


class NetworkMap(msgspec.Struct, frozen=True, kw_only=True):
    """What `GET /v1/network` returns."""

    object: str = "list"
    data: tuple[NodeStatus, ...]
    """Every node that is known now."""
    departed: tuple[NodeStatus, ...]
    """Nodes that went away without leaving, as they last were; they count against availability
    until `routing.health.WINDOW_SECONDS` have passed."""
    models: list[ModelMap]
    links: list[Link]
    convicted: tuple[ConvictedNode, ...] = ()
    """Nodes that are proven to have signed something false, whether they are here or not."""


def network_map(
    watch: Watch, models: Iterable[ServedModel], convicted: tuple[ConvictedNode, ...] = ()
) -> NetworkMap:
    """The map as it is now."""
    nodes = watch.nodes()
    return NetworkMap(
        data=nodes,
        departed=watch.departed(),
        models=[_model(model, watch) for model in models],
        convicted=convicted,
        links=[*_from_gateway(nodes), *islice(_between(nodes), MAX_LINKS)],
    )


def _model(model: ServedModel, watch: Watch) -> ModelMap:
    condition = watch.condition(model)
    health = condition.health
    return ModelMap(
        name=model.name,
        id=model.id,
        layers=model.layer_count,
        availability=health.availability / WHOLE,
        alive=health.alive,
        known=health.known,
        holders=health.holders,
        room=health.room,
        missing=health.missing,
        trouble=None if condition.trouble is None else condition.trouble.value,
    )


def _from_gateway(nodes: Sequence[NodeStatus]) -> Iterable[Link]:
    for node in nodes:
        if node.alive and node.rtt_us:
            yield Link(None, node.node, node.rtt_us, 0, estimated=False)


def _between(nodes: Sequence[NodeStatus]) -> Iterable[Link]:
    """Links from each block to the blocks that continue it, between nodes with coordinates."""
    starting: dict[tuple[ModelId, int], list[NodeStatus]] = defaultdict(list)
    placed = [n for n in nodes if n.alive and n.layers.count and n.coordinate != ORIGIN]
    for node in placed:
        starting[node.model, node.layers.start].append(node)
    for node in sorted(placed, key=attrgetter("layers", "node")):
        for following in starting[node.model, node.layers.stop]:
            rtt = estimated_rtt(node.coordinate, following.coordinate)
            yield Link(node.node, following.node, rtt, node.bandwidth, estimated=True)
