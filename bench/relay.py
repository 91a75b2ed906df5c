"""What a relay costs: a direct stream and a circuit through a relay, on one machine.

    python -m bench.relay

Relay, called node and caller are processes of their own. The relay's limits are lifted, so that
the figures are what it can carry, not what it is allowed to.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from bench.machine import publish
from unisono.types import PeerAddress
from unisono.wire.frames import encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Ping
from unisono.wire.transports import direct_transport, make_transport
from unisono.wire.transports.base import Stream
from unisono.wire.transports.relay import RelayLimits
from unisono.wire.transports.relayed import RelayedTransport

ROUND_TRIPS = 300
SMALL = encode_frame(Ping(1), bytes(8 << 10))
LARGE = encode_frame(Ping(2), bytes(4 << 20))
LARGES = 16


async def answer(stream: Stream) -> None:
    """Echo small frames, acknowledge large ones."""
    while True:
        frame = await stream.receive()
        await stream.send(frame if len(frame) == len(SMALL) else encode_frame(Ping(3)))


async def serve(kind: str, relays: list[PeerAddress]) -> None:
    """A node until its input ends: a relay if it is given none."""
    identity = Identity.generate()
    node = RelayedTransport(
        direct_transport(kind, identity),
        identity,
        relays=relays,
        serve_relay=not relays,
        limits=RelayLimits(bytes_per_second=1 << 40, bytes_per_second_of_peer=1 << 40),
    )
    print(await node.bind(), flush=True)
    serving = asyncio.create_task(node.serve(answer))
    await asyncio.to_thread(sys.stdin.read)
    await node.close()
    await serving


async def measured(stream: Stream) -> tuple[float, float]:
    """Median milliseconds of a round trip of 8 KB, and MB/s of 64 MB."""
    times: list[float] = []
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        await stream.send(SMALL)
        await stream.receive()
        times.append((time.perf_counter() - start) * 1e3)
    start = time.perf_counter()
    for _ in range(LARGES):
        await stream.send(LARGE)
    for _ in range(LARGES):
        await stream.receive()
    rate = LARGES * len(LARGE) / 1e6 / (time.perf_counter() - start)
    return statistics.median(times), rate


async def start(kind: str, *more: str) -> tuple[asyncio.subprocess.Process, PeerAddress]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.relay", "serve", kind, *more),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, PeerAddress.parse((await process.stdout.readline()).decode().strip())


async def compare(kind: str) -> list[dict[str, object]]:
    relay, relay_at = await start(kind)
    node, address = await start(kind, str(relay_at))
    caller = make_transport(kind, Identity.generate())
    await caller.bind()
    rows: list[dict[str, object]] = []
    try:
        for path, ways in (
            ("through a relay", address.addresses[-1:]),
            ("direct", address.addresses[:1]),
        ):
            before = time.perf_counter()
            stream = await caller.dial(PeerAddress(address.node, kind, ways))
            opened = (time.perf_counter() - before) * 1e3
            trip, rate = await measured(stream)
            rows.append(
                {
                    "transport": kind,
                    "path": path,
                    "open ms": opened,
                    "8 KB round trip ms": trip,
                    "MB/s": rate,
                }
            )
    finally:
        await caller.close()
        for process in (node, relay):
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
    return rows


async def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        await serve(sys.argv[2], [PeerAddress.parse(text) for text in sys.argv[3:]])
        return
    rows = [row for kind in ("tcp", "iroh") for row in await compare(kind)]
    publish("relay", rows)


if __name__ == "__main__":
    asyncio.run(main())
