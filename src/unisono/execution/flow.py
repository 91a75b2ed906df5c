"""Rows and tokens on their way through a session's chain, as one hop sees them.

The first hop turns tokens into rows, each hop passes its rows on, the last hop samples and
sends the token to the gateway and back to the first hop. Hashes are taken on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Literal, TypeVar

from unisono.errors import PeerCheating, PeerGone, WireError
from unisono.execution.engine import Engine, StepResult
from unisono.execution.session import HopSession, page_keys
from unisono.models.cache import PAGE
from unisono.types import NodeId, PeerAddress
from unisono.wire.claims import row_hash, token_hash
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Attach, Attached, Refused, Rows, Token
from unisono.wire.rows import decode_rows
from unisono.wire.transports.base import Stream, Transport

PREFILL_ROWS = 128
"""Rows of a prompt that are sent on together: the next hop starts while this one goes on."""
ATTACH_SECONDS = 10.0

_T = TypeVar("_T")


class PeerLost(WireError):
    """A neighbour in the chain failed; `peer` says which."""

    def __init__(self, peer: NodeId, cause: WireError) -> None:
        super().__init__(f"node {peer[:8]}: {cause}")
        self.peer = peer


async def blaming(peer: NodeId, work: Awaitable[_T]) -> _T:
    """Await `work`; a failure of the wire is `peer`'s.

    Raises:
        PeerLost: in place of any other wire error.
    """
    try:
        return await work
    except PeerLost:
        raise
    except WireError as error:
        raise PeerLost(peer, error) from error


async def attach(
    transport: Transport,
    peer: PeerAddress,
    session: HopSession,
    hop: int,
    kind: Literal["rows", "tokens"],
) -> Stream:
    """Open a stream to another hop of the chain.

    Raises:
        PeerLost: it cannot be reached, or does not know the session.
    """
    return await blaming(peer.node, _attach(transport, peer, session, hop, kind))


async def _attach(
    transport: Transport,
    peer: PeerAddress,
    session: HopSession,
    hop: int,
    kind: Literal["rows", "tokens"],
) -> Stream:
    stream = await transport.dial(peer)
    try:
        await stream.send(encode_frame(Attach(session.opened.session, hop, kind)))
        async with asyncio.timeout(ATTACH_SECONDS):
            reply, _ = decode_frame(await stream.receive())
        if not isinstance(reply, Attached):
            reason = reply.message if isinstance(reply, Refused) else type(reply).__name__
            raise PeerGone(f"did not attach: {reason}")
    except TimeoutError:
        await stream.close()
        raise PeerGone(f"did not answer within {ATTACH_SECONDS:.0f} s") from None
    except WireError:
        await stream.close()
        raise
    return stream


class Flow:
    """Moves one session's rows and tokens."""

    def __init__(self, engine: Engine, transport: Transport, session: HopSession) -> None:
        self._engine = engine
        self._transport = transport
        self._session = session

    async def feed(self) -> None:
        """First hop: the given tokens in chunks, then each token as it comes back.

        Raises:
            PeerLost: the next hop, or the gateway.
        """
        session = self._session
        position = await self._adopt()
        # a lone hop has nobody to keep busy: its engine cuts the prompt as it sees fit
        rows = PREFILL_ROWS if session.next is not None else len(session.tokens)
        while True:
            chunk = tuple(session.tokens[position : position + rows])
            draw = session.draw_after(position + len(chunk) - 1)
            result = await self._engine.step(session.cache, position, chunk, draw)
            session.in_hashes += [token_hash(t) for t in chunk]
            session.out_hashes += result.hashes
            self._keep(position, position + len(chunk))
            await self._emit(position, result)
            position += len(chunk)
            if session.ended:  # a single hop has sampled the last token itself
                return
            if position == len(session.tokens):
                session.tokens.append(await session.arrived.get())
                if session.ended:
                    return

    async def _adopt(self) -> int:
        """Begin with what earlier sessions computed of the same prompt; returns where to go on."""
        session = self._session
        keys = session.prefix_keys()
        if not keys:
            return 0
        found = await self._engine.adopt(session.cache, keys)
        for prefix in found:
            session.in_hashes += prefix.hashes[0]
            session.out_hashes += prefix.hashes[1]
        return len(found) * PAGE

    def _keep(self, start: int, stop: int) -> None:
        """Keep the pages that the positions `start` to `stop` completed."""
        session = self._session
        if not (session.is_first and session.is_last) or start // PAGE == stop // PAGE:
            return
        keys = page_keys(session.tokens, stop // PAGE)
        for page in range(start // PAGE, stop // PAGE):
            here = slice(page * PAGE, (page + 1) * PAGE)
            hashes = session.in_hashes[here], session.out_hashes[here]
            self._engine.keep(session.cache, keys[: page + 1], hashes)

    async def rows_in(self, stream: Stream) -> None:
        """Any other hop: rows as the hop before sends them.

        Raises:
            PeerLost: a neighbour, or the gateway.
        """
        while True:
            position, widths, body = await blaming(stream.peer, self._next_rows(stream))
            await self._rows_step(stream.peer, position, widths, body)

    async def tokens_in(self, stream: Stream) -> None:
        """First hop: tokens as the last hop sends them back.

        Raises:
            PeerLost: the last hop.
        """
        while True:
            self._session.arrived.put_nowait(await blaming(stream.peer, self._next_token(stream)))

    async def _next_rows(self, stream: Stream) -> tuple[int, bytes, memoryview]:
        message, body = decode_frame(await stream.receive())
        if not isinstance(message, Rows) or message.session != self._session.opened.session:
            raise PeerCheating(f"{type(message).__name__} where rows were expected")
        self._session.check_rows(message.position, len(message.widths))
        return message.position, message.widths, body

    async def _next_token(self, stream: Stream) -> int:
        message, _ = decode_frame(await stream.receive())
        if not isinstance(message, Token) or message.session != self._session.opened.session:
            raise PeerCheating(f"{type(message).__name__} where a token was expected")
        if message.token.token >= self._engine.decoder.config.vocabulary_size:
            raise PeerCheating(f"token {message.token.token} is outside the vocabulary")
        due = len(self._session.tokens)
        if message.token.position != due or not self._session.arrived.empty():
            raise PeerCheating(
                f"a token for position {message.token.position} came before its turn: "
                f"position {due} is next"
            )
        return message.token.token

    async def _rows_step(
        self, peer: NodeId, position: int, widths: bytes, body: memoryview
    ) -> None:
        session = self._session
        hidden = self._engine.decoder.config.hidden_size
        try:
            rows = decode_rows(widths, body, hidden)
        except PeerCheating as error:
            raise PeerLost(peer, error) from error
        offset = 0
        for width in widths:
            session.in_hashes.append(row_hash(body[offset : offset + hidden * width]))
            offset += hidden * width
        draw = session.draw_after(position + len(widths) - 1)
        result = await self._engine.step(session.cache, position, rows, draw)
        session.out_hashes += result.hashes
        await self._emit(position, result)

    async def _emit(self, position: int, result: StepResult) -> None:
        """Pass on what a step gave: rows to the next hop, or a token to both ends."""
        session, opened = self._session, self._session.opened
        if session.next is not None:
            rows = encode_frame(
                Rows(opened.session, position, result.widths), b"".join(result.encoded)
            )
            await blaming(session.next.peer, session.next.send(rows))
        if result.token is None:
            return
        session.tokens.append(result.token.token)
        token = encode_frame(Token(opened.session, result.token))
        await blaming(opened.gateway, session.control.send(token))
        if opened.first is not None and not session.ended:
            if session.back is None:
                session.back = await attach(self._transport, opened.first, session, 0, "tokens")
            await blaming(opened.first.node, session.back.send(token))
