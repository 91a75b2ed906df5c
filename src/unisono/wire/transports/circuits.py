"""Opening circuits: as the one who calls, and as the one who is called."""

from __future__ import annotations

import asyncio

from unisono.errors import PeerCheating, PeerGone, PeerRefused
from unisono.types import NodeId, PeerAddress
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Refused
from unisono.wire.relay_messages import Answer, Call, Joined, Knock
from unisono.wire.transports import cancel_tasks
from unisono.wire.transports.base import Stream, Transport
from unisono.wire.transports.circuit import CircuitLink
from unisono.wire.transports.relay import Relay
from unisono.wire.transports.sealed import SealedStream, shake_as_dialler, shake_as_listener

CALL_SECONDS = 10.0
"""For a circuit: the relay's knock, the answer, the handshake."""
ANSWER_SECONDS = 5.0
CLOSE_SECONDS = 2.0


class Circuits:
    """The near ends of this node's circuits.

    Args:
        inner: dials relays.
        identity: what this node proves through a circuit.
        relay: this node's own, for circuits to nodes that hold a place here.
    """

    def __init__(self, inner: Transport, identity: Identity, relay: Relay | None) -> None:
        self._inner = inner
        self._identity = identity
        self._relay = relay
        self._links: set[CircuitLink] = set()

    async def call(self, relay: PeerAddress, target: NodeId) -> SealedStream:
        """A stream with `target` through a relay.

        Raises:
            PeerGone: the relay does not lead there. If someone tampers with the handshake that
                is said, and blamed on nobody: the relay may have done it, or the target.
        """
        try:
            async with asyncio.timeout(CALL_SECONDS):
                if relay.node == self._identity.node_id:
                    link = await self._call_here(target)
                else:
                    link = await self._call(relay, target)
                try:
                    return await shake_as_dialler(link, self._identity, target)
                except BaseException:
                    link.abort()
                    raise
        except TimeoutError:
            raise PeerGone(f"the relay {relay} does not lead to {target} in time") from None
        except (PeerCheating, PeerRefused) as error:
            raise PeerGone(f"the relay {relay} does not lead to {target}: {error}") from None

    async def answer(self, relay: PeerAddress, knock: Knock) -> SealedStream:
        """The stream of someone who called this node through a relay.

        Raises:
            PeerGone: nobody is there any more.
            PeerRefused: the relay says no.
            PeerCheating: the caller is not who the relay said it is, or the handshake was
                tampered with; it is not known by whom.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                stream = await self._inner.dial(relay)
                link = await self._joined(stream, Answer(knock.ticket))
                try:
                    sealed = await shake_as_listener(link, self._identity)
                    if sealed.peer != knock.caller:
                        raise PeerCheating(f"the relay announced another caller than {sealed.peer}")
                    return sealed
                except BaseException:
                    link.abort()
                    raise
        except TimeoutError:
            raise PeerGone(f"{knock.caller} called through {relay} and was silent") from None

    async def close(self) -> None:
        """Close all circuits, delivering what was written."""
        links = [*self._links]
        for link in links:
            link.close()
        if links:
            ends = {asyncio.create_task(_closed(link)) for link in links}
            _, late = await asyncio.wait(ends, timeout=CLOSE_SECONDS)
            await cancel_tasks(late)

    async def _call(self, relay: PeerAddress, target: NodeId) -> CircuitLink:
        return await self._joined(await self._inner.dial(relay), Call(target))

    async def _call_here(self, target: NodeId) -> CircuitLink:
        """A circuit to a node that holds a place at this one."""
        if self._relay is None:
            raise PeerGone("this node is no relay")
        stream, ended = await self._relay.call(target, self._identity.node_id)
        return self._link(stream, ended)

    async def _joined(self, stream: Stream, request: Call | Answer) -> CircuitLink:
        """Turn a stream with a relay into a circuit."""
        try:
            await stream.send(encode_frame(request))
            message, _ = decode_frame(await stream.receive())
            if isinstance(message, Refused):
                raise PeerRefused(message.message, message.code)
            if not isinstance(message, Joined):
                raise PeerCheating(f"{type(message).__name__} where a circuit should start")
        except BaseException:
            await stream.close()
            raise
        return self._link(stream)

    def _link(self, stream: Stream, ended: asyncio.Event | None = None) -> CircuitLink:
        def done(link: CircuitLink) -> None:
            self._links.discard(link)
            if ended is not None:
                ended.set()

        link = CircuitLink(stream, done)
        self._links.add(link)
        return link


async def _closed(link: CircuitLink) -> None:
    await link.closed.wait()
