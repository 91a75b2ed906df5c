"""What placement knows of a node and of a model."""

from __future__ import annotations

import math

import msgspec

from unisono.errors import ConfigurationError
from unisono.types import LayerRange, ModelId, NodeId
from unisono.wire.records import NodeRecord

Coordinate = tuple[int, int, int, int]


class NodeFacts(msgspec.Struct, frozen=True):
    """What a node can do, as far as placement asks."""

    node: NodeId
    memory: int
    """Bytes that it offers for weights, keys and values."""
    step_us: float
    """Microseconds that one layer adds to a decode step of one row, alone on the machine."""
    row_us: float
    """Microseconds per row and layer when many rows share a pass: what bounds its throughput."""
    bandwidth: int = 0
    """Bytes per second that it can send; 0: not measured, and then not counted."""
    coordinate: Coordinate = (0, 0, 0, 0)
    """Network coordinate in microseconds of round trip: x, y, z, height."""
    availability: float = 1.0
    """The share of time that it answers."""

    @classmethod
    def of(cls, record: NodeRecord, model: ModelFacts, availability: float = 1.0) -> NodeFacts:
        """What a node's record says. Its times are of its block, so they are divided by the work
        of the block in layers; times that it did not measure are 0."""
        work = model.work(record.layers) if record.model == model.model else 0.0
        return cls(
            record.node,
            record.memory,
            record.step_us / work if work else 0.0,
            record.row_us / work if work else 0.0,
            record.bandwidth,
            record.coordinate,
            availability,
        )


class ModelFacts(msgspec.Struct, frozen=True):
    """What a model asks of the nodes that hold it, and the load that it is planned for."""

    model: ModelId
    layers: int
    layer_bytes: int
    """Bytes of one layer's weights, once loaded."""
    head_bytes: int = 0
    """Bytes of the matrix that the first block needs to embed and the last one to sample."""
    kv_bytes: int = 0
    """Bytes of keys and values per position and layer."""
    positions: int = 0
    """Positions for which a node keeps room in every layer that it holds."""
    row_bytes: int = 0
    """Bytes of one row on its way from one block to the next."""
    tokens_per_second: float = 1.0
    """The target load: tokens of answers per second, over all sessions."""
    prompt_rows: float = 0.0
    """Rows of prompts that come with one token of an answer, on average."""
    most_hops: int = 24
    """Longer chains are not planned: every hop can fail. Only if there is no other way."""
    unserved_us: float = 10e6
    """What a token counts that the network has no room for, in microseconds."""

    def __post_init__(self) -> None:
        if self.layers < 1 or self.layer_bytes < 1 or self.tokens_per_second <= 0:
            raise ConfigurationError(
                f"{self.layers} layers of {self.layer_bytes} bytes under "
                f"{self.tokens_per_second} tokens per second cannot be placed: "
                "all three must be positive"
            )

    @property
    def whole(self) -> LayerRange:
        """All layers."""
        return LayerRange(0, self.layers)

    @property
    def head_work(self) -> float:
        """The output matrix as a number of layers: a decode step reads weights, so its time goes
        with bytes."""
        return self.head_bytes / self.layer_bytes

    @property
    def end_bytes(self) -> int:
        """What a block at either end takes beside its layers: the matrix, and the copy of half its
        size in which the largest logit is searched. The first block has no such copy, unless it
        is also the last; it is counted all the same, so that a block may grow to the other end."""
        return self.head_bytes * 3 // 2

    @property
    def bytes_per_layer(self) -> int:
        """Weights of a layer and the keys and values kept for it."""
        return self.layer_bytes + self.kv_bytes * self.positions

    def work(self, block: LayerRange) -> float:
        """The block's decode work as a number of layers."""
        return block.count + (self.head_work if block.stop == self.layers else 0.0)

    def bytes_of(self, block: LayerRange) -> int:
        """The memory that a block takes. The matrix of the ends is one, also where both need it."""
        ends = block.start == 0 or block.stop == self.layers
        return block.count * self.bytes_per_layer + (self.end_bytes if ends else 0)

    def fits(self, memory: int, block: LayerRange) -> bool:
        """Whether `memory` bytes hold the block."""
        return self.bytes_of(block) <= memory

    def furthest(self, memory: int, start: int) -> int:
        """The largest `stop` for which `memory` bytes hold `start:stop`; `start` if none does."""
        free = max(0, memory - (self.end_bytes if start == 0 else 0))
        stop = start + free // self.bytes_per_layer
        if stop >= self.layers:
            to_end = LayerRange(start, self.layers)
            stop = self.layers if self.fits(memory, to_end) else self.layers - 1
        return max(start, stop)


def one_way(a: Coordinate, b: Coordinate) -> int:
    """Microseconds from one coordinate to the other: half of the estimated round trip, which is
    the distance of the points plus both heights (Dabek et al., Vivaldi, SIGCOMM 2004)."""
    square = sum((p - q) ** 2 for p, q in zip(a[:3], b[:3], strict=True))
    return (math.isqrt(square) + a[3] + b[3]) // 2
