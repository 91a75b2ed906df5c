"""The worker service of a node: sessions of one block of layers, over links.

A stream begins with `Multiplex` (a link: it carries the messages of many sessions, from a
gateway or between hops), `Probe` or `Ping`. Anything else ends the stream; the node stays up.
What a session's neighbours and its gateway may say is decided by the peer that proved its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np

from unisono.clock import Clock, SystemClock
from unisono.errors import PeerCheating, PeerGone, PeerRefused, UnisonoError, WireError
from unisono.execution.credit import Meter, Till
from unisono.execution.draft import PastAnswers
from unisono.execution.early import EarlyMessages
from unisono.execution.engine import Engine
from unisono.execution.flow import Flow
from unisono.execution.kept import KeptRows
from unisono.execution.pages import NAME_BYTES, split_names
from unisono.execution.session import ArrivedRows, HopSession, NamedPages
from unisono.execution.signed import SignedClaims
from unisono.models.cache import PAGE
from unisono.types import ModelId, NodeId, PeerAddress, SessionId
from unisono.wire.claims import EPOCH_SECONDS
from unisono.wire.ensemble import Given
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.link import Link, Links
from unisono.wire.messages import (
    Claimed,
    Close,
    Failed,
    Finish,
    Message,
    Multiplex,
    Open,
    Opened,
    Pages,
    Ping,
    Pong,
    Refused,
    Rewire,
    Rows,
    Spared,
    Tokens,
)
from unisono.wire.payment_messages import Pay
from unisono.wire.records import LEASE_SECONDS, Info, NodeRecord, Probe
from unisono.wire.transports.base import Stream, Transport

log = logging.getLogger(__name__)

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
        kept: KeptRows | None = None,
        till: Till | None = None,
        epoch_seconds: int = EPOCH_SECONDS,
        last_signed: Path | None = None,
    ) -> None:
        """`overcommit`: how many times over the memory for keys and values may be promised.
        `kept`: where rows that came in are kept once they were signed for; None: nowhere.
        `till`: who takes payments; None: sessions are free.
        `epoch_seconds`: the network's length of an epoch, which claims name."""
        self._engine = engine
        self._model = model
        self._identity = identity
        self._transport = transport
        self.address = address
        """Where this node is reached now."""
        self._clock = clock or SystemClock()
        self._layers = engine.decoder.layers
        store = engine.decoder.store
        self._promised = 0
        self._limit = int(store.budget * overcommit)
        self._position_bytes = sum(store.bytes) / PAGE
        self._sessions: dict[SessionId, HopSession] = {}
        self._early = EarlyMessages(self._clock)
        self._past = PastAnswers()
        self._signed = SignedClaims(identity, self._clock, epoch_seconds, last_signed)
        self._kept = kept
        self._till = till
        self._links = Links(transport, self._clock, self._receive, self._lost)
        self._sequence = 0
        self.leaving = False
        """Whether new sessions are refused, since the node is about to go."""

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
        cost = self._engine.cost
        return NodeRecord(
            node=self._identity.node_id,
            address=self.address,
            model=self._model,
            layers=self._layers,
            free_positions=self.free_positions,
            sessions=self.sessions,
            sequence=self._sequence,
            expires=now_ms + int(LEASE_SECONDS * 1000),
            step_us=int((cost.fixed + cost.row) * 1e6) if cost.measured else 0,
            row_us=int(self._engine.row_seconds * 1e6),
            queue=self._engine.queued,
            leaving=self.leaving,
        ).signed_by(self._identity)

    async def handle(self, stream: Stream) -> None:
        """Serve one stream that a peer opened.

        Raises:
            WireError: the stream failed, or the peer broke the protocol.
        """
        try:
            async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
                message, _ = decode_frame(await stream.receive())
        except TimeoutError:
            raise PeerGone(f"nothing came in {FIRST_MESSAGE_SECONDS:.0f} s") from None
        if isinstance(message, Multiplex):
            await self._links.accept(stream)
        elif isinstance(message, Probe):
            await stream.send(encode_frame(Info(self.record())))
        elif isinstance(message, Ping):
            await stream.send(encode_frame(Pong(message.nonce)))
        else:
            raise PeerCheating(f"a stream cannot begin with {type(message).__name__}")

    async def drain(self, seconds: float) -> None:
        """Take no new sessions, tell gateways, and return when the last one has gone, after
        `seconds` at most."""
        self.leaving = True
        for session in self._sessions.values():
            session.control.post(Failed(session.id, "leaving", "this node is leaving", None))
        deadline = self._clock.monotonic() + seconds
        while self._sessions and self._clock.monotonic() < deadline:
            await self._clock.sleep(0.05)

    async def close(self) -> None:
        """End all sessions and links; idempotent."""
        for session in tuple(self._sessions.values()):
            self._drop(session)
        await self._links.close()

    def _receive(self, link: Link, message: Message, body: memoryview) -> None:
        if isinstance(message, Open):
            self._open(link, message, bytes(body))
        elif isinstance(message, Rows | Pages | Tokens):
            session = self._sessions.get(message.session)
            if session is None:  # it may have overtaken the session's `Open`
                self._early.put(message.session, (link.peer, message, bytes(body)))
            else:
                self._arrive(session, link.peer, message, body)
        elif isinstance(message, Rewire | Given | Finish | Close):
            self._obey(link, message)
        elif isinstance(message, Spared):
            self._hear(link.peer, message)
        elif isinstance(message, Pay) and self._till is not None:
            self._till.take(link, message)
        elif isinstance(message, Refused | Failed):
            log.info("node %s: %s", link.peer[:8], message.message)
        else:
            raise PeerCheating(f"{type(message).__name__} on a link to a node")

    def _open(self, link: Link, opened: Open, body: bytes) -> None:
        try:
            session = self._admit(link, opened, body)
        except PeerRefused as refusal:
            link.post(Refused(refusal.code, str(refusal)[:1024], opened.session))
            return
        link.post(Opened(opened.session))
        self._spawn(session, self._compute(session))
        if opened.next is not None:
            self._spawn(session, self._connect(session, opened.next, opened.resume))
        for peer, message, content in self._early.take(opened.session):
            self._arrive(session, peer, message, memoryview(content))

    async def _compute(self, session: HopSession) -> None:
        """Run a session's flow. When it ends nothing more is kept for it.

        Raises:
            UnisonoError: the flow cannot go on.
        """
        try:
            await Flow(self._engine, session, self._clock, self._past).run()
        finally:
            session.previous = None
            session.inbox.forget()

    def _admit(self, link: Link, opened: Open, body: bytes) -> HopSession:
        """Take a session in.

        Raises:
            PeerRefused: it cannot be served here, or not now.
        """
        config = self._engine.decoder.config
        if link.peer != opened.gateway:
            raise PeerRefused("the session names another gateway than the peer", "wrong_gateway")
        if self.leaving:
            raise PeerRefused("this node is leaving", "leaving")
        if wait := self._signed.wait:
            raise PeerRefused(
                f"this node was started again in an epoch in which it signed: in {wait:.0f} s it "
                "takes sessions again",
                "not_ready",
            )
        if opened.model != self._model or opened.layers != self._layers:
            raise PeerRefused(
                f"this node holds layers {self._layers} of model {self._model[:12]}…, not "
                f"{opened.layers} of {opened.model[:12]}…",
                "not_held",
            )
        if opened.session in self._sessions or opened.session in self._signed:
            raise PeerRefused("the session is or was open already", "duplicate")
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
        meter = Meter(opened.session, self._clock)
        if self._till is not None:
            self._till.admit(link.peer, opened, meter.grow)
            meter.start(self._till.window, opened.positions, link.post)
        self._promised += needed
        cache = self._engine.decoder.new_cache(opened.positions)
        session = HopSession(opened, tokens, cache, link, meter)
        if self._kept is not None and self._layers.start:
            session.rows_in = self._kept.recorder()
        session.report = lambda error: self._report(session, error)
        session.reply = self._reply
        self._sessions[opened.session] = session
        return session

    def _hear(self, peer: NodeId, message: Spared) -> None:
        """What the hop behind has of pages; what others say is dropped."""
        session = self._sessions.get(message.session)
        if session is not None and session.next is not None and session.next.node == peer:
            session.inbox.put(message)

    def _reply(self, node: NodeId, spared: Spared) -> None:
        link = self._links.existing(node)
        if link is not None:
            link.post(spared)

    def _arrive(
        self, session: HopSession, peer: NodeId, message: Rows | Pages | Tokens, body: memoryview
    ) -> None:
        """Rows, names of pages or tokens for a session. Those of a peer that is not, or no longer,
        the hop before are dropped."""
        fits = isinstance(message, Tokens) == session.is_first
        if peer != session.previous or not fits:
            log.info("session %s: %s of %s dropped", session.id[:8], type(message).__name__, peer)
        elif isinstance(message, Rows):
            hidden = self._engine.decoder.config.hidden_size
            try:
                if message.position + len(message.widths) > session.opened.positions:
                    raise PeerCheating(
                        f"rows up to position {message.position + len(message.widths) - 1} in a "
                        f"session of {session.opened.positions} positions"
                    )
                vocabulary = self._engine.decoder.config.vocabulary_size
                if any(token >= vocabulary for token in message.tokens):
                    raise PeerCheating(f"rows with tokens outside the vocabulary of {vocabulary}")
                session.inbox.put(ArrivedRows.of(message, body, hidden))
            except PeerCheating as error:
                session.give_up_previous(error)
        elif isinstance(message, Pages):
            if len(body) % NAME_BYTES or len(body) > NAME_BYTES * session.opened.positions // PAGE:
                problem = f"{len(body)} bytes of names for {session.opened.positions} positions"
                session.give_up_previous(PeerCheating(problem))
            else:
                session.inbox.put(NamedPages(peer, message.turn, split_names(bytes(body))))
        else:
            session.inbox.put(message)

    async def _connect(self, session: HopSession, address: PeerAddress, position: int) -> None:
        """Send to another hop from now on, from `position` on.

        Raises:
            PeerLost: it cannot be reached.
            PeerRefused: the journal does not reach back that far.
        """
        try:
            link = await self._links.to(address)
        except WireError as error:
            raise PeerLost(address.node, error) from error
        self._disconnect(session)
        if link.problem is not None:  # just now, and those who used it were told before
            raise PeerLost(address.node, link.problem)
        link.users.add(session)
        session.next = address
        session.outlet.rewire(link, position)

    def _disconnect(self, session: HopSession) -> None:
        link, session.outlet.link = session.outlet.link, None
        if link is not None:
            link.users.discard(session)

    def _obey(self, link: Link, message: Rewire | Given | Finish | Close) -> None:
        """Do what a session's gateway asks for."""
        session = self._sessions.get(message.session)
        if session is None or link is not session.control:
            if not isinstance(message, Close):
                problem = "no such session on this node"
                link.post(Refused("unknown_session", problem, message.session))
        elif isinstance(message, Close):
            self._drop(session)
        elif isinstance(message, Finish):
            self._finish(session, message.tokens)
        elif isinstance(message, Rewire):
            self._rewire(session, message)
        elif session.opened.weigh and session.is_last:
            session.inbox.put(message)
        else:
            problem = "this hop is not given tokens: it chooses them, or is not the last"
            link.post(Refused("malformed", problem, message.session))

    def _rewire(self, session: HopSession, message: Rewire) -> None:
        if message.previous is not None:
            session.previous = message.previous
            session.inbox.forget()  # the new one sends again what is not computed yet
            session.inbox.put(message)
        if message.next is not None:
            self._spawn(session, self._rewire_next(session, message.next, message.resume))

    async def _rewire_next(self, session: HopSession, address: PeerAddress, position: int) -> None:
        self._disconnect(session)
        await self._connect(session, address, position)
        session.control.post(session.rewired())

    def _finish(self, session: HopSession, tokens: int) -> None:
        """Sign for an answer; a hop that is still catching up does so when it has."""
        if tokens < 1 or tokens > session.opened.max_tokens:
            problem = f"{tokens} tokens of an answer of at most {session.opened.max_tokens}"
            session.control.post(Refused("malformed", problem, session.id))
            return
        try:
            claim = self._signed.sign(session, tokens)
        except PeerRefused as refusal:
            if refusal.code == "signed":
                session.control.post(Refused(refusal.code, str(refusal), session.id))
                return
            session.progressed = lambda: self._finish(session, tokens)
            return
        session.progressed = lambda: None
        if self._till is not None:
            self._till.finish(session.id, tokens)
        if session.rows_in is not None:
            session.rows_in.signed(claim)
        message, tags = Claimed.split(claim)
        session.control.post(message, tags)

    def _spawn(self, session: HopSession, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it ends or the session does; failures go to the gateway."""

        async def guarded() -> None:
            try:
                await work
            except UnisonoError as error:
                self._report(session, error)
            except Exception as error:
                # A defect here must not leave the gateway waiting for a node that answers pings.
                log.exception("session %s failed", session.id[:8])
                problem = f"the node has a defect: {type(error).__name__}, see its log"
                self._report(session, UnisonoError(problem))

        task = asyncio.create_task(guarded())
        session.tasks.add(task)
        task.add_done_callback(session.tasks.discard)

    def _report(self, session: HopSession, error: UnisonoError) -> None:
        """Tell the gateway, which decides what happens; the session stays."""
        log.info("session %s: %s", session.id[:8], error)
        peer = error.peer if isinstance(error, PeerLost) else None
        if isinstance(error, PeerCheating):
            peer = session.previous
        code = "peer_lost" if peer else "failed"
        if isinstance(error, PeerRefused):
            code = error.code
        session.control.post(Failed(session.id, code, str(error)[:1024], peer))

    def _lost(self, link: Link) -> None:
        """A link has gone: its sessions end, or their gateways learn that a hop is lost."""
        for session in tuple(self._sessions.values()):
            if session.control is link:
                self._drop(session)
            elif session.outlet.link is link:
                session.outlet.link = None
                assert link.problem is not None
                self._report(session, PeerLost(link.peer, link.problem))

    def _drop(self, session: HopSession) -> None:
        del self._sessions[session.id]
        self._promised -= self._engine.decoder.store.bytes_for(session.opened.positions)
        session.cancel()
        if self._till is not None:
            self._till.drop(session.id)
        if session.rows_in is not None:
            session.rows_in.close()
        self._disconnect(session)
        self._engine.release(session.cache)
        if session.is_first:
            self._past.learn(session.tokens, session.opened.prompt)


class PeerLost(WireError):
    """A neighbour in the ring failed; `peer` says which."""

    def __init__(self, peer: NodeId, cause: WireError) -> None:
        super().__init__(f"node {peer[:8]}: {cause}")
        self.peer = peer
