"""A node without a model, for tests between namespaces: it answers what it is sent.

    python -m tests.namespaces.node TRANSPORT HOST:PORT [--relay] [RELAY ...]

prints its address whenever that changes. Lines on standard input are orders, each answered with
one JSON line: `dial ADDRESS` opens a stream, sends a megabyte and waits for its echo.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time

from unisono.errors import PeerGone, WireError
from unisono.types import PeerAddress
from unisono.wire.frames import encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Ping
from unisono.wire.transports import make_transport
from unisono.wire.transports.base import Stream
from unisono.wire.transports.relayed import RelayedTransport
from unisono.wire.transports.sealed import SealedStream


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def dial(node: RelayedTransport, address: PeerAddress, held: list[Stream]) -> dict:
    start = time.monotonic()
    try:
        stream = await node.dial(address)
        opened = time.monotonic() - start
        held.append(stream)
        sent = encode_frame(Ping(1), bytes(1_000_000))
        await stream.send(sent)
        same = await asyncio.wait_for(stream.receive(), 20) == sent
    except (WireError, TimeoutError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    # With iroh, only a circuit is sealed a second time.
    relayed = isinstance(stream, SealedStream) and stream.remote is None
    return {"relayed": relayed, "same": same, "opened_s": opened}


async def main() -> None:
    name, bind, *rest = sys.argv[1:]
    relays = [PeerAddress.parse(text) for text in rest if text != "--relay"]
    node = make_transport(
        name, Identity.generate(), bind, relays=relays, serve_relay="--relay" in rest
    )
    address = await node.bind()
    serving = asyncio.create_task(node.serve(echo))
    print(json.dumps({"address": str(address)}), flush=True)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    held: list[Stream] = []
    while line := (await reader.readline()).decode():
        order, _, target = line.strip().partition(" ")
        answer: dict = {"error": "no such order"}
        if order == "dial":
            answer = await dial(node, PeerAddress.parse(target), held)
        elif order == "again":  # the stream that was opened first
            try:
                await held[0].send(encode_frame(Ping(2)))
                answer = {"same": await held[0].receive() == encode_frame(Ping(2))}
            except PeerGone as error:
                answer = {"error": str(error)}
        elif order == "nat":
            answer = {"nat": node.behind_nat}
        elif order == "address":
            answer = {"address": str(node.address)}
        print(json.dumps(answer), flush=True)
    await node.close()
    await serving


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG if "-v" in sys.argv else logging.INFO)
    asyncio.run(main())
