from __future__ import annotations

import pytest

from unisono.compose.node_settings import join_addresses
from unisono.errors import ConfigurationError
from unisono.types import PeerAddress

ONE = f"iroh://{'ab' * 32}@192.0.2.7:4433,[2001:db8::1]:4433"
OTHER = f"tcp://{'cd' * 32}@host.example:9"


@pytest.mark.parametrize(
    "text",
    [f"{ONE},{OTHER}", [ONE, OTHER], f"{ONE}, {OTHER}", [f"{ONE},{OTHER}", OTHER]],
)
def test_several_addresses_come_in_one_list_or_in_several(text: str | list[str]) -> None:
    assert join_addresses(text) == (PeerAddress.parse(ONE), PeerAddress.parse(OTHER))


def test_no_address_is_none() -> None:
    assert join_addresses(None) == join_addresses("") == join_addresses([]) == ()


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is not a peer address"):
        join_addresses(f"{ONE},tcp://nobody")
