"""A gateway's cases: so many at once, none twice, followed across restarts and away chains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.settlement.test_briefs import brief_of
from tests.settlement.test_case_book import NOTE
from unisono.clock import VirtualClock
from unisono.compose import accusations
from unisono.compose.accusations import MAX_CASES, Accusations
from unisono.compose.hearing import Heard
from unisono.errors import InsufficientFunds, LedgerUnreachable, TransactionRefused
from unisono.gateway import GatewayMetrics
from unisono.settlement.committees import Outcome
from unisono.settlement.ledger.deployment import Deployed, Deployment
from unisono.settlement.signature import SettlementKey
from unisono.types import canonical
from unisono.verification.audit_note import AuditNote, CaseNote
from unisono.verification.verdict import Fault, Verdict

OWN = SettlementKey.generate()
CONTRACTS = ("registry", "channels", "court", "judge", "committee", "stablecoin")
DEPLOYMENT = Deployment(
    7, 0, 0, {x: Deployed(SettlementKey.generate().address, "0" * 64) for x in CONTRACTS}
)
PRICE, GOT = 11_500_000, 90_000_000


class House:
    """In the place of a `JuryHouse`: opens cases, or says why not."""

    def __init__(self) -> None:
        self.contract = SimpleNamespace(address=DEPLOYMENT.address("committee"))
        self.problem: Exception | None = None
        self.opened: list[int] = []
        self.bench = 20

    async def price(self, claim: Any, domain: Any, seats: int) -> int:
        if self.problem is not None:
            raise self.problem
        return PRICE

    async def open(self, claim: Any, seats: int) -> bytes:
        self.opened.append(seats)
        return bytes((len(self.opened),)) * 32

    async def state(self, case: bytes) -> Any:
        return SimpleNamespace(bond=PRICE - 3)

    async def rules(self) -> Any:
        return SimpleNamespace(fee=1)

    async def present(self) -> int:
        return self.bench


class Receipts:
    """In the place of a `ReceiptStore`."""

    def __init__(self) -> None:
        self.notes: dict[str, list[CaseNote]] = {}

    async def note(self, name: str, audit: AuditNote) -> None:
        assert audit.case is not None
        assert msgspec.structs.replace(audit, case=None) == NOTE
        self.notes.setdefault(name, []).append(audit.case)


class Desk:
    """A gateway's accusations, with what they need."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.house, self.receipts = VirtualClock(), House(), Receipts()
        self.metrics = GatewayMetrics()
        self.folder = folder
        self.running: list[bytes] = []
        self.ends: dict[bytes, asyncio.Future[Outcome]] = {}
        self.troubles: list[Exception] = []
        desk = self

        class Followed:
            """In the place of an `Accusation`."""

            def __init__(self, house: Any, case: bytes, *rest: object) -> None:
                self.case = case

            async def run(self, poll_seconds: float) -> Outcome:
                if desk.troubles:
                    raise desk.troubles.pop(0)
                desk.running.append(self.case)
                loop = asyncio.get_running_loop()
                return await desk.ends.setdefault(self.case, loop.create_future())

        async def approve(*arguments: object) -> None:
            pass

        async def credited(self: Accusations, case: bytes) -> int:
            return GOT

        async def collect(self: object, owner: object) -> tuple[int, int]:
            return 0, 0

        monkeypatch.setattr(accusations, "Accusation", Followed)
        monkeypatch.setattr(accusations, "approve", approve)
        monkeypatch.setattr(Accusations, "_credited", credited)
        monkeypatch.setattr(accusations.Plaintiff, "collect", collect)
        monkeypatch.setattr(accusations.Instruction, "give", approve)
        self.tasks: list[asyncio.Task[None]] = []
        self.accusations = self.started()

    def started(self) -> Accusations:
        """The gateway begins, or begins again."""
        for task in self.tasks:
            task.cancel()
        wallet: Any = SimpleNamespace(
            **{"key": OWN, "ledger": None, "outbox": SimpleNamespace(account=OWN.address)},
            **{"deployment": DEPLOYMENT, "folder": self.folder, "jury_house": lambda: self.house},
        )
        model: Any = None
        made = Accusations(
            wallet,
            model,
            lambda node: None,
            self.clock,
            model,
            SimpleNamespace(close=_nothing),  # type: ignore[arg-type]
            self.receipts,  # type: ignore[arg-type]
            self.metrics,
            poll_seconds=1.0,
            private=False,
        )
        self.tasks.append(asyncio.create_task(made.run()))
        return made

    def add(self, *receipts: str, seats: int = 3) -> None:
        """False claims that audits found."""
        for name in receipts:
            record = self.accusations.book.add(name, NOTE, canonical(brief_of()), seats)
            self.accusations._queue(record)

    async def passing(self, seconds: float = 0) -> None:
        for _ in range(20):
            await asyncio.sleep(0)
        await self.clock.advance(seconds)
        for _ in range(20):
            await asyncio.sleep(0)

    def said(self, receipt: str) -> list[tuple[str, int, int]]:
        return [(n.outcome, n.paid, n.got) for n in self.receipts.notes.get(receipt, [])]


