"""Which node has read which beginning of a prompt, so that it need not read it again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from unisono.clock import Clock
from unisono.routing.recent import Recent
from unisono.types import NodeId, digest

PREFIX_TOKENS = 64
"""Tokens of a page of keys and values: nodes keep prompts in pieces of this many."""
MAX_PREFIXES = 65_536
MAX_HOLDERS = 8
"""Nodes that are remembered per prefix, the latest."""
KEPT_SECONDS = 600.0
"""How long a node is trusted to have kept pages that nobody asked for."""


def prefix_keys(tokens: Sequence[int]) -> tuple[bytes, ...]:
    """One key per 64 tokens of a prompt, each standing for all tokens up to its end.

    The last token belongs to none: its row is computed for the answer to begin.
    """
    packed = array("I", tokens).tobytes()
    keys: list[bytes] = []
    key, size = b"", 4 * PREFIX_TOKENS
    for page in range(max(0, len(tokens) - 1) // PREFIX_TOKENS):
        key = digest("route/prefix/1", key, packed[page * size : (page + 1) * size])
        keys.append(key)
    return tuple(keys)


class Prefixes:
    """Bounded memory of prompts that nodes have read: alone, or as hops of a chain."""

    def __init__(self, clock: Clock, limit: int = MAX_PREFIXES) -> None:
        self._clock = clock
        self._seen: Recent[bytes, dict[NodeId, float]] = Recent(limit)

    def read(self, node: NodeId, keys: Sequence[bytes]) -> None:
        """The node has computed the prompt with these keys."""
        now = self._clock.monotonic()
        # the longest prefixes are written first, so that they are the first to be forgotten
        for key in reversed(keys):
            holders = self._seen.get(key) or {}
            holders.pop(node, None)
            holders[node] = now
            if len(holders) > MAX_HOLDERS:
                del holders[next(iter(holders))]
            self._seen.put(key, holders)

    def lost(self, node: NodeId, keys: Sequence[bytes]) -> None:
        """The node has not kept these."""
        for key in keys:
            holders = self._seen.get(key)
            if holders is not None:
                holders.pop(node, None)
                if not holders:
                    self._seen.drop(key)

    def held(self, keys: Sequence[bytes]) -> dict[NodeId, int]:
        """Tokens at the beginning of the prompt with these keys that nodes hold already."""
        oldest = self._clock.monotonic() - KEPT_SECONDS
        found: dict[NodeId, int] = {}
        for page, key in enumerate(keys):
            going = False
            for node, at in (self._seen.get(key) or {}).items():
                # only an unbroken run from the start counts
                if at >= oldest and found.get(node, 0) == page * PREFIX_TOKENS:
                    found[node] = (page + 1) * PREFIX_TOKENS
                    going = True
            if not going:
                break
        return found
