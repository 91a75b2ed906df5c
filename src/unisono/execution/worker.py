"""The worker service of a node: sessions of one block of layers, over streams.

A stream begins with `Open` (from a gateway: it stays as the session's control stream),
`Attach` (from another hop: rows, or tokens on their way back), or `Probe`. Anything else,
or anything out of order, ends the stream; the node stays up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Literal

import numpy as np

from unisono.clock import Clock, SystemClock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, UnisonoError, WireError
from unisono.execution.engine import Engine, StepResult
from unisono.execution.session import HopSession
from unisono.models.cache import bytes_per_position
from unisono.types import ModelId, NodeId, PeerAddress, Q16, Sampling, SessionId
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import (
    Attach,
    Attached,
    Claimed,
    Failed,
    Finish,
    Info,
    Message,
    NodeRecord,
    Open,
    Opened,
    Ping,
    Pong,
    Probe,
    Refused,
    Rows,
    Token,
)
from unisono.wire.rows import decode_rows
from unisono.wire.transports.base import Stream, Transport

log = logging.getLogger(__name__)

PREFILL_ROWS = 128
"""Rows of a prompt that are sent on together: the next hop starts while this one goes on."""
SILENCE_SECONDS = 15.0
"""A gateway that sends nothing this long (it pings every second) has gone."""
FIRST_MESSAGE_SECONDS = 10.0
LEASE_SECONDS = 15.0


class Worker:
    """Serves one block of layers until its transport is closed."""

    def __init__(
        self,
        engine: Engine,
        model: ModelId,
        identity: Identity,
        transport: Transport,
        *,
        kv_bytes: int = 2 << 30,
        clock: Clock | None = None,
    ) -> None:
        """`kv_bytes` limits the memory of all sessions' keys and values together."""
        self._engine = engine
        self._model = model
        self._identity = identity
        self._transport = transport
        self._clock = clock or SystemClock()
        config = engine.decoder.config
        per_position = bytes_per_position(config, engine.decoder.weights.layers)
        self._capacity = kv_bytes // per_position
        self._reserved = 0
        self._sessions: dict[SessionId, HopSession] = {}
        self._sequence = 0
        self.address: PeerAddress | None = None

    @property
    def sessions(self) -> int:
        """Sessions held now."""
        return len(self._sessions)

    @property
    def free_positions(self) -> int:
        """Positions that new sessions may reserve."""
        return self._capacity - self._reserved

    def record(self) -> NodeRecord:
        """This node's signed description, good for one lease."""
        assert self.address is not None, "bind the transport and set `address` first"
        now_ms = int(self._clock.now() * 1000)
        self._sequence = max(self._sequence + 1, now_ms)
        return NodeRecord(
            node=self._identity.node_id,
            address=self.address,
            model=self._model,
            layers=self._engine.decoder.weights.layers,
            free_positions=self.free_positions,
            sessions=self.sessions,
            sequence=self._sequence,
            expires=now_ms + int(LEASE_SECONDS * 1000),
        ).signed_by(self._identity)

    async def handle(self, stream: Stream) -> None:
        """Serve one stream that a peer opened."""
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            message, body = decode_frame(await stream.receive())
        if isinstance(message, Open):
            await self._control(stream, message, bytes(body))
        elif isinstance(message, Attach):
            await self._attach(stream, message)
        elif isinstance(message, Probe):
            await _send(stream, Info(self.record()))
        elif isinstance(message, Ping):
            await _send(stream, Pong(message.nonce))
        else:
            raise PeerCheating(f"a stream cannot begin with {type(message).__name__}")

    # sessions

    async def _control(self, stream: Stream, opened: Open, body: bytes) -> None:
        try:
            session = self._open(stream.peer, opened, body)
        except PeerRefused as refusal:
            await _send(stream, Refused(refusal.code, str(refusal)[:1024]))
            return
        try:
            if opened.next is not None:
                session.next = await self._dial(opened.next, session, opened.hop + 1, "rows")
            await _send(stream, Opened(opened.session))
            if session.is_first:
                self._spawn(session, stream, self._feed(session, stream))
            await self._obey(session, stream)
        except WireError as error:
            log.info("session %s ends: %s", opened.session[:8], error)
            await self._report(session, stream, error)
        finally:
            await self._drop(session)

    def _open(self, peer: NodeId, opened: Open, body: bytes) -> HopSession:
        config = self._engine.decoder.config
        layers = self._engine.decoder.weights.layers
        if peer != opened.gateway:
            raise PeerRefused("the session names another gateway than the peer", "wrong_gateway")
        if opened.model != self._model or opened.layers != layers:
            raise PeerRefused(
                f"this node holds layers {layers} of model {self._model[:12]}…, not "
                f"{opened.layers} of {opened.model[:12]}…",
                "not_held",
            )
        if opened.session in self._sessions:
            raise PeerRefused("the session is open already", "duplicate")
        if opened.positions > config.context_length:
            raise PeerRefused(
                f"{opened.positions} positions exceed the context of {config.context_length}",
                "too_long",
            )
        ends = opened.hop in (0, opened.hops - 1)
        tokens = np.frombuffer(body, dtype="<u4").tolist() if len(body) % 4 == 0 else []
        if len(tokens) != (opened.start if ends else 0):
            raise PeerRefused(f"{len(tokens)} tokens came where {opened.start} were announced",
                              "bad_request")
        if any(t >= config.vocabulary_size for t in tokens):
            raise PeerRefused(
                f"a token id is outside the vocabulary of {config.vocabulary_size}", "bad_request"
            )
        check_sampling(opened.sampling, config.vocabulary_size)
        if opened.positions > self.free_positions:
            raise PeerRefused(
                f"{opened.positions} positions do not fit: {self.free_positions} of "
                f"{self._capacity} are free",
                "capacity",
            )
        self._reserved += opened.positions
        cache = self._engine.decoder.new_cache(opened.positions)
        session = HopSession(opened, tokens, cache)
        self._sessions[opened.session] = session
        return session

    async def _obey(self, session: HopSession, stream: Stream) -> None:
        """Answer the gateway until it closes the stream."""
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message, _ = decode_frame(await stream.receive())
            except TimeoutError:
                raise PeerGone(
                    f"the gateway was silent for {SILENCE_SECONDS:.0f} s"
                ) from None
            if isinstance(message, Ping):
                await _send(stream, Pong(message.nonce))
            elif isinstance(message, Finish) and message.session == session.opened.session:
                await self._finish(session, stream, message.tokens)
            else:
                raise PeerCheating(f"{type(message).__name__} on a control stream")

    async def _finish(self, session: HopSession, stream: Stream, tokens: int) -> None:
        _cancel(session.tasks)  # an answer cut by a stop string may still be computing
        try:
            claim = session.claim(tokens, self._identity.node_id, self._identity)
        except PeerRefused as refusal:
            await _send(stream, Refused(refusal.code, str(refusal)))
            return
        message, tags = Claimed.split(claim)
        await _send(stream, message, tags)

    async def _drop(self, session: HopSession) -> None:
        if self._sessions.pop(session.opened.session, None) is None:
            return
        self._reserved -= session.opened.positions
        _cancel(session.tasks)
        if session.next is not None:
            await session.next.close()

    def _spawn(
        self, session: HopSession, control: Stream, work: Coroutine[Any, Any, None]
    ) -> None:
        async def guarded() -> None:
            try:
                await work
            except UnisonoError as error:
                log.info("session %s: %s", session.opened.session[:8], error)
                await self._report(session, control, error)

        task = asyncio.create_task(guarded())
        session.tasks.add(task)
        task.add_done_callback(session.tasks.discard)

    async def _report(self, session: HopSession, control: Stream, error: UnisonoError) -> None:
        """Tell the gateway, which decides what happens; the control stream stays open."""
        code = type(error).__name__.lower()
        next_hop = session.opened.next
        peer = next_hop.node if next_hop is not None and isinstance(error, PeerGone) else None
        try:
            await _send(control, Failed(session.opened.session, code, str(error)[:1024], peer))
        except WireError:
            pass  # noqa: S110 - the gateway has gone too, and the session ends with its stream

    # rows and tokens between hops

    async def _dial(
        self,
        peer: PeerAddress,
        session: HopSession,
        hop: int,
        kind: Literal["rows", "tokens"],
    ) -> Stream:
        stream = await self._transport.dial(peer)
        try:
            await _send(stream, Attach(session.opened.session, hop, kind))
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                reply, _ = decode_frame(await stream.receive())
            if not isinstance(reply, Attached):
                reason = reply.message if isinstance(reply, Refused) else type(reply).__name__
                raise PeerGone(f"node {peer.node[:8]} did not attach: {reason}")
        except TimeoutError:
            await stream.close()
            raise PeerGone(f"node {peer.node[:8]} did not answer") from None
        except WireError:
            await stream.close()
            raise
        return stream

    async def _attach(self, stream: Stream, attach: Attach) -> None:
        session = self._sessions.get(attach.session)
        wanted = "tokens" if attach.hop == 0 else "rows"
        if session is None or attach.hop != session.opened.hop or attach.kind != wanted:
            await _send(stream, Refused("unknown_session", "no such session on this hop"))
            return
        if attach.kind in session.attached:
            await _send(stream, Refused("duplicate", "the session has this stream already"))
            return
        session.attached.add(attach.kind)
        await _send(stream, Attached(attach.session))
        flow = self._tokens_in if attach.kind == "tokens" else self._rows_in
        task = asyncio.ensure_future(flow(session, stream))
        session.tasks.add(task)
        try:
            await task
        except asyncio.CancelledError:
            task.cancel()
        finally:
            session.tasks.discard(task)

    async def _tokens_in(self, session: HopSession, stream: Stream) -> None:
        while True:
            message, _ = decode_frame(await stream.receive())
            if not isinstance(message, Token) or message.session != session.opened.session:
                raise PeerCheating(f"{type(message).__name__} where a token was expected")
            vocabulary = self._engine.decoder.config.vocabulary_size
            if message.token.token >= vocabulary or session.arrived.qsize() > 1:
                raise PeerCheating("a token outside the vocabulary, or before its turn")
            session.arrived.put_nowait(message.token.token)

    async def _rows_in(self, session: HopSession, stream: Stream) -> None:
        back: list[Stream] = []
        try:
            while True:
                message, body = decode_frame(await stream.receive())
                if not isinstance(message, Rows) or message.session != session.opened.session:
                    raise PeerCheating(f"{type(message).__name__} where rows were expected")
                session.check_rows(message.position, len(message.widths))
                await self._rows_step(session, message, body, back)
        finally:
            for returning in back:
                await returning.close()

    async def _rows_step(
        self, session: HopSession, message: Rows, body: memoryview, back: list[Stream]
    ) -> None:
        from unisono.wire.claims import row_hash

        hidden = self._engine.decoder.config.hidden_size
        rows = decode_rows(message.widths, body, hidden)
        offset = 0
        for width in message.widths:
            session.in_hashes.append(row_hash(body[offset : offset + hidden * width]))
            offset += hidden * width
        last = message.position + len(message.widths) - 1
        result = await self._engine.step(
            session.cache, message.position, rows, session.draw_after(last)
        )
        session.out_hashes += result.hashes
        await self._emit(session, message.position, result, back)

    async def _feed(self, session: HopSession, control: Stream) -> None:
        """First hop: the given tokens in chunks, then each token as it comes back."""
        position = 0
        while True:
            chunk = tuple(session.tokens[position : position + PREFILL_ROWS])
            last = position + len(chunk) - 1
            result = await self._engine.step(
                session.cache, position, chunk, session.draw_after(last)
            )
            session.record_tokens(chunk, result)
            await self._emit(session, position, result, [])
            position += len(chunk)
            if position < len(session.tokens):
                continue
            if session.ended:
                return
            session.tokens.append(await session.arrived.get())
            if session.ended:
                return

    async def _emit(
        self, session: HopSession, position: int, result: StepResult, back: list[Stream]
    ) -> None:
        """Pass on what a step gave: rows to the next hop, or a token to both ends."""
        sid = session.opened.session
        if session.next is not None:
            rows = Rows(sid, position, result.widths)
            await session.next.send(encode_frame(rows, b"".join(result.encoded)))
        if result.token is None:
            return
        session.tokens.append(result.token.token)
        control = self._controls[sid]
        await _send(control, Token(sid, result.token))
        if session.opened.first is not None and not session.ended:
            if not back:
                back.append(await self._dial(session.opened.first, session, 0, "tokens"))
            await _send(back[0], Token(sid, result.token))


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Whether the sampler can follow these settings.

    Raises:
        PeerRefused: a value is outside its range; names it.
    """
    s = sampling
    problems = {
        "temperature": s.temperature < 0,
        "top_k": s.top_k < 0,
        "top_p": not 0 < s.top_p <= Q16,
        "min_p": not 0 <= s.min_p <= Q16,
        "repetition_penalty": s.repetition_penalty <= 0,
        "logit_bias": any(not 0 <= t < vocabulary for t, _ in s.logit_bias),
    }
    for name, bad in problems.items():
        if bad:
            raise PeerRefused(f"sampling.{name} is out of range", "bad_request")


def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tuple(tasks):
        task.cancel()


async def _send(stream: Stream, message: Message, body: bytes = b"") -> None:
    await stream.send(encode_frame(message, body))
