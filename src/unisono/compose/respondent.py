"""A node that answers for its claims: light audits and disputes, on streams of their own.

Who may ask: whoever shows the claim. Only the claim's gateway and those who have the receipt know
it, and with the receipt they know prompt and answer: what is opened to them follows from that and
from public weights. A gateway alone would not do, since it may be in league with the node.

What it costs is bounded: one audit and two disputes at a time, so many audits per claim and minute,
in processes that let the node's own work go first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from unisono.clock import Clock
from unisono.compose.regenerating import (
    HOLDINGS,
    LENGTH_BYTES,
    WEIGHTS,
    Ask,
    Declined,
    Defend,
    Hear,
    Load,
    Open,
    Reply,
    Setup,
    Summon,
    encode,
)
from unisono.errors import PeerCheating, PeerGone, PeerRefused
from unisono.execution.kept import KeptRows
from unisono.models.store import StoredModel
from unisono.verification.fraud.moves import MOVE_SECONDS
from unisono.verification.fraud.wire import decode_dispute
from unisono.verification.light.messages import Summons, decode
from unisono.wire.audit_messages import (
    AuditChallenge,
    AuditOpening,
    AuditSummons,
    AuditTrace,
    DisputeCall,
    DisputeMove,
    DisputeOver,
    SettlementAsked,
    SettlementSigned,
)
from unisono.wire.claims import EPOCH_SECONDS, RETENTION_EPOCHS, HopClaim, epoch_at
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.messages import Message, Refused
from unisono.wire.transports.allowance import Bucket
from unisono.wire.transports.base import Stream

if TYPE_CHECKING:  # nodes without a chain do not load its libraries
    from unisono.compose.counsel import Counsel

log = logging.getLogger(__name__)

MAX_AUDITS, MAX_DISPUTES = 1, 2
"""Under way at once."""
AUDITS_PER_CLAIM = 8
"""In all: each costs a prefill of the answer."""
DISPUTES_PER_CLAIM = 4
AUDITS_PER_MINUTE, AUDITS_AT_ONCE = 6.0, 6.0
"""Of all claims together: a steady rate, and so many after a pause."""
MAX_AUDITED_POSITIONS = 8192
CLAIMS_REMEMBERED = 4096
NEXT_SECONDS = 60.0
"""A client that says nothing for so long has gone."""
AUDIT_SECONDS = 600.0
MAX_CHALLENGES = 8192
"""Of one audit."""
AUDIT_NICE, DISPUTE_NICE = 19, 5
"""A dispute is lost by lateness, an audit is not."""


def dispute_threads() -> int:
    """Threads for a dispute: half of this machine's."""
    return max(1, (os.cpu_count() or 1) // 2)


class Respondent:
    """Answers for the claims of one node and one model."""

    def __init__(
        self,
        identity: Identity,
        model: StoredModel,
        kept: KeptRows,
        clock: Clock,
        weights: Load,
        epoch_seconds: int = EPOCH_SECONDS,
        holdings: str = HOLDINGS,
    ) -> None:
        """`weights` reads a block: a function at the top of a module. `epoch_seconds`: the
        network's length of an epoch, which claims name. `holdings`: see `regenerating.Setup`."""
        self.counsel: Counsel | None = None
        """Signs claims for a chain and answers for them there; None: nobody does."""
        self._epoch_seconds = epoch_seconds
        self._identity, self._model = identity, model
        self._kept, self._clock = kept, clock
        self._study = Study(
            identity, model, f"{weights.__module__}:{weights.__qualname__}", holdings
        )
        self._audits = _Turns(MAX_AUDITS, AUDITS_PER_CLAIM)
        self._disputes = _Turns(MAX_DISPUTES, DISPUTES_PER_CLAIM)
        self._bucket = Bucket(AUDITS_PER_MINUTE / 60, AUDITS_AT_ONCE, clock)

    async def handle(self, stream: Stream, message: Message, body: memoryview) -> None:
        """Serve a stream whose first message is an `AuditSummons` or a `DisputeCall`.

        Raises:
            WireError: the stream failed, or the peer broke the protocol.
        """
        try:
            if isinstance(message, AuditSummons):
                await self._audit(stream, bytes(body))
            elif isinstance(message, DisputeCall):
                await self._dispute(stream, bytes(body))
            elif isinstance(message, SettlementAsked):
                await self._sign(stream, message, bytes(body))
            else:
                raise PeerCheating(f"{type(message).__name__} begins no audit and no dispute")
        except PeerRefused as refusal:
            log.info("%s… is refused: %s", stream.peer[:8], refusal)
            await stream.send(encode_frame(Refused(refusal.code, str(refusal)[:1024])))

    async def _audit(self, stream: Stream, data: bytes) -> None:
        summons = decode(data, Summons)
        claim = summons.claim
        self._check(claim)
        if claim.positions > MAX_AUDITED_POSITIONS:
            raise PeerRefused(f"audits of up to {MAX_AUDITED_POSITIONS} positions", "too_long")
        rows = self._rows(claim)
        with self._audits.turn(claim, self._bucket):
            process = await self.process(AUDIT_NICE, 1)
            try:
                async with asyncio.timeout(AUDIT_SECONDS):
                    await self._open(stream, process, Summon(data, *rows))
            except TimeoutError:
                raise PeerGone(f"an audit took more than {AUDIT_SECONDS:.0f} s") from None
            finally:
                await process.close()

    async def _open(self, stream: Stream, process: Regeneration, summon: Summon) -> None:
        trace = await process.ask(summon)
        await stream.send(encode_frame(AuditTrace(), trace))
        for _ in range(MAX_CHALLENGES):
            try:
                message, body = await _next(stream, NEXT_SECONDS)
            except PeerGone:
                return  # the client has seen what it wanted
            if not isinstance(message, AuditChallenge):
                raise PeerCheating(f"{type(message).__name__} in an audit")
            opening = await process.ask(Open(bytes(body)))
            await stream.send(encode_frame(AuditOpening(), opening))

    async def _dispute(self, stream: Stream, data: bytes) -> None:
        dispute = decode_dispute(data)
        claim = dispute.subject.claim
        self._check(claim)
        rows = self._rows(claim) if not dispute.widths else (b"", b"")
        with self._disputes.turn(claim):
            process = await self.process(DISPUTE_NICE, dispute_threads())
            try:
                moves = await process.ask(Defend(data, *rows))
                while True:
                    for move in msgspec.msgpack.decode(moves, type=list[bytes]):
                        await stream.send(encode_frame(DisputeMove(), move))
                    message, body = await _next(stream, 2.0 * MOVE_SECONDS)
                    if isinstance(message, DisputeOver):
                        log.warning("a dispute about claim %s… is over", claim.session[:8])
                        return
                    if not isinstance(message, DisputeMove):
                        raise PeerCheating(f"{type(message).__name__} in a dispute")
                    moves = await process.ask(Hear(bytes(body)))
            finally:
                await process.close()

    def _check(self, claim: HopClaim) -> None:
        """Whether this node has to answer for a claim at all.

        Raises:
            PeerCheating: it did not sign it.
            PeerRefused: it is too old, or of another model than this node has.
        """
        if claim.node != self._identity.node_id or not claim.signature_is_good():
            raise PeerCheating("a claim that this node did not sign")
        if claim.model != self._model.id:
            raise PeerRefused(f"model {claim.model[:12]}… is not here", "not_held")
        if claim.epoch < epoch_at(self._clock.now(), self._epoch_seconds) - RETENTION_EPOCHS:
            raise PeerRefused(f"claims are opened for {RETENTION_EPOCHS} epochs", "gone")

    def _rows(self, claim: HopClaim) -> tuple[bytes, bytes]:
        """Widths and rows that came in, of a hop that does not begin the model; may be empty."""
        rows = self._kept.rows(claim) if claim.layers.start else None
        if not rows:
            return b"", b""
        hidden = self._model.manifest.config.hidden_size
        return bytes(len(row) // hidden for row in rows), b"".join(rows)

    async def _sign(self, stream: Stream, message: SettlementAsked, data: bytes) -> None:
        if self.counsel is None:
            raise PeerRefused("this node has no account on a chain", "no_chain")
        from unisono.settlement.briefs import decode_brief

        brief = decode_brief(data)
        claim = brief.subject.claim
        self._check(claim)
        if stream.peer != claim.gateway:
            raise PeerRefused("claims are signed for the gateway that they name", "not_yours")
        if claim.layers.start:
            widths, rows = self._rows(claim)
            brief = msgspec.structs.replace(brief, widths=widths, rows=rows)
        signature = await self.counsel.sign(brief, message.payer)
        await stream.send(encode_frame(SettlementSigned(), signature))

    async def process(self, nice: int, threads: int) -> Regeneration:
        """See `Study.process`."""
        return await self._study.process(nice, threads)


class _Turns:
    """So many at once, and so many for each claim."""

    def __init__(self, at_once: int, per_claim: int) -> None:
        self._at_once, self._per_claim = at_once, per_claim
        self._running = 0
        self._used: OrderedDict[bytes, int] = OrderedDict()

    @contextmanager
    def turn(self, claim: HopClaim, bucket: Bucket | None = None) -> Generator[None]:
        """Raises PeerRefused if there is none."""
        name = claim.signed_bytes()
        used = self._used.get(name, 0)
        if used >= self._per_claim:
            raise PeerRefused(f"this claim was opened {used} times already", "too_often")
        if self._running >= self._at_once:
            raise PeerRefused(f"{self._running} are under way; come back in a minute", "capacity")
        if bucket is not None and not bucket.allows(1.0):
            raise PeerRefused("too many just now; come back in a minute", "too_often")
        self._used[name] = used + 1
        self._used.move_to_end(name)
        while len(self._used) > CLAIMS_REMEMBERED:
            self._used.popitem(last=False)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


@dataclass(frozen=True)
class Study:
    """Starts processes that compute again, of one party and one model."""

    identity: Identity
    model: StoredModel
    weights: str = WEIGHTS
    """MODULE:NAME of what reads a block's weights."""
    holdings: str = HOLDINGS
    """See `regenerating.Setup`."""

    async def process(self, nice: int, threads: int) -> Regeneration:
        """One; whoever asks for it closes it.

        Raises:
            PeerRefused: it does not start.
        """
        setup = Setup(
            self.identity.secret_seed(),
            str(self.model.path.parent.parent),
            self.model.id,
            self.weights,
            self.holdings,
            threads,
            nice,
        )
        return await Regeneration.start(setup)


class Regeneration:
    """A process that regenerates (`compose.regenerating`)."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, setup: Setup) -> Regeneration:
        made = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "unisono.compose.regenerating",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )
        await made._send(setup)
        return made

    async def ask(self, ask: Ask) -> bytes:
        """What it answers.

        Raises:
            PeerRefused: it cannot, or has ended.
            PeerCheating: the peer asks what no honest peer asks.
        """
        await self._send(ask)
        assert self._process.stdout is not None
        try:
            head = await self._process.stdout.readexactly(LENGTH_BYTES)
            data = await self._process.stdout.readexactly(int.from_bytes(head, "little"))
        except asyncio.IncompleteReadError:
            raise PeerRefused("what regenerates has ended; see the node's log", "failed") from None
        reply = msgspec.msgpack.decode(data, type=Reply)
        if not isinstance(reply, Declined):
            return reply.data
        if reply.code:
            raise PeerRefused(reply.message, reply.code)
        raise PeerCheating(reply.message)

    async def _send(self, message: Setup | Ask) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode(message))
            await self._process.stdin.drain()
        except ConnectionError:
            raise PeerRefused("what regenerates has ended; see the node's log", "failed") from None

    async def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


async def _next(stream: Stream, seconds: float) -> tuple[Message, memoryview]:
    try:
        async with asyncio.timeout(seconds):
            return decode_frame(await stream.receive())
    except TimeoutError:
        raise PeerGone(f"nothing came in {seconds:.0f} s") from None
