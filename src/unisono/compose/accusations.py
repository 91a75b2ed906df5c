"""A gateway before the committee of its chain: it opens a case about a claim that an audit found
false, gives the members what they need, and goes to the court if the accused contests.

What a case is about is kept before it is opened, everything else is on the chain: a gateway that
was killed follows its cases further.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from unisono.clock import Clock
from unisono.compose.counsel import Pleading, Seats
from unisono.compose.hearing import Heard
from unisono.compose.instruction import Instruction
from unisono.compose.prosecution import Plaintiff
from unisono.compose.respondent import Study
from unisono.compose.wallet import PRIVATE_POLL, PUBLIC_POLL, Wallet
from unisono.errors import (
    InsufficientFunds,
    ReceiptError,
    TransactionRefused,
    UnisonoError,
)
from unisono.gateway import GatewayMetrics, ReceiptStore
from unisono.models.store import StoredModel
from unisono.settlement.advocates import Case, State
from unisono.settlement.bench import COMMITTEE, approve
from unisono.settlement.briefs import MAX_BYTES, Brief, decode_brief
from unisono.settlement.case_book import OPEN, CaseBook, CaseRecord
from unisono.settlement.claims import SettlementClaim, court_domain
from unisono.settlement.committees import Accusation, Outcome
from unisono.settlement.courthouses import contract_of
from unisono.settlement.jury_work import jury_domain
from unisono.settlement.ledger.intents import Intent
from unisono.types import NodeId, PeerAddress, canonical
from unisono.verification.audit_note import AuditNote, CaseNote
from unisono.verification.fraud.descriptors import Descriptors, descriptors
from unisono.verification.fraud.positions import subject_of
from unisono.verification.receipt import Receipt
from unisono.wire.identity import Identity
from unisono.wire.rows import encode_rows
from unisono.wire.transports.base import Transport

log = logging.getLogger(__name__)

MAX_CASES = 4
"""Followed at once."""
MAX_WAITING = 64
"""That wait for their turn; beyond, a false claim is told to others and not accused."""
SEATS = (3, 7, 15)
"""Of the first committee, and of those that follow one without a majority."""
PLAYABLE = ("rows_out", "sampling")
"""Faults that a committee can see from the rows that came in."""
FIRST_RETRY, LONGEST_RETRY = 1.0, 60.0
"""Seconds before something that failed is tried again, doubled each time."""
GIVE_UP_SECONDS = 7 * 86_400.0
"""After which a case that cannot be followed is left to itself."""


class Accusations:
    """One gateway's, for one model. Use: `run` until cancelled; `sue` adds cases."""

    def __init__(
        self,
        wallet: Wallet,
        transport: Transport,
        address_of: Callable[[NodeId], PeerAddress | None],
        clock: Clock,
        model: StoredModel,
        seats: Seats,
        receipts: ReceiptStore,
        metrics: GatewayMetrics,
        *,
        poll_seconds: float,
        private: bool,
    ) -> None:
        """
        Args:
            seats: what computes for the court.
            private: whether the chain may make blocks for messages only.
        """
        self._wallet, self._clock, self._model, self._seats = wallet, clock, model, seats
        self._receipts, self._metrics = receipts, metrics
        self._poll_seconds, self._private = poll_seconds, private
        self._house = wallet.jury_house()
        self._plaintiff = Plaintiff(wallet.ledger, wallet.outbox, wallet.deployment, clock)
        self._debtors = (self._house.contract, contract_of(wallet.deployment, "registry"))
        folder = wallet.folder
        self.book = CaseBook(None if folder is None else folder / "cases.sqlite")
        self._instruction = Instruction(
            self._house,
            wallet.key,
            jury_domain(wallet.deployment.chain_id, self._house.contract.address),
            transport,
            address_of,
            clock,
            poll_seconds,
        )
        self._waiting: asyncio.Queue[CaseRecord] = asyncio.Queue()
        self._program: Descriptors | None = None

    @classmethod
    async def open(
        cls,
        wallet: Wallet,
        identity: Identity,
        transport: Transport,
        address_of: Callable[[NodeId], PeerAddress | None],
        clock: Clock,
        model: StoredModel,
        receipts: ReceiptStore,
        metrics: GatewayMetrics,
    ) -> Accusations | None:
        """Of a gateway with a wallet; None where its network has no committee.

        Raises:
            ConfigurationError: its file cannot be used.
            LedgerUnreachable: the chain does not answer.
        """
        if COMMITTEE not in wallet.deployment.contracts:
            return None
        private = await wallet.ledger.is_private()
        return cls(
            wallet,
            transport,
            address_of,
            clock,
            model,
            Seats(Study(identity, model)),
            receipts,
            metrics,
            poll_seconds=PRIVATE_POLL if private else PUBLIC_POLL,
            private=private,
        )

    async def sue(
        self, receipt: Receipt, signed: SettlementClaim, heard: Heard, note: AuditNote
    ) -> None:
        """Open a case about a claim that its node signed for the chain, when its turn comes."""
        fault = heard.verdict.fault
        if fault is None or fault.kind not in PLAYABLE:
            return
        if self._waiting.qsize() >= MAX_WAITING:
            log.warning(
                "%d cases wait: receipt %s is not taken to the chain", MAX_WAITING, receipt.id
            )
            return
        try:
            subject = subject_of(receipt, note.hop, self._model)
        except ReceiptError as error:
            log.warning("receipt %s cannot be taken to the chain: %s", receipt.id, error)
            return
        widths, rows = b"", list[memoryview]()
        if heard.rows is not None:
            widths, rows = encode_rows(heard.rows)
        answer = () if subject.tokens else receipt.tokens
        brief = canonical(Brief(subject, answer, widths, b"".join(rows), signed))
        if len(brief) > MAX_BYTES:
            log.warning("receipt %s is too long to be taken to the chain", receipt.id)
            return
        self._queue(self.book.add(receipt.id, note, brief, SEATS[0]))

    async def run(self) -> None:
        """Follow cases until cancelled, first those that an earlier process left."""
        for record in self.book.unfinished():
            self._queue(record)
        workers = [asyncio.create_task(self._work()) for _ in range(MAX_CASES)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self._seats.close()
            self.book.close()

    def _queue(self, record: CaseRecord) -> None:
        self._waiting.put_nowait(record)
        self._metrics.open_cases.inc()

    async def _work(self) -> None:
        while True:
            record = await self._waiting.get()
            await self._persist(record)
            self._metrics.open_cases.dec()

    async def _persist(self, record: CaseRecord) -> None:
        """Follow one case to its end, however often something fails."""
        delay, until = FIRST_RETRY, self._clock.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                record = await self._opened(record)
                if record.outcome == OPEN:
                    await self._followed(record)
                return
            except UnisonoError as error:
                log.warning("a case about receipt %s stands still: %s", record.receipt, error)
            if self._clock.monotonic() > until:
                await self._note(self.book.ended(record, "abandoned", 0))
                return
            await self._clock.sleep(delay)
            delay = min(2 * delay, LONGEST_RETRY)

    async def _opened(self, record: CaseRecord) -> CaseRecord:
        """The case on the chain: opened now, or by an earlier process; over if it cannot be.

        Raises:
            SettlementError: the chain is away.
        """
        if record.case is not None:
            return record
        house, claim = self._house, _claim(record)
        account, deployment = self._wallet.key.address, self._wallet.deployment
        domain = court_domain(deployment.chain_id, deployment.address("court"))
        try:
            price = await house.price(claim, domain, record.seats)
            await approve(house, deployment, account, price, "the bond and fees of a case")
            case = await house.open(claim, record.seats)
        except (InsufficientFunds, TransactionRefused) as error:
            log.warning("no case about receipt %s: %s", record.receipt, error)
            outcome = "unfunded" if isinstance(error, InsufficientFunds) else "refused"
            record = self.book.ended(record, outcome, 0)
            await self._note(record)
            return record
        state, rules = await house.state(case), await house.rules()
        record = self.book.opened(record, case, state.bond + record.seats * rules.fee)
        self._metrics.case_units.labels("paid").inc(record.paid)
        log.warning("case %s… about receipt %s is open", case.hex()[:12], record.receipt)
        await self._note(record)
        return record

    async def _followed(self, record: CaseRecord) -> None:
        """Draw, tell the members, count, go to court, collect.

        Raises:
            SettlementError: the chain is away, or a message does not reach it.
        """
        assert record.case is not None
        brief = decode_brief(record.brief)
        beside = [asyncio.create_task(self._instruction.give(record.case, brief))]

        async def contested() -> None:
            beside.append(asyncio.create_task(self._go_to_court(record)))

        accusation = Accusation(
            self._house,
            record.case,
            _claim(record),
            contested,
            self._make_block if self._private else None,
        )
        try:
            outcome = await accusation.run(self._poll_seconds)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        got = await self._credited(record.case)
        await self._plaintiff.collect(self._wallet.key.address)
        name = outcome.name.lower()
        log.warning("case %s… is over: %s", record.case.hex()[:12], name)
        self._metrics.cases.labels(name).inc()
        self._metrics.case_units.labels("got").inc(got)
        await self._note(self.book.ended(record, name, got))
        if outcome == Outcome.UNDECIDED:
            await self._ask_more(record)

    async def _ask_more(self, record: CaseRecord) -> None:
        """A larger committee, if the bench has one."""
        more = next((seats for seats in SEATS if seats > 2 * record.seats), None)
        if more is not None and await self._house.present() > more:
            self._queue(self.book.add(record.receipt, record.note, record.brief, more))

    async def _credited(self, case: bytes) -> int:
        """Units that the end of a case brought this account."""
        house, account = self._house, self._wallet.key.address
        state, head = await house.state(case), await house.ledger.head()
        topic, place = house.contract.topic("Closed"), (house.contract.address,)
        closed = await house.ledger.logs(place, state.block, head.number, topic)
        transaction = next(x.transaction for x in closed if x.topics[1] == case)
        receipt = await house.ledger.receipt(transaction)
        events = [
            event
            for entry in (() if receipt is None else receipt.logs)
            for contract in self._debtors
            if (event := contract.event(entry)) is not None
        ]
        return sum(f["amount"] for n, f in events if n == "Credited" and f["owner"] == account)

    async def _go_to_court(self, record: CaseRecord) -> None:
        """Play the game that a contested case needs, however often something fails."""
        delay, brief = FIRST_RETRY, decode_brief(record.brief)
        claim, loop = _claim(record), asyncio.get_running_loop()
        log.warning("receipt %s is contested: to the court", record.receipt)
        if self._program is None:
            self._program = await asyncio.to_thread(descriptors, self._model.manifest)
        case = Case(brief.subject, claim, self._program)

        def pleading(state: State) -> Pleading:
            return Pleading(self._seats, record.brief, state, loop, "challenger")

        while True:
            try:
                outcome = await self._plaintiff.play(case, pleading, self._poll_seconds)
            except TransactionRefused as error:
                log.error("the court does not hear receipt %s: %s", record.receipt, error)
                return
            except UnisonoError as error:
                log.error("a game about receipt %s stands still: %s", record.receipt, error)
                await self._clock.sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY)
                continue
            ended = "won" if outcome.challenger_won else "lost"
            why = "" if outcome.on_time else ": a side did not move in time"
            log.warning("the game about receipt %s is %s%s", record.receipt, ended, why)
            return

    async def _make_block(self) -> None:
        """A message of no consequence: the draw needs blocks, and nobody else may send any."""
        outbox = self._wallet.outbox
        key = f"block {(await self._house.ledger.head()).number}"
        await outbox.perform(Intent(outbox.account, key=key, purpose="a block for a draw"))

    async def _note(self, record: CaseRecord) -> None:
        """Tell it with the receipt."""
        case = CaseNote(
            case=(record.case or b"").hex(),
            outcome=record.outcome,
            paid=record.paid,
            got=record.got,
        )
        try:
            await self._receipts.note(
                record.receipt, msgspec.structs.replace(record.note, case=case)
            )
        except ReceiptError as error:
            log.warning("a case is not noted with its receipt: %s", error)


def _claim(record: CaseRecord) -> SettlementClaim:
    claim = decode_brief(record.brief).claim
    assert claim is not None
    return claim
