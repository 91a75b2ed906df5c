"""A network of nodes that pick and leave their blocks by themselves, in rounds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from unisono.routing.placement import ModelFacts, NodeFacts, choose_block, should_move
from unisono.routing.placement.coverage import Coverage, holder_of, holders
from unisono.routing.placement.joining import THRESHOLD_PER_MILLE, _improvement
from unisono.types import LayerRange, ModelId, NodeId, PeerAddress
from unisono.wire.records import NodeRecord

MODEL = ModelId("7b" * 32)
ROUND_MS = 5_000


def model_of(layers: int = 8, **changes: object) -> ModelFacts:
    """A model of small numbers: a layer is 10 bytes."""
    return ModelFacts(MODEL, layers, **({"layer_bytes": 10} | changes))  # type: ignore[arg-type]


def node_id(number: int) -> NodeId:
    return NodeId(hashlib.sha256(b"%d" % number).hexdigest())


def facts(number: int, memory: int, **changes: object) -> NodeFacts:
    given = {"step_us": 1000.0, "row_us": 500.0} | changes
    return NodeFacts(node_id(number), memory, **given)  # type: ignore[arg-type]


def record_of(own: NodeFacts, block: LayerRange, model: ModelFacts) -> NodeRecord:
    work = model.work(block)
    return NodeRecord(
        node=own.node,
        address=PeerAddress(own.node, "memory", ("memory:0",)),
        model=model.model if block.count else ModelId(""),
        layers=block,
        free_positions=100,
        sessions=0,
        sequence=1,
        expires=1,
        step_us=int(own.step_us * work),
        row_us=int(own.row_us * work),
        memory=own.memory,
        coordinate=own.coordinate,
    )


@dataclass
class Network:
    """Nodes see each other's blocks as they were at the end of the round before."""

    model: ModelFacts
    nodes: dict[NodeId, NodeFacts] = field(default_factory=dict)
    blocks: dict[NodeId, LayerRange] = field(default_factory=dict)
    moved: dict[NodeId, int] = field(default_factory=dict)
    now_ms: int = 1_700_000_000_000

    def records(self) -> list[NodeRecord]:
        return [record_of(n, self.blocks[k], self.model) for k, n in self.nodes.items()]

    def join(self, own: NodeFacts, block: LayerRange | None = None) -> None:
        chosen = block if block is not None else choose_block(self.records(), own, self.model)
        self.nodes[own.node], self.blocks[own.node] = own, chosen
        self.moved[own.node] = self.now_ms

    def leave(self, node: NodeId) -> None:
        del self.nodes[node], self.blocks[node], self.moved[node]

    def step(self, interval_ms: int = 30_000) -> int:
        """One round: everybody decides on the same records; returns how many moved."""
        self.now_ms += ROUND_MS
        seen = self.records()
        targets = {
            key: should_move(
                seen,
                own,
                self.blocks[key],
                self.model,
                now_ms=self.now_ms,
                moved_ms=self.moved[key],
                interval_ms=interval_ms,
            )
            for key, own in self.nodes.items()
        }
        moving = {k: t for k, t in targets.items() if t is not None}
        self.blocks.update(moving)
        self.moved.update(dict.fromkeys(moving, self.now_ms))
        return len(moving)

    def restless(self) -> bool:
        """Whether anybody would move, were it drawn for it."""
        held = holders(self.records(), self.model)
        if not Coverage(held, self.model).complete:
            return True
        return any(
            _improvement(
                {**held, key: holder_of(own, self.blocks[key])},
                key,
                self.model,
                THRESHOLD_PER_MILLE,
            )
            is not None
            for key, own in self.nodes.items()
            if not self.model.fits(own.memory, self.model.whole)
        )

    def settle(self, limit: int = 2000) -> int:
        """Rounds until nobody would move any more, or, without coverage, nobody did for a while;
        returns the moves. Fails beyond `limit` rounds."""
        still, rounds, moves = 0, 0, 0
        while still < 4 or (self.coverage.complete and self.restless()):
            moved = self.step()
            moves += moved
            still = 0 if moved else still + 1
            rounds += 1
            assert rounds < limit, f"{moves} moves in {rounds} rounds and no rest"
        return moves

    @property
    def coverage(self) -> Coverage:
        return Coverage(holders(self.records(), self.model), self.model)
