"""iroh's endpoint: the socket, its addresses, and what its errors say."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import iroh

from unisono.errors import ConfigurationError
from unisono.wire.transports.addresses import join_address, reachable_host, split_address
from unisono.wire.transports.iroh_binding import repair

ALPN = b"unisono/1"

PATCHED = repair()
"""Whether the binding copies in one piece here."""


class _Preset(iroh.Preset):
    """iroh's minimal preset; if an address is given, the socket of the other IP version is
    bound there. By default iroh would bind it to all interfaces."""

    def __init__(self, other: str | None) -> None:
        self._other = other

    def apply(self, builder: iroh.EndpointBuilder) -> None:
        builder.apply_minimal()
        if self._other is not None:
            builder.bind_addr(self._other)


def describe(error: iroh.IrohError) -> str:
    """What an IrohError says; its `str` is empty."""
    # The first line names a variant and a source file; the last one names the cause.
    lines = error.message().strip().splitlines() or [""]
    return f"{error.kind().name.lower()}: {lines[-1].strip()}"


async def resolve(host: str, port: int) -> list[str]:
    """Addresses that iroh takes: it does not look names up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        return [join_address(str(entry[4][0]), port) for entry in found]
    return [join_address(host, port)]


async def bind_endpoint(address: str, seed: bytes) -> iroh.Endpoint:
    """An endpoint at HOST:PORT that contacts no service of others.

    Raises:
        IrohError: the address cannot be bound.
    """
    host, _ = split_address(address)
    everywhere = ipaddress.ip_address(host).is_unspecified
    other = "127.0.0.1:0" if ":" in host else "[::1]:0"
    # A machine without the other IP version cannot bind it: then iroh's default does no harm.
    presets = [_Preset(None)] if everywhere else [_Preset(other), _Preset(None)]
    for preset in presets:
        try:
            return await iroh.Endpoint.bind(
                iroh.EndpointOptions(
                    preset=preset,
                    bind_addr=address,
                    secret_key=seed,
                    alpns=[ALPN],
                    relay_mode=iroh.RelayMode.disabled(),
                )
            )
        except iroh.IrohError:
            if preset is presets[-1]:
                raise
    raise AssertionError("unreachable")


def own_address(endpoint: iroh.Endpoint, bound: str) -> str:
    """Where peers reach the socket that was asked for."""
    host, _ = split_address(bound)
    for text in endpoint.bound_sockets():
        found, port = split_address(text)
        if (":" in found) == (":" in host):
            return join_address(reachable_host(host), port)
    raise ConfigurationError(f"iroh did not bind {bound}: it bound {endpoint.bound_sockets()}")
