"""An OpenAI-compatible endpoint on a raw socket that misbehaves as a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"

Behaviour = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request, and the way to answer it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the other side has closed the connection."""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def event(self, data: Any) -> None:
        await self.send(b"data: " + (data if isinstance(data, bytes) else _json(data)) + b"\n\n")

    def chunk(self, text: str, finish: str | None = None) -> dict[str, Any]:
        shape = {"delta": {"content": text}} if "chat" in self.path else {"text": text}
        return {"id": "r", "choices": [{"index": 0, "finish_reason": finish, **shape}]}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def tells(*texts: str, finish: str = "stop") -> Behaviour:
    """A good endpoint."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(HEAD)
        if "chat" in exchange.path:
            await exchange.event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        for text in texts:
            await exchange.event(exchange.chunk(text))
        await exchange.event(exchange.chunk("", finish))
        await exchange.event({"choices": [], "usage": {"total_tokens": 3}})
        await exchange.event(b"[DONE]")

    return behave


def sends(*pieces: bytes, head: bytes = HEAD) -> Behaviour:
    """Raw bytes, and then the end of the connection."""

    async def behave(exchange: Exchange) -> None:
        await exchange.send(head)
        for piece in pieces:
            await exchange.send(piece)

    return behave


def refuses(status: int, body: bytes = b"{}", headers: str = "") -> Behaviour:
    head = f"HTTP/1.1 {status} No\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return sends(body, head=head.encode())


async def hangs(exchange: Exchange) -> None:
    """Reads the request and says nothing."""
    await exchange.gone.wait()


@dataclass
class Endpoint:
    """A scripted endpoint that listens."""

    url: str
    behaviour: Behaviour
    exchanges: list[Exchange] = field(default_factory=list[Exchange])


@asynccontextmanager
async def endpoint(behaviour: Behaviour) -> AsyncIterator[Endpoint]:
    made = Endpoint("", behaviour)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])
        }
        body = await reader.readexactly(int(headers["content-length"]))
        exchange = Exchange(head[0].split()[1], headers, json.loads(body), writer)
        made.exchanges.append(exchange)

        async def watch() -> None:
            await reader.read()
            exchange.gone.set()

        watching = asyncio.create_task(watch())
        tasks.add(watching)
        try:
            await made.behaviour(exchange)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    made.url = f"http://{host}:{port}/v1"
    try:
        yield made
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
