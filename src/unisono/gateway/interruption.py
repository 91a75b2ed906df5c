"""Why work on a request may have to stop: its client left, or the gateway is closing."""

from __future__ import annotations

import asyncio
import enum

from starlette.types import Receive

from unisono.gateway.race import Overtaken, unless


class Interruption(enum.Enum):
    """What cut a request short."""

    GONE = "the client disconnected"
    CLOSING = "the gateway is shutting down"


async def interruption(receive: Receive, closing: asyncio.Event) -> Interruption:
    """Wait for either. The request's body must have been read already."""
    try:
        await unless(closing.wait(), _disconnect(receive))
    except Overtaken:
        return Interruption.CLOSING
    return Interruption.GONE


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