async def _nothing() -> None:
    pass


@pytest.fixture
async def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    made = Desk(tmp_path, monkeypatch)
    yield made
    for task in made.tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_case_is_opened_followed_and_told_with_its_receipt(desk: Desk) -> None:
    desk.add("a")
    await desk.passing()
    (case,) = desk.running
    assert desk.metrics.open_cases._value.get() == 1
    desk.ends[case].set_result(Outcome.CONVICTED)
    await desk.passing()
    assert desk.said("a") == [("open", PRICE, 0), ("convicted", PRICE, GOT)]
    assert desk.receipts.notes["a"][1].case == case.hex()
    assert desk.metrics.open_cases._value.get() == 0
    assert desk.metrics.cases.labels("convicted")._value.get() == 1
    assert desk.metrics.case_units.labels("paid")._value.get() == PRICE
    assert desk.metrics.case_units.labels("got")._value.get() == GOT


async def test_so_many_cases_run_at_once_and_the_others_wait(desk: Desk) -> None:
    desk.add(*"abcdef")
    await desk.passing()
    assert len(desk.running) == MAX_CASES
    desk.ends[desk.running[0]].set_result(Outcome.RIGHT)
    await desk.passing()
    assert len(desk.running) == MAX_CASES + 1


async def test_a_gateway_that_was_killed_goes_on_with_its_cases(desk: Desk) -> None:
    desk.add("a", "b")
    await desk.passing()
    before = list(desk.running)
    desk.accusations.book.add("c", NOTE, canonical(brief_of()), 3)
    desk.ends.clear()
    desk.accusations = desk.started()
    await desk.passing()
    assert desk.running[2:] == [*before, bytes((3,)) * 32]
    assert len(desk.house.opened) == 3


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        (InsufficientFunds("balance: 2.0, needed 11.5", 2, 11), "unfunded"),
        (TransactionRefused("too few members"), "refused"),
    ],
)
async def test_what_cannot_be_opened_is_told_and_left(
    desk: Desk, problem: Exception, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    desk.house.problem = problem
    desk.add("a")
    await desk.passing()
    assert desk.said("a") == [(outcome, 0, 0)]
    assert desk.receipts.notes["a"][0].case == ""
    assert str(problem) in caplog.text
    assert desk.accusations.book.unfinished() == []
    desk.house.problem = None
    desk.accusations = desk.started()
    await desk.passing()
    assert desk.house.opened == []


async def test_a_chain_that_is_away_is_waited_for(desk: Desk) -> None:
    desk.house.problem = LedgerUnreachable("away")
    desk.add("a")
    await desk.passing(200)
    assert desk.house.opened == []
    desk.house.problem = None
    desk.troubles = [LedgerUnreachable("away again")]
    await desk.passing(130)
    assert desk.house.opened == [3]
    assert len(desk.running) == 1


@pytest.mark.parametrize(("bench", "seats"), [(7, 3), (8, 3), (20, 7), (20, 15)])
async def test_without_a_majority_a_larger_committee_is_asked(
    desk: Desk, bench: int, seats: int
) -> None:
    desk.house.bench = bench
    desk.add("a", seats=seats)
    await desk.passing()
    desk.ends[desk.running[0]].set_result(Outcome.UNDECIDED)
    await desk.passing()
    more = {3: 7, 7: 15}.get(seats)
    expected = [seats] if more is None or bench <= more else [seats, more]
    assert desk.house.opened == expected


@pytest.mark.parametrize("kind", ["rows_in", None])
async def test_faults_that_rows_do_not_show_are_no_cases(desk: Desk, kind: Any) -> None:
    fault = None if kind is None else Fault(kind, "other rows in", 0)
    heard = Heard(Verdict("INVALID", fault))
    receipt: Any = SimpleNamespace(id="a")
    claim: Any = None
    await desk.accusations.sue(receipt, claim, heard, NOTE)
    assert desk.accusations.book.unfinished() == []
