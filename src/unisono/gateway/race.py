"""Work that another event may cut short: a client that leaves, a deadline, a shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Overtaken(Exception):
    """The event came before the work was done; the work was cancelled."""

    def __init__(self, event: object) -> None:
        super().__init__(f"overtaken by {event!r}")
        self.event = event


async def unless(event: Coroutine[Any, Any, object], work: Coroutine[Any, Any, Result]) -> Result:
    """Do `work`, unless `event` comes first. Neither still runs when this returns.

    Raises:
        Overtaken: `event` came first; carries its result.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(event)
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Overtaken(watching.result())
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
