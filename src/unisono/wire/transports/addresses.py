"""Addresses as people and records write them: HOST:PORT, or that of a relay which leads on.

    relay/TRANSPORT://NODE_ID@HOST:PORT

is the relay with this id at this address. Such an address has exactly one written form.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from unisono.errors import ConfigurationError, PeerGone
from unisono.types import NodeId, PeerAddress, is_hex

RELAY = "relay/"

_MACHINE, _NETWORK, _INTERNET = 1, 2, 3
"""Who can dial an address: this machine only, a private network, everyone."""


def split_address(
    text: str, error: type[ConfigurationError | PeerGone] = ConfigurationError
) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT.

    Raises:
        ConfigurationError: it is neither; or `error`, if one is given.
    """
    host, found, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        found = ""
    if not (found and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise error(f"'{text}' is not an address: expected HOST:PORT or [IPV6]:PORT")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable_host(host: str) -> str:
    """`host`, or this machine's own address if `host` stands for all of them."""
    if host not in ("0.0.0.0", "::"):
        return host
    # Connecting a datagram socket sends nothing; it makes the kernel choose a route. The
    # targets are addresses reserved for documentation.
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with (
            contextlib.suppress(OSError),
            socket.socket(family, socket.SOCK_DGRAM) as probe,
        ):
            probe.connect((target, 9))
            return str(probe.getsockname()[0])
    return "127.0.0.1"


def is_own_host(host: str) -> bool:
    """Whether an IP address is one of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))  # the kernel refuses the addresses of others
    except OSError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether a HOST:PORT to listen on is one that only this machine can dial."""
    host = split_address(address)[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def relay_address(relay: PeerAddress) -> str:
    """The address of a node that `relay` leads to, by the most public of the relay's own.

    A machine that its provider translates one to one is bound to a private address and knows
    its public one from others.
    """
    best = max(relay.addresses, key=lambda each: _reach(each) or _INTERNET)
    return f"{RELAY}{relay.transport}://{relay.node}@{best}"


def split_relay_address(text: str) -> PeerAddress | None:
    """The relay of a relay address; None if `text` is anything else, or not its one form."""
    if not text.startswith(RELAY):
        return None
    transport, _, rest = text[len(RELAY) :].partition("://")
    node, _, address = rest.partition("@")
    if not (transport.isascii() and transport.isalpha() and transport.islower()):
        return None
    if not is_hex(node, 32) or len(transport) > 16:
        return None
    try:
        host, port = split_address(address)
    except ConfigurationError:
        return None
    if join_address(host, port) != address or set("@/, ") & set(host):
        return None
    return PeerAddress(NodeId(node), transport, (address,))


def may_dial(address: str, told_by: str) -> bool:
    """Whether to dial an address that somebody else names.

    Only IP addresses, and only such as are at least as public as whoever names them: otherwise
    a relay on the Internet could make its guests knock on the doors of their own home, or one
    at home make them knock on their own machine.

    Args:
        address: HOST:PORT.
        told_by: the HOST:PORT of whoever named it.
    """
    reach = _reach(address)
    return reach > 0 and reach >= _reach(told_by)


def _reach(address: str) -> int:
    """How far away an address can be dialled from; 0 for what is no IP address with a port."""
    try:
        host, port = split_address(address)
        found = ipaddress.ip_address(host)
    except (ConfigurationError, ValueError):
        return 0
    if not port or found.is_multicast or found.is_unspecified:
        return 0
    return _MACHINE if found.is_loopback else _INTERNET if found.is_global else _NETWORK
