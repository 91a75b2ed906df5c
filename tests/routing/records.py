"""Node records for tests of routing."""

from __future__ import annotations

from typing import Any

from unisono.types import LayerRange, ModelId, PeerAddress
from unisono.wire.identity import Identity
from unisono.wire.records import NodeRecord

MODEL = ModelId("7b" * 32)
KEYS = [Identity.from_seed(bytes([i]) * 32) for i in range(24)]


def record(key: int, start: int, stop: int, *, sign: bool = False, **changes: Any) -> NodeRecord:
    """A record of node `key` (an index of `KEYS`) that holds layers `start:stop`."""
    node = KEYS[key].node_id
    fields: dict[str, Any] = {
        "node": node,
        "address": PeerAddress(node, "memory", (f"memory:{key}",)),
        "model": MODEL,
        "layers": LayerRange(start, stop),
        "free_positions": 1000,
        "sessions": 0,
        "sequence": 1,
        "expires": 1,
    }
    made = NodeRecord(**(fields | changes))
    return made.signed_by(KEYS[key]) if sign else made
