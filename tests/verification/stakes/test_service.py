"""Committees that replay real answers over streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import (
    AlteredRow,
    WrongToken,
    cheat,
    honest,
    request_for,
    wrong_weights,
)
from tests.verification.answers import Made, make
from tests.verification.stakes.audits import identity
from tests.verification.stakes.test_seat import BODY, TASK
from unisono.clock import VirtualClock
from unisono.compose.replays import EngineReplayer
from unisono.errors import PeerCheating, ReceiptError, UnisonoError
from unisono.execution.engine import Engine
from unisono.models.decoder import Rows
from unisono.models.store import StoredModel
from unisono.types import LayerRange, NodeId, PeerAddress
from unisono.verification.replay import _forward
from unisono.verification.stakes.beacon import AUDIT_DELAY, ChainBeacon, ChainSource
from unisono.verification.stakes.lottery import (
    LotteryKey,
    Roster,
    Verifier,
    draw_committee,
    draw_ticket,
)
from unisono.verification.stakes.member import Member
from unisono.verification.stakes.register import MemoryRegister
from unisono.verification.stakes.replayer import DecoderReplayer
from unisono.verification.stakes.service import Audited, Auditor, plant
from unisono.verification.stakes.transcript import Transcript
from unisono.verification.stakes.work import Answer, ReplayWork, make_task, replay
from unisono.wire.frames import decode_frame
from unisono.wire.identity import Identity
from unisono.wire.transports.base import Stream
from unisono.wire.transports.memory import MemoryNetwork
from unisono.wire.verification_messages import MILLION, ReplayResult, ReplayTask, Ticket


class Lying:
    """A replayer that computes and says something else."""

    def __init__(self, inner: DecoderReplayer) -> None:
        self._inner = inner

    async def replay(self, work: ReplayWork) -> ReplayResult:
        result = await self._inner.replay(work)
        return msgspec.structs.replace(result, rows_out="ab" * 32)

    async def close(self) -> None:
        await self._inner.close()


class Unable(Lying):
    """A replayer that cannot."""

    async def replay(self, work: ReplayWork) -> ReplayResult:
        raise UnisonoError("out of memory")


class Frozen(Lying):
    """A replayer that never ends."""

    async def replay(self, work: ReplayWork) -> ReplayResult:
        await asyncio.Event().wait()
        raise AssertionError


@dataclass
class Court:
    """An auditor, members that serve, and everything that is public."""

    made: Made
    auditor: Auditor
    key: LotteryKey
    identity: Identity
    beacon: ChainBeacon
    register: MemoryRegister
    addresses: dict[NodeId, PeerAddress]
    clock: VirtualClock
    network: MemoryNetwork
    replayers: list[DecoderReplayer]

    @property
    def computing(self) -> bool:
        """Whether some honest member has not finished."""
        running = [r._running for r in self.replayers]
        return any(task is not None and not task.done() for task in running)

    def ticket(self, hop: int) -> Ticket:
        claim = self.made.receipt.hops[hop]
        roster = self.register.roster(claim.epoch)
        assert roster is not None
        ticket = draw_ticket(self.key, self.identity.node_id, claim, roster, MILLION, self.beacon)
        assert ticket is not None
        return ticket

    def answer(self) -> Answer:
        request = self.made.receipt.request
        return Answer(request.model, request.prompt, self.made.receipt.tokens, request.sampling)

    def order(self, ticket: Ticket) -> list[PeerAddress]:
        receipt = self.made.receipt
        exclude = {self.identity.node_id, *(c.node for c in receipt.hops)}
        roster = self.register.roster(ticket.epoch)
        assert roster is not None
        return [self.addresses[n] for n in draw_committee(ticket, roster, 64, exclude)]

    async def audit(
        self, hop: int, seats: int = 3, rows: Rows | None = None, **changes: Any
    ) -> Audited:
        receipt = self.made.receipt
        ticket = self.ticket(hop)
        seal = plant(ticket.audit())
        task, body = make_task(
            ticket,
            seal.seal(),
            self.answer(),
            receipt.hops[hop].layers,
            hop == len(receipt.hops) - 1,
            rows,
            seats=seats,
            commit_ms=30_000,
            reveal_ms=10_000,
        )
        task = msgspec.structs.replace(task, **changes)
        running = asyncio.create_task(self.auditor.audit(task, body, self.order(ticket), seal))
        # time passes only while nobody computes
        while not (await asyncio.wait({running}, timeout=0.01))[0]:
            if not self.computing:
                await self.clock.advance(1)
        return await running


@asynccontextmanager
async def court(
    model: StoredModel, made: Made, replayers: Sequence[type[Lying] | None] = (None,) * 5
) -> AsyncIterator[Court]:
    """Members with honest weights, except those whose replayer is another."""
    clock = VirtualClock()
    network = MemoryNetwork(clock)
    epoch = made.receipt.hops[0].epoch
    source = ChainSource(bytes(32), epoch, 100)
    beacon = ChainBeacon(source.anchor(identity(1)))
    beacon.accept(epoch + AUDIT_DELAY, source.link(epoch + AUDIT_DELAY))
    register = MemoryRegister()
    key = LotteryKey(made.gateway)
    register.bind(key.binding(made.gateway, epoch), epoch - 1)
    members = [identity(200 + i) for i in range(len(replayers))]
    register.appoint(Roster.of(epoch, (Verifier(m.node_id, 1) for m in members)))
    addresses: dict[NodeId, PeerAddress] = {}
    serving: list[asyncio.Task[None]] = []
    opened: list[Any] = []
    inners: list[DecoderReplayer] = []
    for who, kind in zip(members, replayers, strict=True):
        inner = DecoderReplayer(lambda layers: honest(model, layers))
        replayer = inner if kind is None else kind(inner)
        opened.append(replayer)
        inners.append(inner)
        member = Member(
            who,
            replayer,
            register,
            beacon,
            clock,
            computes=lambda asked, layers: asked == model.id,
            hidden=model.manifest.config.hidden_size,
            max_positions=1000,
        )

        async def handle(stream: Stream, member: Member = member) -> None:
            task, body = decode_frame(await stream.receive())
            assert isinstance(task, ReplayTask)
            await member.handle(stream, task, body)

        transport = network.transport(who)
        addresses[who.node_id] = await transport.bind()
        opened.append(transport)
        serving.append(asyncio.create_task(transport.serve(handle)))
    transport = network.transport(made.gateway)
    await transport.bind()
    auditor = Auditor(made.gateway, transport, clock)
    try:
        yield Court(
            made, auditor, key, made.gateway, beacon, register, addresses, clock, network, inners
        )
    finally:
        for task in serving:
            task.cancel()
        await transport.close()
        for thing in opened:
            await thing.close()


def work_of(model: StoredModel, made: Made, hop: int, rows: Rows | None) -> ReplayWork:
    receipt = made.receipt
    claim = receipt.hops[hop]
    ends = hop == len(receipt.hops) - 1
    return ReplayWork(
        audit="ab" * 32,
        model=model.id,
        layers=claim.layers,
        prompt=len(receipt.request.prompt),
        tokens=(*receipt.request.prompt, *receipt.tokens[:-1]) if not hop or ends else (),
        rows=rows,
        sampling=receipt.request.sampling if ends else None,
        sampled=tuple(p for p in (0, 7, 25) if p < claim.positions),
    )


def rows_into(model: StoredModel, made: Made, hop: int) -> Rows | None:
    """What a hop was given, computed from the weights."""
    tokens = [*made.receipt.request.prompt, *made.receipt.tokens[:-1]]
    rows: Rows | None = None
    for claim in made.receipt.hops[:hop]:
        rows = _forward(honest(model, claim.layers), tokens if rows is None else rows)
    return rows


@pytest.mark.parametrize("family", ["gemma", "llama"])
def test_replays_of_several_answers_side_by_side_give_what_each_gives_alone(
    tiny_models: TinyModels, family: str
) -> None:
    model: StoredModel = getattr(tiny_models, family)
    blocks = 2
    answers = [
        make(model, blocks, request_for(model, prompt=tuple(range(3, 3 + n)), max_tokens=m))
        for n, m in ((5, 4), (90, 8), (200, 5), (1, 1), (33, 30))
    ]
    for hop in range(blocks):
        decoder = honest(model, answers[0].receipt.hops[hop].layers)
        some = [work_of(model, made, hop, rows_into(model, made, hop)) for made in answers]
        together = replay(decoder, some)
        assert together == [replay(decoder, [w])[0] for w in some]
        for made, result in zip(answers, together, strict=True):
            claim = made.receipt.hops[hop]
            assert (result.rows_in, result.rows_out) == (claim.rows_in, claim.rows_out)
            assert result.tokens == (claim.tokens if hop == blocks - 1 else "")


async def test_an_engine_replays_as_a_decoder_alone_does(tiny_models: TinyModels) -> None:
    model = tiny_models.gemma
    made = await asyncio.to_thread(make, model, 1)
    work = work_of(model, made, 0, None)
    engine = Engine(honest(model, LayerRange(0, model.layer_count)))
    try:
        found = await EngineReplayer(engine).replay(work)
        assert found == replay(engine.decoder, [work])[0]
        other = replace(work, layers=LayerRange(0, 1))
        with pytest.raises(UnisonoError, match="computes layers"):
            await EngineReplayer(engine).replay(other)
    finally:
        await engine.close()


async def test_a_committee_finds_an_honest_answer_valid_and_others_can_check_it(
    tiny_models: TinyModels,
) -> None:
    made = await asyncio.to_thread(make, tiny_models.gemma, 1)
    async with court(tiny_models.gemma, made) as it:
        audited = await it.audit(0)
        assert audited.outcome is not None
        assert audited.faults == ()
        assert (audited.outcome.votes, audited.outcome.seats) == (3, 3)
        claim = made.receipt.hops[0]
        assert audited.outcome.judge(claim, it.answer().root()).verdict == "VALID"
        read = msgspec.msgpack.decode(msgspec.msgpack.encode(audited.transcript), type=Transcript)
        assert read.check(made.receipt, 0, it.register, it.beacon).verdict == "VALID"
        assert len(msgspec.msgpack.encode(read)) < 5000


@pytest.mark.parametrize(
    ("kind", "fault"), [(AlteredRow, "rows_out"), (WrongToken, "sampling"), (None, "rows_out")]
)
async def test_a_committee_convicts_a_hop_that_cheats(
    tiny_models: TinyModels, kind: Any, fault: str
) -> None:
    model = tiny_models.gemma
    made = await asyncio.to_thread(
        make, model, 1, make={0: wrong_weights if kind is None else cheat(kind)}
    )
    async with court(model, made) as it:
        audited = await it.audit(0, seats=5)
        assert audited.transcript is not None
        verdict = audited.transcript.check(made.receipt, 0, it.register, it.beacon)
        assert verdict.verdict == "INVALID"
        assert verdict.fault is not None
        assert (verdict.fault.kind, verdict.fault.node) == (fault, made.receipt.hops[0].node)


async def test_every_hop_of_a_chain_can_be_audited_alone(tiny_models: TinyModels) -> None:
    model = tiny_models.gemma
    made = await asyncio.to_thread(make, model, 3, make={1: cheat(AlteredRow)})
    verdicts: list[str] = []
    async with court(model, made) as it:
        for hop in range(3):
            # what the hop was really given: the rows of the one before, which may be false
            rows = rows_into(model, made, hop) if hop < 2 else None
            if hop == 2:
                before = rows_into(model, made, 1)
                assert before is not None
                bad = cheat(AlteredRow)(model, made.receipt.hops[1].layers, 64 << 20)
                rows = _forward(bad, before)
            audited = await it.audit(hop, rows=rows)
            assert audited.transcript is not None
            verdicts.append(
                audited.transcript.check(made.receipt, hop, it.register, it.beacon).verdict
            )
    assert verdicts == ["VALID", "INVALID", "VALID"]


async def test_members_that_lie_are_outvoted_and_named(tiny_models: TinyModels) -> None:
    made = await asyncio.to_thread(make, tiny_models.gemma, 1)
    async with court(tiny_models.gemma, made, [Lying, None, None, Lying, None]) as it:
        audited = await it.audit(0, seats=5)
        assert {f.node for f in audited.faults} == {
            identity(200).node_id,
            identity(203).node_id,
        }
        assert all(f.kind == "dissent" and f.proven() for f in audited.faults)
        assert audited.transcript is not None
        verdict = audited.transcript.check(made.receipt, 0, it.register, it.beacon)
        assert verdict.verdict == "VALID"


async def test_members_that_are_away_are_passed_over_and_those_that_fail_are_missed(
    tiny_models: TinyModels,
) -> None:
    made = await asyncio.to_thread(make, tiny_models.gemma, 1)
    async with court(tiny_models.gemma, made, [None, None, None, Unable, Frozen]) as it:
        audited = await it.audit(0, seats=5)
        assert {(f.node, f.kind) for f in audited.faults} == {
            (identity(203).node_id, "no_commit"),
            (identity(204).node_id, "no_commit"),
        }
        assert audited.outcome is not None
        assert audited.outcome.votes == 3
        gone = it.order(it.ticket(0))[0].node
        it.network.kill(gone)
        audited = await it.audit(0, seats=1)
        assert gone not in audited.members
        assert len(audited.members) == 1
        for address in it.order(it.ticket(0))[1:4]:
            it.network.kill(address.node)
        audited = await it.audit(0, seats=3)
        assert len(audited.members) < 2  # and the empty seats count
        assert audited.outcome is None or audited.outcome.result is None


async def test_a_task_that_the_lottery_did_not_draw_is_taken_by_nobody(
    tiny_models: TinyModels,
) -> None:
    made = await asyncio.to_thread(make, tiny_models.gemma, 1)
    async with court(tiny_models.gemma, made) as it:
        ticket = it.ticket(0)
        for bad in (
            msgspec.structs.replace(ticket, claim="ab" * 32),
            msgspec.structs.replace(ticket, rate=1),
            msgspec.structs.replace(ticket, roster="ab" * 32),
            msgspec.structs.replace(ticket, auditor=identity(5).node_id),
            msgspec.structs.replace(ticket, epoch=ticket.epoch + 1),
        ):
            audited = await it.audit(0, ticket=bad)
            assert audited.outcome is None


async def test_a_transcript_of_a_dishonest_auditor_judges_nothing(
    tiny_models: TinyModels,
) -> None:
    model = tiny_models.gemma
    made = await asyncio.to_thread(make, model, 1)
    async with court(model, made) as it:
        audited = await it.audit(0)
        good = audited.transcript
        assert good is not None
        other = await it.audit(0, prompt=5)
        assert other.transcript is not None
        for bad, problem in (
            (other.transcript, "not about the receipt"),
            (msgspec.structs.replace(good, members=(identity(7).node_id,)), "order"),
            (msgspec.structs.replace(good, members=good.members * 2), "order"),
            (msgspec.structs.replace(good, closed=other.transcript.closed), "another task"),
            (msgspec.structs.replace(good, rows=bytes(32)), "another task"),
        ):
            with pytest.raises(ReceiptError, match=problem):
                bad.check(made.receipt, 0, it.register, it.beacon)
        few = msgspec.structs.replace(good, reveals=good.reveals[:1])
        assert few.check(made.receipt, 0, it.register, it.beacon).verdict == "INCONCLUSIVE"
        twice = msgspec.structs.replace(good, reveals=good.reveals[:1] * 3)
        assert twice.check(made.receipt, 0, it.register, it.beacon).verdict == "INCONCLUSIVE"
        with pytest.raises(ReceiptError, match="no hop 1"):
            good.check(made.receipt, 1, it.register, it.beacon)


def test_a_body_that_does_not_fit_its_task_is_refused(tiny_models: TinyModels) -> None:
    assert ReplayWork.of(TASK, BODY, 8).tokens[1] == 0x07060504
    for bad in (BODY[:-1], BODY + b"\0", b""):
        with pytest.raises(PeerCheating, match="came with"):
            ReplayWork.of(TASK, bad, 8)
