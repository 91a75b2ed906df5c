"""A place at a relay, held for as long as a node needs it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from unisono.clock import Clock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, WireError
from unisono.types import PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Ping, Pong, Refused
from unisono.wire.relay_messages import DialBack, Knock, Reserve, Reserved
from unisono.wire.transports.base import Stream, Transport

logger = logging.getLogger(__name__)

REPLY_SECONDS = 5.0
FIRST_BACK_OFF = 1.0
MAX_BACK_OFF = 60.0


class Reservation:
    """Keeps one place, at one of several relays.

    Args:
        inner: dials the relay.
        choose: the relay to try next; None if there is none.
        own_addresses: where this node believes to be, told to the relay.
        knocked: what to do when someone calls; given the relay.
        dial_back: what to do when someone wants to meet; given the relay.
        changed: called when a place was got or lost; given where the relay sees this node.
    """

    def __init__(
        self,
        inner: Transport,
        clock: Clock,
        *,
        choose: Callable[[], PeerAddress | None],
        own_addresses: Callable[[], tuple[str, ...]],
        knocked: Callable[[PeerAddress, Knock], None],
        dial_back: Callable[[PeerAddress, DialBack], None],
        changed: Callable[[PeerAddress, str | None], Awaitable[None]],
    ) -> None:
        self.relay: PeerAddress | None = None
        """Where a place is held."""
        self.tried = asyncio.Event()
        """The first attempt is over, however it went."""
        self._inner = inner
        self._clock = clock
        self._choose = choose
        self._own_addresses = own_addresses
        self._knocked = knocked
        self._dial_back = dial_back
        self._changed = changed
        self._draw = random.Random()

    async def keep(self) -> None:
        """Hold a place until cancelled: if it is lost, get another, at growing intervals."""
        back_off = FIRST_BACK_OFF
        while True:
            relay = self._choose()
            if relay is not None:
                since = self._clock.monotonic()
                try:
                    await self._hold(relay)
                except WireError as error:
                    logger.info("no place at the relay %s: %s", relay, error)
                if self._clock.monotonic() - since > MAX_BACK_OFF:
                    back_off = FIRST_BACK_OFF
            self.tried.set()
            # Guests of a relay that restarts should not all come back at once.
            await self._clock.sleep(back_off * self._draw.uniform(0.5, 1.0))
            back_off = min(MAX_BACK_OFF, 2 * back_off)

    async def _hold(self, relay: PeerAddress) -> None:
        stream = await self._inner.dial(relay)
        try:
            await stream.send(encode_frame(Reserve(self._own_addresses())))
            async with asyncio.timeout(REPLY_SECONDS):
                message, _ = decode_frame(await stream.receive())
            if isinstance(message, Refused):
                raise PeerRefused(message.message, message.code)
            if not isinstance(message, Reserved):
                raise PeerCheating(f"{type(message).__name__} in reply to a reservation")
            self.relay = relay
            await self._changed(relay, message.seen)
            self.tried.set()
            await self._listen(stream, relay, message.idle_ms / 1000)
        except TimeoutError:
            raise PeerGone(f"the relay {relay} does not answer") from None
        finally:
            if self.relay is not None:
                self.relay = None
                await self._changed(relay, None)
            await stream.close()

    async def _listen(self, stream: Stream, relay: PeerAddress, idle: float) -> None:
        heard = self._clock.monotonic()

        async def ask() -> None:
            count = 0
            while True:
                await self._clock.sleep(idle / 3)
                if self._clock.monotonic() - heard > idle:
                    await stream.close()
                    return
                count += 1
                await stream.send(encode_frame(Ping(count)))

        asking = asyncio.create_task(ask())
        try:
            while True:
                message, _ = decode_frame(await stream.receive())
                heard = self._clock.monotonic()
                if isinstance(message, Knock):
                    self._knocked(relay, message)
                elif isinstance(message, DialBack):
                    self._dial_back(relay, message)
                elif not isinstance(message, Pong):
                    raise PeerCheating(f"{type(message).__name__} from a relay")
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
