"""What a member takes from auditors, and how much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from tests.verification.stakes.audits import EPOCH, World, identity
from unisono.clock import VirtualClock
from unisono.errors import PeerCheating
from unisono.models.rows import row_hashes
from unisono.types import LayerRange, ModelId, NodeId
from unisono.verification.stakes import member as members
from unisono.verification.stakes.member import MAX_TASKS, Member
from unisono.verification.stakes.register import MemoryRegister
from unisono.verification.stakes.rows import rows_after
from unisono.verification.stakes.work import ReplayWork
from unisono.wire.claims import rows_root
from unisono.wire.frames import decode_frame
from unisono.wire.messages import Refused
from unisono.wire.rows import encode_rows
from unisono.wire.transports.memory import MemoryNetwork
from unisono.wire.verification_messages import ReplayResult, RowsGiven, RowsTask

MODEL = ModelId("ab" * 32)
BLOCK = LayerRange(0, 2)
HIDDEN = 8


class Doubling:
    """Every token becomes a row of its double."""

    async def replay(self, work: ReplayWork) -> ReplayResult:
        raise AssertionError

    async def rows(self, work: ReplayWork) -> tuple[bytes, Sequence[bytes]]:
        tokens = np.array(work.tokens, dtype=np.int64)
        widths, rows = encode_rows(np.repeat(2 * tokens[:, None], HIDDEN, axis=1))
        return widths, [bytes(r) for r in rows]


class Wire:
    """A stream that remembers what it is sent."""

    def __init__(self, peer: NodeId) -> None:
        self.peer = peer
        self.sent: list[object] = []

    async def send(self, frame: bytes) -> None:
        self.sent.append(decode_frame(frame)[0])

    async def receive(self) -> bytes:
        raise AssertionError

    async def close(self) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.world = World()
        register = MemoryRegister()
        register.bind(self.world.key.binding(self.world.auditor, EPOCH), EPOCH - 1)
        register.appoint(self.world.roster)
        self.clock = VirtualClock()
        self.member = Member(
            identity(100),
            Doubling(),
            register,
            self.world.beacon,
            self.clock,
            computes=lambda model, layers: (model, layers) == (MODEL, BLOCK),
            hidden=HIDDEN,
            max_positions=100_000,
        )

    def task(self, positions: int = 3) -> RowsTask:
        return RowsTask(self.world.ticket(self.world.claim()), MODEL, BLOCK, positions, b"")

    async def ask(self, task: RowsTask) -> object:
        stream = Wire(self.world.auditor.node_id)
        body = np.arange(task.positions, dtype="<u4").tobytes()
        await self.member.handle(stream, task, body)
        (answer,) = stream.sent
        return answer


async def test_rows_are_given_for_a_winning_ticket_so_often_per_audit() -> None:
    bench = Bench()
    task = bench.task()
    answers = [await bench.ask(task) for _ in range(MAX_TASKS + 1)]
    assert all(isinstance(a, RowsGiven) for a in answers[:-1])
    assert isinstance(answers[-1], Refused)
    assert answers[-1].code == "too_often"
    assert isinstance(await bench.ask(bench.task()), RowsGiven)  # of another audit


async def test_an_auditor_gets_so_many_positions_per_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "POSITIONS_PER_EPOCH", 100)
    bench = Bench()
    answers = [await bench.ask(bench.task(40)) for _ in range(3)]
    assert [type(a) for a in answers] == [RowsGiven, RowsGiven, Refused]
    assert isinstance(await bench.ask(bench.task(20)), RowsGiven)


async def test_other_blocks_and_tickets_of_others_get_nothing() -> None:
    bench = Bench()
    other = msgspec.structs.replace(bench.task(), layers=LayerRange(0, 3))
    assert isinstance(await bench.ask(other), Refused)
    stolen = Wire(identity(5).node_id)
    with pytest.raises(PeerCheating, match="another peer"):
        await bench.member.handle(stolen, bench.task(), bytes(12))
    with pytest.raises(PeerCheating, match="3 tokens"):
        await bench.member.handle(Wire(bench.world.auditor.node_id), bench.task(), bytes(11))
    losing = msgspec.structs.replace(
        bench.task(), ticket=bench.world.ticket(bench.world.claim(), 1)
    )
    with pytest.raises(PeerCheating, match="does not win"):
        await bench.member.handle(Wire(bench.world.auditor.node_id), losing, bytes(12))


async def test_rows_count_only_if_they_are_those_that_were_signed() -> None:
    bench = Bench()
    hub = MemoryNetwork(bench.clock)
    node = hub.transport(identity(100))
    address = await node.bind()

    async def serve(stream: object) -> None:
        task, body = decode_frame(await stream.receive())  # type: ignore[attr-defined]
        await bench.member.handle(stream, task, body)  # type: ignore[arg-type]

    serving = asyncio.create_task(node.serve(serve))
    auditor = hub.transport(bench.world.auditor)
    await auditor.bind()
    expected = np.repeat(2 * np.arange(3)[:, None], HIDDEN, axis=1)
    root = rows_root(row_hashes(expected))
    body = np.arange(3, dtype="<u4").tobytes()
    try:
        for wanted, found in ((root, True), ("ab" * 32, False)):
            rows = await rows_after(
                auditor,
                bench.clock,
                bench.task(),
                body,
                [address],
                hidden=HIDDEN,
                root=wanted,
                seconds=5.0,
            )
            assert (rows is not None) == found
            assert rows is None or (rows == expected).all()
        assert (
            await rows_after(
                auditor,
                bench.clock,
                bench.task(),
                body,
                [],
                hidden=HIDDEN,
                root=root,
                seconds=5.0,
            )
            is None
        )
    finally:
        serving.cancel()
        await node.close()
        await auditor.close()
