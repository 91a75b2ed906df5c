"""A member computes what the opener gave it and nothing else; else it abstains, and it can always
open what it committed to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.compose.cases import COMMIT, Committee
from unisono.clock import VirtualClock
from unisono.compose.front_door import FrontDoor
from unisono.compose.jury_duty import MARGIN_SECONDS, Bench, JuryDuty
from unisono.errors import CapacityMissing, LedgerUnreachable, PeerCheating, WireError
from unisono.settlement.committees import ABSTAIN, CaseState, salt_of
from unisono.settlement.eip712 import Domain
from unisono.settlement.jury_records import JuryRecords
from unisono.settlement.jury_work import jury_domain, vote_of
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress, LayerRange, ModelId, PeerAddress, Sampling
from unisono.verification.stakes.work import Recomputed, ReplayWork
from unisono.wire.frames import MAX_BODY, decode_frame, encode_frame
from unisono.wire.identity import Identity
from unisono.wire.jury_messages import JuryTaken, JuryTask
from unisono.wire.messages import Refused
from unisono.wire.transports import make_transport
from unisono.wire.transports.base import Transport

OPENER, MEMBER, STRANGER = (SettlementKey(bytes(31) + bytes((n,))) for n in (1, 2, 3))
CONTRACT = EvmAddress("0x" + "11" * 20)
DOMAIN = jury_domain(7, CONTRACT)
MODEL, HIDDEN = ModelId("ab" * 32), 8
CASE, OTHER_CASE = b"\5" * 32, b"\6" * 32
PROMPT, ANSWER = (4, 5, 6), (7, 8)
FOUND = Recomputed("cd" * 32, ANSWER)
LOOK = 1.0


def task(
    case: bytes = CASE,
    key: SettlementKey = OPENER,
    domain: Domain = DOMAIN,
    tokens: tuple[int, ...] = (*PROMPT, *ANSWER[:-1]),
    **changes: Any,
) -> tuple[JuryTask, bytes]:
    """A task about a whole model, and its body."""
    fields: dict[str, Any] = {
        "case": case.hex(),
        "model": MODEL,
        "layers": LayerRange(0, 2),
        "prompt": len(PROMPT),
        "positions": len(tokens),
        "sampling": Sampling(),
        "widths": b"",
    }
    made = JuryTask(**{**fields, **changes})
    body = np.array(tokens, dtype="<u4").tobytes()
    signature = key.sign(domain.digest(made.contents(body)))
    return msgspec.structs.replace(made, signature=signature), body


class Stream:
    """Keeps what is answered."""

    def __init__(self) -> None:
        self.answers: list[Any] = []

    @property
    def peer(self) -> str:
        return "ee" * 32

    async def send(self, frame: bytes) -> None:
        self.answers.append(decode_frame(frame)[0])


@dataclass
class Computer:
    """In the place of an engine."""

    fails: bool = False
    works: list[ReplayWork] = field(default_factory=list[ReplayWork])

    async def recompute(self, work: ReplayWork) -> Recomputed:
        self.works.append(work)
        if self.fails:
            raise CapacityMissing("no room")
        return FOUND


class Place:
    """In the place of `OwnPlace`."""

    async def collect(self) -> int:
        return 0


async def sure(state: CaseState) -> bool:
    return True


class Seat:
    """A member with its chain and its time."""

    def __init__(self, path: Path | None = None, committee: Committee | None = None) -> None:
        self.path = path
        self.clock = VirtualClock() if committee is None else committee.clock
        self.committee = committee or Committee(self.clock)
        self.computer = Computer()
        self.duty = self.made(sure)

    def made(self, stands_by: Callable[[CaseState], Awaitable[bool]]) -> JuryDuty:
        return JuryDuty(
            self.committee,  # type: ignore[arg-type]
            Place(),  # type: ignore[arg-type]
            MEMBER,
            DOMAIN,
            Bench(MODEL, HIDDEN, 64, lambda layers: self.computer),
            JuryRecords(self.path),
            self.clock,
            stands_by=stands_by,
            claim_of=lambda state: None,
            begin=0,
            poll_seconds=LOOK,
        )

    async def told(self, given: tuple[JuryTask, bytes]) -> Any:
        """What it answers to a task."""
        stream = Stream()
        await self.duty.handle(stream, *given)  # type: ignore[arg-type]
        for working in list(self.duty._working):
            await working
        (answer,) = stream.answers
        return answer

    @property
    def result(self) -> bytes | None:
        return self.committee.results.get((CASE, 0))


def vote() -> bytes:
    given, body = task()
    return vote_of(ReplayWork.seated(given, body, HIDDEN), FOUND)


async def seated(path: Path | None = None) -> Seat:
    made = Seat(path)
    made.committee.drawn(CASE, OPENER.address, MEMBER.address)
    await made.duty.sit()
    return made


async def test_what_the_opener_gave_is_computed_committed_and_opened() -> None:
    it = await seated()
    assert await it.told(task()) == JuryTaken(CASE.hex())
    (work,) = it.computer.works
    assert (work.tokens, work.prompt, work.layers) == ((4, 5, 6, 7), 3, LayerRange(0, 2))
    await it.duty.sit()
    await it.duty.sit()
    assert it.committee.sent == ["commit", "reveal"]
    assert it.result == vote()


async def test_who_is_given_nothing_abstains_before_the_time_to_commit_is_over() -> None:
    it = await seated()
    running = asyncio.create_task(it.duty.run())
    for _ in range(10):
        await asyncio.sleep(0)
    await it.clock.advance(COMMIT - MARGIN_SECONDS - 2 * LOOK)
    assert it.committee.sent == []
    await it.clock.advance(MARGIN_SECONDS + 2 * LOOK)
    assert it.committee.sent[0] == "commit"
    await it.clock.advance(3 * LOOK)
    assert it.result == ABSTAIN
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_what_comes_after_the_abstention_changes_nothing() -> None:
    it = await seated()
    await it.clock.advance(COMMIT - 1)
    await it.duty.sit()
    assert it.committee.sent == ["commit"]
    await it.told(task())
    await it.duty.sit()
    assert it.result == ABSTAIN


async def test_who_cannot_compute_abstains() -> None:
    it = await seated()
    it.computer.fails = True
    assert isinstance(await it.told(task()), JuryTaken)
    await it.duty.sit()
    assert it.committee.sent == []
    await it.clock.advance(COMMIT - 1)
    await it.duty.sit()
    await it.duty.sit()
    assert it.result == ABSTAIN


async def test_a_member_that_was_killed_opens_what_it_committed_to(tmp_path: Path) -> None:
    it = await seated(tmp_path / "jury.sqlite")
    it.committee.drawn(CASE, OPENER.address, MEMBER.address, STRANGER.address)
    await it.told(task())
    await it.duty.sit()
    assert it.committee.sent == ["commit"]
    again = Seat(tmp_path / "jury.sqlite", it.committee)
    await it.clock.advance(COMMIT + 1)
    await again.duty.sit()
    assert again.result == vote()
    assert again.computer.works == []


async def test_a_member_that_was_killed_looks_where_its_cases_began(tmp_path: Path) -> None:
    it = await seated(tmp_path / "jury.sqlite")
    it.committee.block += 5000
    for look in (it.duty.defend, it.duty.sit):
        await look()
    again = Seat(tmp_path / "jury.sqlite", it.committee)
    await again.duty.sit()
    assert isinstance(await again.told(task()), JuryTaken)
    it.committee.over(CASE)
    await again.duty.sit()
    assert JuryRecords(tmp_path / "jury.sqlite").first <= 1000
    await again.duty.defend()
    assert JuryRecords(tmp_path / "jury.sqlite").first > 5000


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (task(OTHER_CASE), "not_seated"),
        (task(model="cd" * 32), "not_held"),
        (task(tokens=tuple(range(65)), prompt=3), "too_long"),
    ],
)
async def test_what_is_not_for_this_member_is_refused(
    given: tuple[JuryTask, bytes], code: str
) -> None:
    it = await seated()
    it.committee.drawn(OTHER_CASE, OPENER.address, STRANGER.address)
    await it.duty.sit()
    answer = await it.told(given)
    assert isinstance(answer, Refused)
    assert answer.code == code
    assert it.computer.works == []


@pytest.mark.parametrize(
    "given",
    [
        task(key=STRANGER),
        task(domain=jury_domain(8, CONTRACT)),
        task(domain=jury_domain(7, OPENER.address)),
        (task()[0], task()[1][:-4] + b"\1\0\0\0"),
        (task()[0], task()[1] + bytes(4)),
        (task()[0], bytes(1 << 20)),
        (msgspec.structs.replace(task()[0], prompt=2), task()[1]),
        (msgspec.structs.replace(task()[0], signature=b""), task()[1]),
    ],
)
async def test_what_the_opener_did_not_sign_is_cheating(given: tuple[JuryTask, bytes]) -> None:
    it = await seated()
    with pytest.raises(PeerCheating):
        await it.told(given)
    assert it.computer.works == []
    assert isinstance(await it.told(task()), JuryTaken)


async def test_a_task_counts_once_and_no_other_takes_its_place() -> None:
    it = await seated()
    first = task()
    for _ in range(3):
        assert isinstance(await it.told(first), JuryTaken)
    other = await it.told(task(tokens=(4, 5, 9, 7)))
    assert isinstance(other, Refused)
    assert other.code == "another_task"
    assert len(it.computer.works) == 1
    it.committee.over(CASE)
    await it.duty.sit()
    replayed = await it.told(first)
    assert isinstance(replayed, Refused)
    assert replayed.code == "not_seated"


async def test_only_right_claims_are_contested_and_each_is_computed_once() -> None:
    it = Seat()
    asked: list[bytes] = []

    async def stands_by(state: CaseState) -> bool:
        asked.append(state.claim)
        return False

    it.committee.contradicted(CASE, MEMBER.address)
    it.committee.contradicted(OTHER_CASE, STRANGER.address)
    guilty = it.made(stands_by)
    for _ in range(3):
        await guilty.defend()
    assert it.committee.contested == []
    assert len(asked) == 1
    await it.duty.defend()
    await it.duty.defend()
    assert it.committee.contested == [CASE]


async def test_a_claim_that_cannot_be_computed_now_is_asked_about_again() -> None:
    it = Seat()
    answers = [False, True]

    async def stands_by(state: CaseState) -> bool:
        if not answers.pop(0):
            raise CapacityMissing("no room just now")
        return True

    it.committee.contradicted(CASE, MEMBER.address)
    duty = it.made(stands_by)
    await duty.defend()
    assert it.committee.contested == []
    await duty.defend()
    assert it.committee.contested == [CASE]


async def test_a_chain_that_is_away_is_asked_ever_more_rarely() -> None:
    it = Seat()
    looks: list[float] = []

    async def away() -> Any:
        looks.append(it.clock.now())
        raise LedgerUnreachable("away")

    it.committee.rules = away  # type: ignore[method-assign]
    running = asyncio.create_task(it.duty.run())
    for _ in range(10):
        await asyncio.sleep(0)
    await it.clock.advance(600)
    gaps = [b - a for a, b in itertools.pairwise(looks)]
    assert gaps[:4] == [2, 4, 8, 16]
    assert max(gaps) == 60
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def test_salts_are_no_part_of_what_is_told() -> None:
    given, _ = task()
    assert salt_of(MEMBER, CASE).hex() not in repr(given)


async def asked(transport: Transport, address: PeerAddress, frame: bytes) -> Any:
    """What a node answers over a socket; None: it ends the stream."""
    stream = await transport.dial(address)
    try:
        await stream.send(frame)
        return decode_frame(await stream.receive())[0]
    except WireError:
        return None
    finally:
        await stream.close()


async def test_bad_tasks_over_a_socket_end_their_stream_and_nothing_else() -> None:
    it = await seated()
    node, peer = (make_transport("tcp", Identity.generate(), "127.0.0.1:0") for _ in range(2))
    door = FrontDoor(None)  # type: ignore[arg-type]
    door.jury = it.duty
    address, _ = await node.bind(), await peer.bind()
    serving = asyncio.create_task(node.serve(door.handle))
    try:
        forged, body = task(key=STRANGER)
        good = encode_frame(*task())
        oversized = good[:8] + (MAX_BODY + 1).to_bytes(4, "little") + good[12:]
        for bad in (
            encode_frame(forged, body),
            encode_frame(task()[0], body + bytes(4)),
            encode_frame(task()[0], bytes(4 << 20)),
            oversized,
        ):
            assert await asked(peer, address, bad) is None
        elsewhere = await asked(peer, address, encode_frame(*task(OTHER_CASE)))
        assert isinstance(elsewhere, Refused)
        assert it.computer.works == []
        for _ in range(2):  # replayed
            assert await asked(peer, address, good) == JuryTaken(CASE.hex())
        other = await asked(peer, address, encode_frame(*task(tokens=(4, 5, 9, 7))))
        assert isinstance(other, Refused)
        assert other.code == "another_task"
        assert len(it.computer.works) == 1
    finally:
        serving.cancel()
        await node.close()
        await peer.close()
