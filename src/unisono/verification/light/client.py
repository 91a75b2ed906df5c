"""A light audit over a stream: the client's side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from unisono.errors import PeerCheating, PeerGone, PeerRefused
from unisono.types import canonical
from unisono.verification.light.audit import LightAudit, LightVerdict
from unisono.verification.light.messages import Challenge, TraceCommitment, decode
from unisono.wire.audit_messages import AuditChallenge, AuditOpening, AuditSummons, AuditTrace
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Message, Refused
from unisono.wire.transports.base import Stream

TRACE_SECONDS = 600.0
"""A node regenerates the whole answer beside its other work."""
OPENING_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Checked:
    """One challenge, what came back, and what it is worth."""

    challenge: Challenge
    opening: bytes
    seconds: float
    """Of checking, without the node's time."""
    verdict: LightVerdict


async def checks(audit: LightAudit, stream: Stream) -> AsyncIterator[Checked]:
    """Play an audit with the claim's node at the other end of a stream, check by check. It ends
    after the first fault.

    Raises:
        PeerRefused: the node will not open the claim, and says why.
        PeerGone: it did not answer in time.
        PeerCheating: it broke the protocol.
    """
    await stream.send(encode_frame(AuditSummons(), canonical(audit.summons())))
    message, body = await _next(stream, TRACE_SECONDS)
    if not isinstance(message, AuditTrace):
        raise PeerCheating(f"{type(message).__name__} where a trace is committed to")
    for challenge in audit.challenges(decode(body, TraceCommitment)):
        await stream.send(encode_frame(AuditChallenge(), canonical(challenge)))
        message, body = await _next(stream, OPENING_SECONDS)
        if not isinstance(message, AuditOpening):
            raise PeerCheating(f"{type(message).__name__} where cells are opened")
        started = time.perf_counter()
        verdict = await asyncio.to_thread(audit.judge, challenge, body)
        yield Checked(challenge, body, time.perf_counter() - started, verdict)
        if verdict.verdict != "VALID":
            return


async def _next(stream: Stream, seconds: float) -> tuple[Message, bytes]:
    try:
        async with asyncio.timeout(seconds):
            message, body = decode_frame(await stream.receive())
    except TimeoutError:
        raise PeerGone(f"the node did not answer in {seconds:.0f} s") from None
    if isinstance(message, Refused):
        raise PeerRefused(message.message, message.code)
    return message, bytes(body)
