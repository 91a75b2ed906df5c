"""How far a session is paid for: a hop computes no position beyond.

Who checks the money is not known here: a `Till` decides whether a session is taken in, and tells
the session's meter how far it may go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from unisono.clock import Clock
from unisono.errors import PeerRefused
from unisono.types import NodeId, SessionId
from unisono.wire.bounds import MAX_POSITIONS
from unisono.wire.link import Link
from unisono.wire.messages import Open
from unisono.wire.payment_messages import Due, Pay

CREDIT_SECONDS = 10.0
"""How long a session that is not paid for waits before its gateway is told that it cannot go on."""


class Till(Protocol):
    """Takes payments of gateways."""

    @property
    def window(self) -> int:
        """Tokens of an answer that one payment ahead is good for."""
        ...

    def admit(self, peer: NodeId, opened: Open, grow: Callable[[int], None]) -> None:
        """A session is about to be taken in; `grow` is told how far it is paid for.

        Raises:
            PeerRefused: it offers no payment, or another price than the node asks.
        """
        ...

    def take(self, link: Link, pay: Pay) -> None:
        """A payment came. Bad ones are answered on the link."""
        ...

    def finish(self, session: SessionId, tokens: int) -> None:
        """The node signed for an answer of so many tokens: that is what is charged."""
        ...

    def drop(self, session: SessionId) -> None:
        """A session has ended; if nothing was signed, what was paid ahead is charged."""
        ...


class Meter:
    """One session's. Without payment it never stops anything."""

    def __init__(self, session: SessionId, clock: Clock) -> None:
        self.paid = MAX_POSITIONS
        """Positions that may be computed."""
        self.window = 0
        self._session = session
        self._clock = clock
        self._post: Callable[[Due], None] = lambda due: None
        self._total = 0
        self._asked = -1
        """The value of `paid` when more was asked for the last time."""
        self._grown = asyncio.Event()

    def start(self, window: int, total: int, post: Callable[[Due], None]) -> None:
        """From now on only what is paid for is computed, of `total` positions in all; `post` asks
        the gateway for more."""
        self.paid, self.window, self._total, self._post = 0, window, total, post

    def grow(self, positions: int) -> None:
        """So many positions are paid for."""
        if positions > self.paid:
            self.paid = positions
            self._grown.set()

    def computed(self, positions: int) -> None:
        """So many are computed: time to ask for more if half a window is left."""
        low = self.paid < self._total and self.paid - positions <= self.window // 2
        if low and self._asked != self.paid:
            self._asked = self.paid
            self._post(Due(self._session, positions))

    async def beyond(self, position: int) -> int:
        """Positions from `position` on that are paid for; waits until there is one.

        Raises:
            PeerRefused: no payment came in `CREDIT_SECONDS`.
        """
        while self.paid <= position:
            self._grown.clear()
            waiting = asyncio.ensure_future(self._grown.wait())
            limit = asyncio.ensure_future(self._clock.sleep(CREDIT_SECONDS))
            try:
                await asyncio.wait((waiting, limit), return_when=asyncio.FIRST_COMPLETED)
                if not waiting.done():
                    raise PeerRefused(
                        f"position {position} is not paid for: {self.paid} are, and nothing came "
                        f"in {CREDIT_SECONDS:.0f} s",
                        "unpaid",
                    )
            finally:
                waiting.cancel()
                limit.cancel()
        return self.paid - position
