"""What a node is told. Apart from the node, so that its parent need not load the kernels."""

from __future__ import annotations

import msgspec

from unisono.types import LayerRange


class NodeSettings(msgspec.Struct, frozen=True):
    """How to run a node."""

    model: str
    """A model id, catalog name, GGUF file, folder or hub id."""
    join: str | None = None
    """Address of a gateway, to announce to."""
    layers: LayerRange | None = None
    """None: whatever the network needs most, or all without a network."""
    transport: str = "iroh"
    bind: str = "127.0.0.1:0"
    key: str | None = None
    """File of the node's key; None: a new key that lives as long as the node."""
    cache: str | None = None
    """Folder of converted models; None: the default."""
    kv_bytes: int = 2 << 30
    device: str = "cpu"
    """`cpu`, `cuda`, or `auto`: cuda where there is one."""
    threads: int | None = None
    """CPU threads that compute; None: every core."""
