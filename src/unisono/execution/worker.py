"""The worker service of a node: sessions of one block of layers, over streams.

A stream begins with `Open` (from a gateway: it stays as the session's control stream),
`Attach` (from another hop: rows, or tokens on their way back), `Probe` or `Ping`. Anything
else, or anything out of order, ends the stream; the node stays up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import numpy as np

from unisono.clock import Clock, SystemClock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, UnisonoError, WireError
from unisono.execution.engine import Engine
from unisono.execution.flow import Flow, PeerLost, attach
from unisono.execution.session import HopSession
from unisono.models.cache import PAGE
from unisono.types import ModelId, PeerAddress, SessionId
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import (
    Attach,
    Attached,
    Claimed,
    Failed,
    Finish,
    Message,
    Open,
    Opened,
    Ping,
    Pong,
    Refused,
)
from unisono.wire.records import LEASE_SECONDS, Info, NodeRecord, Probe
from unisono.wire.transports.base import Stream, Transport

log = logging.getLogger(__name__)

SILENCE_SECONDS = 15.0
"""A gateway that sends nothing this long (it pings every second) has gone."""
FIRST_MESSAGE_SECONDS = 10.0
OVERCOMMIT = 3.0
"""Answers rarely use all the positions they ask for; those who do are moved out for a while."""


class Worker:
    """Serves one block of layers until its transport is closed."""

    def __init__(
        self,
        engine: Engine,
        model: ModelId,
        identity: Identity,
        transport: Transport,
        address: PeerAddress,
        *,
        overcommit: float = OVERCOMMIT,
        clock: Clock | None = None,
    ) -> None:
        """`overcommit`: how many times over the memory for keys and values may be promised."""
        self._engine = engine
        self._model = model
        self._identity = identity
        self._transport = transport
        self._address = address
        self._clock = clock or SystemClock()
        self._layers = engine.decoder.layers
        store = engine.decoder.store
        self._promised = 0
        self._limit = int(store.budget * overcommit)
        self._position_bytes = sum(store.bytes) / PAGE
        self._sessions: dict[SessionId, HopSession] = {}
        self._sequence = 0

    @property
    def sessions(self) -> int:
        """Sessions held now."""
        return len(self._sessions)

    @property
    def free_positions(self) -> int:
        """Positions that new sessions may reserve, if each needs every layer's memory."""
        return max(0, int((self._limit - self._promised) / self._position_bytes))

    def record(self) -> NodeRecord:
        """This node's signed description, good for one lease."""
        now_ms = int(self._clock.now() * 1000)
        self._sequence = max(self._sequence + 1, now_ms)
        return NodeRecord(
            node=self._identity.node_id,
            address=self._address,
            model=self._model,
            layers=self._layers,
            free_positions=self.free_positions,
            sessions=self.sessions,
            sequence=self._sequence,
            expires=now_ms + int(LEASE_SECONDS * 1000),
        ).signed_by(self._identity)

    async def handle(self, stream: Stream) -> None:
        """Serve one stream that a peer opened.

        Raises:
            WireError: the stream failed, or the peer broke the protocol.
        """
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                message, body = decode_frame(await stream.receive())
        except TimeoutError:
            raise PeerGone(f"nothing came in {FIRST_MESSAGE_SECONDS:.0f} s") from None
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

    async def _control(self, stream: Stream, opened: Open, body: bytes) -> None:
        try:
            session = self._open(stream, opened, body)
        except PeerRefused as refusal:
            await _send(stream, Refused(refusal.code, str(refusal)[:1024]))
            return
        try:
            if opened.next is not None:
                hop = opened.hop + 1
                session.next = await attach(self._transport, opened.next, session, hop, "rows")
            await _send(stream, Opened(opened.session))
            if session.is_first:
                flow = Flow(self._engine, self._transport, session)
                self._spawn(session, flow.feed())
            await self._obey(session)
        except PeerLost as error:
            await self._report(session, error)
            await self._obey(session)
        finally:
            await self._drop(session)

    def _open(self, stream: Stream, opened: Open, body: bytes) -> HopSession:
        config = self._engine.decoder.config
        if stream.peer != opened.gateway:
            raise PeerRefused("the session names another gateway than the peer", "wrong_gateway")
        if opened.model != self._model or opened.layers != self._layers:
            raise PeerRefused(
                f"this node holds layers {self._layers} of model {self._model[:12]}…, not "
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
        if opened.positions < opened.prompt + opened.max_tokens - 1:
            raise PeerRefused(
                f"{opened.positions} positions cannot hold a prompt of {opened.prompt} tokens and "
                f"an answer of {opened.max_tokens}",
                "malformed",
            )
        given = opened.start if opened.hop in (0, opened.hops - 1) else 0
        if len(body) != 4 * given:
            raise PeerRefused(f"{len(body)} bytes of tokens; {given} tokens announced", "malformed")
        tokens: list[int] = np.frombuffer(body, dtype="<u4").tolist()
        if any(t >= config.vocabulary_size for t in tokens):
            raise PeerRefused(
                f"a token id is outside the vocabulary of {config.vocabulary_size}", "malformed"
            )
        problem = opened.sampling.problem(config.vocabulary_size)
        if problem is not None:
            raise PeerRefused(problem, "malformed")
        store = self._engine.decoder.store
        needed = store.bytes_for(opened.positions)
        if not store.fits(opened.positions) or self._promised + needed > self._limit:
            raise PeerRefused(
                f"{opened.positions} positions do not fit: {self.free_positions} are free",
                "capacity",
            )
        self._promised += needed
        cache = self._engine.decoder.new_cache(opened.positions)
        session = HopSession(opened, tokens, cache, stream)
        self._sessions[opened.session] = session
        return session

    async def _obey(self, session: HopSession) -> None:
        """Answer the gateway until it closes the stream."""
        stream = session.control
        while True:
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message, _ = decode_frame(await stream.receive())
            except TimeoutError:
                raise PeerGone(f"the gateway was silent for {SILENCE_SECONDS:.0f} s") from None
            if isinstance(message, Ping):
                await _send(stream, Pong(message.nonce))
            elif isinstance(message, Finish) and message.session == session.opened.session:
                await self._finish(session, message.tokens)
            else:
                raise PeerCheating(f"{type(message).__name__} on a control stream")

    async def _finish(self, session: HopSession, tokens: int) -> None:
        session.cancel()  # an answer that a stop string cut may still be computing
        try:
            claim = session.claim(tokens, self._identity)
        except PeerRefused as refusal:
            await _send(session.control, Refused(refusal.code, str(refusal)))
            return
        message, tags = Claimed.split(claim)
        await _send(session.control, message, tags)

    async def _attach(self, stream: Stream, message: Attach) -> None:
        session = self._sessions.get(message.session)
        wanted = "tokens" if message.hop == 0 else "rows"
        if session is None or message.hop != session.opened.hop or message.kind != wanted:
            await _send(stream, Refused("unknown_session", "no such session on this hop"))
            return
        if session.attached:
            await _send(stream, Refused("duplicate", "the session has this stream already"))
            return
        session.attached = True
        await _send(stream, Attached(message.session))
        flow = Flow(self._engine, self._transport, session)
        work = flow.tokens_in(stream) if wanted == "tokens" else flow.rows_in(stream)
        self._spawn(session, work)
        # a stream closed before the gateway has judged would make this hop look like the lost one
        await session.dropped.wait()

    def _spawn(self, session: HopSession, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends or the session does; failures go to the gateway."""

        async def guarded() -> None:
            try:
                await work
            except UnisonoError as error:
                await self._report(session, error)
            except Exception as error:
                # A defect here must not leave the gateway waiting for a node that answers pings.
                log.exception("session %s failed", session.opened.session[:8])
                problem = f"the node has a defect: {type(error).__name__}, see its log"
                await self._report(session, UnisonoError(problem))

        task = asyncio.create_task(guarded())
        session.tasks.add(task)
        task.add_done_callback(session.tasks.discard)

    async def _report(self, session: HopSession, error: UnisonoError) -> None:
        """Tell the gateway, which decides what happens; the control stream stays open."""
        log.info("session %s: %s", session.opened.session[:8], error)
        peer = error.peer if isinstance(error, PeerLost) else None
        code = "peer_lost" if peer else "failed"
        try:
            failed = Failed(session.opened.session, code, str(error)[:1024], peer)
            await _send(session.control, failed)
        except WireError:
            log.debug("session %s: its gateway has gone too", session.opened.session[:8])

    async def _drop(self, session: HopSession) -> None:
        del self._sessions[session.opened.session]
        self._promised -= self._engine.decoder.store.bytes_for(session.opened.positions)
        session.cancel()
        self._engine.release(session.cache)
        session.dropped.set()
        for stream in (session.next, session.back):
            if stream is not None:
                await stream.close()


async def _send(stream: Stream, message: Message, body: bytes = b"") -> None:
    await stream.send(encode_frame(message, body))
