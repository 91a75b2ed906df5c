"""What a node is told. Apart from the node, so that its parent need not load the kernels."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.errors import ConfigurationError
from unisono.market.sla import WINDOW_SECONDS
from unisono.types import LayerRange, NodeId, PeerAddress, is_hex
from unisono.wire.claims import EPOCH_SECONDS

MAX_OPERATORS = 8


class NodeSettings(msgspec.Struct, frozen=True):
    """How to run a node."""

    model: str
    """A model id, catalog name, GGUF file, folder or hub id."""
    join: str | None = None
    """Addresses of members of the network, with commas between them; any will do."""
    layers: LayerRange | None = None
    """None: whatever the network needs most, or all without a network."""
    transport: str = "iroh"
    bind: str = "127.0.0.1:0"
    relays: str | None = None
    """Addresses of relays to be reached through, with commas between them; None: a node behind NAT
    finds some itself."""
    serve_relay: bool = False
    """Whether to carry traffic of nodes that cannot be reached directly."""
    key: str | None = None
    """File of the node's key; None: a new key that lives as long as the node."""
    cache: str | None = None
    """Folder of converted models; None: the default."""
    memory: int | None = None
    """Bytes offered for weights, keys and values, by which a block is chosen; None: a share of
    what is free."""
    kv_bytes: int = 2 << 30
    device: str = "cpu"
    """`cpu`, `cuda`, or `auto`: cuda where there is one."""
    threads: int | None = None
    """CPU threads that compute; None: every core."""
    beacon: tuple[str, ...] = ()
    """Node ids of the beacon's operators; empty: the network's founder, as first heard."""
    epoch_seconds: int = EPOCH_SECONDS
    """Length of an epoch: the same for all members of a network."""
    chain: ChainSettings | None = None
    """Where it is paid; None: nowhere."""
    seller: SellerSettings | None = None
    """What it asks; None: nothing."""
    service_window: int = WINDOW_SECONDS
    """Seconds over which service levels are promised: the same for all members of a network."""


def beacon_operators(names: Iterable[str]) -> tuple[NodeId, ...]:
    """The operators that an option names.

    Raises:
        ConfigurationError: one is not a node id, or there are too many.
    """
    operators = tuple(dict.fromkeys(names))
    if len(operators) > MAX_OPERATORS or not all(is_hex(name, 32) for name in operators):
        raise ConfigurationError(
            f"the beacon has up to {MAX_OPERATORS} operators, each named by its node id of 64 "
            "hex digits: copy those that the network gives out"
        )
    return tuple(NodeId(name) for name in operators)


def join_addresses(text: str | Iterable[str] | None) -> tuple[PeerAddress, ...]:
    """The addresses of a list with commas, or of several such lists, each once.

    One address may have commas of its own, between its HOST:PORT pairs.

    Raises:
        ConfigurationError: a part of it is not an address.
    """
    lists = [text] if isinstance(text, str) else list(text or ())
    parts = [p.strip() for one in lists for p in re.split(r",(?=\s*[a-z0-9]+://)", one)]
    return tuple(dict.fromkeys(PeerAddress.parse(p) for p in parts if p))
