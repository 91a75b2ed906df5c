"""Addresses as people and records write them: HOST:PORT."""

from __future__ import annotations

import contextlib
import socket

from unisono.errors import ConfigurationError, PeerGone


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
