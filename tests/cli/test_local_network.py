"""How a local network is set up."""

from __future__ import annotations

import pytest

from unisono.cli.local_network import usual_transport
from unisono.errors import ConfigurationError

NODE = "ab" * 32


@pytest.mark.parametrize(
    ("join", "bind", "transport"),
    [
        (None, "127.0.0.1:0", "tcp"),
        (None, "[::1]:4433", "tcp"),
        (None, "localhost:0", "tcp"),
        (None, "0.0.0.0:4433", "iroh"),
        (None, "192.0.2.7:4433", "iroh"),
        (None, "host.example:4433", "iroh"),
        ([f"iroh://{NODE}@127.0.0.1:4433"], "127.0.0.1:0", "iroh"),
        ([f"tcp://{NODE}@192.0.2.7:4433"], "0.0.0.0:0", "tcp"),
    ],
)
def test_members_speak_what_those_they_join_speak_and_tcp_if_nobody_else_can_dial_them(
    join: list[str] | None, bind: str, transport: str
) -> None:
    assert usual_transport(join, bind) == transport


@pytest.mark.parametrize(("join", "bind"), [(["nonsense"], "127.0.0.1:0"), (None, "nonsense")])
def test_a_malformed_address_is_an_error(join: list[str] | None, bind: str) -> None:
    with pytest.raises(ConfigurationError):
        usual_transport(join, bind)
