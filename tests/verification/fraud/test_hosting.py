"""Disputes over streams: two sides, and an arbiter that is one of them or a third node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from tests.verification.fraud.dispute import (
    ARBITER,
    CHALLENGER,
    HOP,
    Answer,
    answer_of,
    lying_holdings,
    one_element,
)
from unisono.clock import VirtualClock
from unisono.errors import PeerCheating, PeerRefused
from unisono.types import PeerAddress, canonical
from unisono.verification.fraud.hosting import GameHost, Side, play_before, play_here
from unisono.verification.fraud.moves import MOVE_SECONDS, Challenge
from unisono.verification.fraud.parties import Challenger, Defender
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.transcript import Transcript, judge
from unisono.verification.fraud.wire import Dispute, decode_dispute
from unisono.wire.audit_messages import DisputeCall, DisputeHost, DisputeMove, DisputeOver
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Refused
from unisono.wire.transports.base import Stream
from unisono.wire.transports.memory import MemoryNetwork

LIE = Cell(2, 6)


@pytest.fixture(scope="module")
def answer() -> Answer:
    return answer_of("llama")


def dispute_of(answer: Answer, arbiter: str) -> Dispute:
    subject = answer.subject()
    challenge = Challenge(subject.claim.signed_bytes(), CHALLENGER.node_id, arbiter, bytes(16))
    return Dispute.of(subject, challenge.signed_by(CHALLENGER), answer.tokens, None)


class Court:
    """A defender, a challenger and a third node on one network."""

    def __init__(self, defender: Defender | None, code: str = "") -> None:
        self.clock = VirtualClock()
        self.hub = MemoryNetwork(self.clock)
        self.hop, self.challenger, self.arbiter = (
            self.hub.transport(identity) for identity in (HOP, CHALLENGER, ARBITER)
        )
        self._defender, self._code = defender, code
        self.over = asyncio.Event()
        self.told = b""

    async def defend(self, stream: Stream) -> None:
        message, body = decode_frame(await stream.receive())
        assert isinstance(message, DisputeCall)
        if self._code:
            await stream.send(encode_frame(Refused(self._code, "not now")))
        if self._defender is None:
            await asyncio.Event().wait()
        assert self._defender is not None
        dispute = decode_dispute(bytes(body))
        side = Side(dispute.subject, dispute.challenge, "defender")
        while True:
            for move in side.speak(self._defender):
                await stream.send(encode_frame(DisputeMove(), move))
            message, body = decode_frame(await stream.receive())
            if isinstance(message, DisputeOver):
                self.told = bytes(body)
                self.over.set()
                return
            side.hear(bytes(body))

    async def host(self, stream: Stream) -> None:
        message, body = decode_frame(await stream.receive())
        assert isinstance(message, DisputeHost)
        await GameHost(ARBITER, self.arbiter, self.clock).handle(stream, message, body)


@asynccontextmanager
async def court(defender: Defender | None, code: str = "") -> AsyncIterator[Court]:
    made = Court(defender, code)
    await asyncio.gather(*(t.bind() for t in (made.hop, made.challenger, made.arbiter)))
    serving = [
        asyncio.create_task(made.hop.serve(made.defend)),
        asyncio.create_task(made.arbiter.serve(made.host)),
    ]
    try:
        yield made
    finally:
        for task in serving:
            task.cancel()
        for transport in (made.hop, made.challenger, made.arbiter):
            await transport.close()


async def played(made: Court, answer: Answer, *, third: bool) -> Transcript:
    player = Challenger(CHALLENGER, answer.honest)
    defender: PeerAddress = await made.hop.bind()
    if not third:
        stream = await made.challenger.dial(defender)
        dispute = dispute_of(answer, CHALLENGER.node_id)
        return await play_here(dispute, player, CHALLENGER, stream, made.clock)
    stream = await made.challenger.dial(await made.arbiter.bind())
    return await play_before(dispute_of(answer, ARBITER.node_id), player, defender, stream)


@pytest.mark.parametrize("third", [False, True])
async def test_a_hop_that_lied_is_convicted_and_an_honest_one_is_not(
    answer: Answer, third: bool
) -> None:
    liar = Defender(HOP, lying_holdings(answer, LIE, one_element("down", 3, 1 << 45)))
    for defender, guilty in ((liar, HOP), (Defender(HOP, answer.honest), CHALLENGER)):
        async with court(defender) as made:
            transcript = await played(made, answer, third=third)
            verdict = judge(transcript)
            assert verdict.verdict == "INVALID"
            assert verdict.fault is not None
            assert verdict.fault.node == guilty.node_id
            await made.over.wait()
            assert judge(msgspec.json.decode(made.told, type=Transcript)) == verdict


async def late(made: Court, answer: Answer, *, third: bool) -> Transcript:
    playing = asyncio.create_task(played(made, answer, third=third))
    for _ in range(50):
        await asyncio.sleep(0)
    await made.clock.advance(MOVE_SECONDS + 1)
    return await playing


@pytest.mark.parametrize("code", ["", "capacity"])
async def test_a_third_node_holds_silence_and_refusal_against_the_hop(
    answer: Answer, code: str
) -> None:
    async with court(None, code) as made:
        transcript = await late(made, answer, third=True)
    verdict = judge(transcript, {ARBITER.node_id})
    assert verdict.fault is not None
    assert (verdict.verdict, verdict.fault.kind) == ("INVALID", "timeout")
    assert judge(transcript).verdict == "INCONCLUSIVE"


async def test_a_challenger_hears_why_a_hop_does_not_play(answer: Answer) -> None:
    async with court(None, "too_often") as made:
        with pytest.raises(PeerRefused) as caught:
            await played(made, answer, third=False)
    assert caught.value.code == "too_often"


async def test_an_arbiter_hosts_only_the_challengers_own_games(answer: Answer) -> None:
    async with court(None) as made:
        stream = await made.challenger.dial(await made.arbiter.bind())
        host = GameHost(ARBITER, made.arbiter, made.clock)
        body = memoryview(canonical(dispute_of(answer, ARBITER.node_id)))
        with pytest.raises(PeerCheating):
            await host.handle(stream, DisputeHost(await made.hop.bind()), body)


@pytest.mark.parametrize("cut", [0, 1, 50, -1])
def test_a_dispute_that_is_none_is_refused(answer: Answer, cut: int) -> None:
    data = canonical(dispute_of(answer, ARBITER.node_id))
    for bad in (data[:cut], data + b"\0", b"\xc1" + data):
        with pytest.raises(PeerCheating):
            decode_dispute(bad)


def test_rows_that_did_not_come_in_are_refused() -> None:
    later = answer_of("llama", layers=(1, 2))
    subject = later.subject()
    challenge = dispute_of(later, ARBITER.node_id).challenge
    assert later.material.rows_in is not None
    whole = Dispute.of(subject, challenge, later.tokens, later.material.rows_in)
    rows = whole.rows_in()
    assert rows is not None
    assert (rows == later.material.rows_in).all()
    altered = msgspec.structs.replace(whole, rows=bytes(len(whole.rows)))
    with pytest.raises(PeerCheating):
        altered.rows_in()
