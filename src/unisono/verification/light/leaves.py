"""What the tree over a trace holds: one leaf for each layer and position.

Both sides of an audit hash it: the node that has regenerated the trace, and the client that is
shown parts of it and holds no weights.
"""

from __future__ import annotations

from typing import Any, cast

from numpy.typing import NDArray
from torch import Tensor

from unisono.merkle import leaf_hash
from unisono.types import digest
from unisono.verification.light.steps import KeysValues

TRACE = "light-trace/2"
"""Domain of the tree over a trace: layer by layer, in each position by position."""


def leaf(row: bytes, memory: bytes) -> bytes:
    """Leaf hash of a cell in the trace: its row in, by `models.rows`, and what it leaves to later
    positions, by `memory_hashes`."""
    return leaf_hash(row + memory)


def memory_hashes(held: KeysValues) -> list[bytes]:
    """Per position: hash of its keys, their exponents, values, their exponents, int16 each."""
    parts = [_numpy(x).astype("<i2") for x in held.all()]
    return [
        digest("light-memory/1", *(x[i].tobytes() for x in parts)) for i in range(len(parts[0]))
    ]


def _numpy(x: Tensor) -> NDArray[Any]:
    return cast("NDArray[Any]", cast(Any, x).numpy())
