"""A committee's verdict on a chain: what the opener, the members and the accused send, and when.

All state is on the chain, salts follow from keys, and every message has a key of its own in the
outbox: a process that dies goes on where it was, and commits to the same digest again.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol

from eth_hash.auto import keccak

from unisono.clock import Clock
from unisono.errors import SettlementError, TransactionRefused
from unisono.settlement.claims import SettlementClaim
from unisono.settlement.disputes import Desk
from unisono.settlement.eip712 import Domain, address_word
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.ledger import Call, ChainReceipt, Head, Ledger
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress

POLL_SECONDS = 2.0
"""Between two looks at the chain."""
REMEMBERED = 256
"""Blocks whose hashes a contract can see: so long after the block of a draw it can be made."""
ABSTAIN = bytes(32)
"""The result of a member that was not given what it needs: no fee, no fine."""


class Phase(IntEnum):
    """Of a case, as in the contract."""

    NONE = 0
    DRAWING = 1
    VOTING = 2
    ACCUSED = 3
    CONTESTED = 4
    OVER = 5


class Outcome(IntEnum):
    """Of a case that is over, as in the contract."""

    RIGHT = 1
    """The majority agrees with the claim."""
    CONVICTED = 2
    """It contradicts the claim, and nobody contested that: the penalty is taken."""
    ACQUITTED = 3
    """Contested, and the opener lost before the court."""
    DROPPED = 4
    """Contested, and the opener did not go to the court."""
    GUILTY = 5
    """The court or another case convicted: this case's lock is taken too, if none was before."""
    UNDECIDED = 6
    """No result has more than half of the seats: more seats can be asked."""
    FAULTY = 7
    """The opener showed no claim that can be accused."""
    UNDRAWN = 8
    """Nobody drew the seats in time."""


class HeaderLedger(Ledger, Protocol):
    """A chain that also gives headers."""

    async def header(self, number: int) -> bytes | None:
        """A block's header as it is hashed, or None if there is no such block."""
        ...


@dataclass(frozen=True, slots=True)
class CaseState:
    """What the contract says of a case: its `Case`, then its `Progress`. Times are Unix seconds;
    of seats that committed or revealed there is one bit each."""

    claim: bytes
    node: bytes
    operator: EvmAddress
    opener: EvmAddress
    bond: int
    members: int
    progress: int
    verdict: bytes
    phase: int
    seats: int
    drawn: int
    tries: int
    committed: int
    revealed: int
    block: int
    size: int
    deadline: int
    opened: int

    @property
    def full(self) -> int:
        """All seats, as bits."""
        return (1 << self.seats) - 1


@dataclass(frozen=True, slots=True)
class JuryRules:
    """The contract's `Rules`; see there."""

    bond: int
    cases: int
    penalty: int
    unit: int
    fee: int
    fine: int
    draw_blocks: int
    commit_seconds: int
    reveal_seconds: int
    contest_seconds: int
    epoch_seconds: int
    claim_seconds: int
    to_challenger: int
    to_payer: int
    to_defender: int


@dataclass(frozen=True)
class JuryHouse:
    """A chain's committee contract, as one account uses it."""

    ledger: HeaderLedger
    desk: Desk
    contract: Contract
    clock: Clock

    async def rules(self) -> JuryRules:
        """Fixed for ever."""
        return JuryRules(*await self._read("rules"))

    async def state(self, case: bytes) -> CaseState:
        """As of now."""
        head, progress = await self._read("case_of", case)
        return CaseState(*head, *progress)

    async def seat(self, case: bytes, seat: int) -> tuple[EvmAddress, bytes]:
        """Who sits there, and the digest or result that is known of it."""
        member, answer = await self._read("seat_of", case, seat)
        return member[1], answer

    async def enrol(self, node: bytes, units: int) -> None:
        """Put a registered node on the bench; the deposit must be approved before.

        Raises:
            TransactionRefused: it is there already, not registered, or not paid for.
        """
        await self.send("enrol", node, units, key=str((await self.ledger.head()).number))

    async def open(self, claim: SettlementClaim, seats: int = 3) -> bytes:
        """Accuse a claim; bond and fees must be approved before. Returns the case.

        Raises:
            TransactionRefused: it cannot be accused, and why.
        """
        receipt = await self.send("open", claim.struct(), claim.signature, claim.node, seats)
        for log in receipt.logs:
            event = self.contract.event(log)
            if event is not None and event[0] == "Opened":
                return event[1]["case"]
        raise SettlementError("the contract took the accusation and logged no case")

    async def price(self, claim: SettlementClaim, domain: Domain, seats: int) -> int:
        """Units that a case about a claim costs its opener now: the bond, and a fee per seat.

        Raises:
            TransactionRefused: the contract would call the claim faulty, and take of the bond.
        """
        signed = claim.digest(domain), claim.node, claim.signer(domain)
        rules, dossier = await self.rules(), await self._read("dossier", *signed)
        length, now = rules.epoch_seconds, self.clock.now()
        last = (claim.epoch + 1) * length + rules.claim_seconds
        if claim.epoch > now // length + 1 or now > last:
            raise TransactionRefused(
                f"a claim of epoch {claim.epoch} cannot be accused now: the committee counts "
                f"epochs of {length} s, and takes claims for {rules.claim_seconds:,} s"
            )
        return rules.bond * (dossier[0] + 1) + seats * rules.fee

    async def present(self) -> int:
        """Members of the bench that a case opened now can draw."""
        return int(await self._read("present"))

    def is_past(self, head: Head, second: int) -> bool:
        """Whether a call that the contract takes only after a second can be tried. A chain that
        makes blocks for messages only does not show that time passes."""
        return head.timestamp > second or self.clock.now() > second + 1

    async def lapse(self, case: bytes, state: CaseState) -> bool:
        """End a case that nobody drew in time, or whose claim nobody showed, once that is certain;
        returns whether the chain took it. It frees seats and stake if the opener has gone."""
        rules, head = await self.rules(), await self.ledger.head()
        due = False
        if state.phase == Phase.DRAWING:
            due = head.number > state.block + rules.draw_blocks + REMEMBERED
        elif state.phase == Phase.VOTING:
            due = self.is_past(head, state.deadline + rules.reveal_seconds + rules.contest_seconds)
        if not due:
            return False
        try:
            await self.send("lapse", case, key=str(head.number))
        except TransactionRefused:
            return False  # somebody was faster; the state tells
        return True

    async def send(self, function: str, *arguments: object, key: str = "") -> ChainReceipt:
        """Send a call, once per arguments and key.

        Raises:
            TransactionRefused: the contract refuses it, and why.
            SettlementError: it is not final in time.
        """
        data = self.contract.encode(function, *arguments)
        purpose = f"'{function}' before the committee"
        return await self.desk.perform(
            Intent(self.contract.address, data, key=key, purpose=purpose)
        )

    async def named(self, event: str, first: int, **fields: object) -> tuple[dict[str, Any], ...]:
        """Events from block `first` on whose fields have these values."""
        last = (await self.ledger.head()).number
        topic = self.contract.topic(event)
        logs = await self.ledger.logs((self.contract.address,), first, last, topic)
        found = (self.contract.event(log) for log in logs)
        events = (entry[1] for entry in found if entry is not None)
        return tuple(x for x in events if all(x[name] == want for name, want in fields.items()))

    async def _read(self, function: str, *arguments: object) -> Any:
        data = self.contract.encode(function, *arguments)
        answer = await self.ledger.call(Call(self.contract.address, data))
        return self.contract.decode(function, answer)


class Accusation:
    """A case followed for its opener, who has the claim. The game before the court, if the accused
    contests, is the opener's too (`disputes`): `on_contest` is called once when it has to begin."""

    def __init__(
        self,
        house: JuryHouse,
        case: bytes,
        claim: SettlementClaim,
        on_contest: Callable[[], Awaitable[None]] | None = None,
        make_block: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """`make_block`: called while the draw waits for a block, on a chain that makes blocks for
        messages only."""
        self.house, self.case, self.claim = house, case, claim
        self._on_contest, self._make_block = on_contest, make_block

    async def run(self, poll_seconds: float = POLL_SECONDS) -> Outcome:
        """Do what is due until the case is over. Deadlines bound how long that takes as long as
        the chain goes on and the court decides.

        Raises:
            LedgerUnreachable: the chain does not answer.
            SettlementError: a call does not become final.
        """
        first = (await self.house.state(self.case)).block
        while True:
            state = await self.house.state(self.case)
            if state.phase == Phase.OVER:
                closed = await self.house.named("Closed", first, case=self.case)
                return Outcome(closed[-1]["outcome"])
            if state.phase == Phase.CONTESTED and self._on_contest is not None:
                begin, self._on_contest = self._on_contest, None
                await begin()
            if not await self.act(state):
                await self.house.clock.sleep(poll_seconds)

    async def act(self, state: CaseState) -> bool:
        """Send what can be sent now; returns whether the chain took anything. Keys name the block:
        what was refused once can be right later."""
        house, rules = self.house, await self.house.rules()
        head = await house.ledger.head()
        voted = state.revealed == state.full or house.is_past(
            head, state.deadline + rules.reveal_seconds
        )
        named = state.block + rules.draw_blocks
        try:
            if state.phase == Phase.DRAWING and head.number <= named:
                if self._make_block is None:
                    return False
                await self._make_block()
            elif state.phase == Phase.DRAWING:
                header = await house.ledger.header(named)
                if header is None or head.number > named + REMEMBERED:
                    return await house.lapse(self.case, state)
                await house.send("draw", self.case, header, key=str(head.number))
            elif state.phase == Phase.VOTING and voted:
                await house.send("tally", self.case, self.claim.words(), key=str(head.number))
            elif state.phase in (Phase.ACCUSED, Phase.CONTESTED):
                data = house.contract.encode("close", self.case, self.claim.words())
                await house.ledger.call(Call(house.contract.address, data))  # refuses if too early
                await house.send("close", self.case, self.claim.words(), key=str(head.number))
            else:
                return False
        except TransactionRefused:
            return False  # not yet, or somebody was faster; the state tells
        return True


class Juror:
    """A member's part: it commits and reveals in every case in which its account sits."""

    def __init__(
        self,
        house: JuryHouse,
        key: SettlementKey,
        compute: Callable[[bytes, CaseState], Awaitable[bytes | None]],
    ) -> None:
        """
        Args:
            key: of the account that is enrolled; salts follow from it.
            compute: the `result_of` a case, or None while it is not known.
        """
        self.house, self._key, self._compute = house, key, compute

    async def act(self, first: int) -> bool:
        """Do what is due in cases drawn from block `first` on; returns whether anything was sent
        that the chain took."""
        sent = False
        for event in await self.house.named("Seated", first, operator=self._key.address):
            sent |= await self.sit(event["case"], event["seat"])
        return sent

    async def sit(self, case: bytes, seat: int) -> bool:
        """Do what is due on one seat."""
        state = await self.house.state(case)
        bit = 1 << seat
        if state.phase != Phase.VOTING or state.revealed & bit:
            return False
        head = await self.house.ledger.head()
        if not state.committed & bit:
            result = await self._compute(case, state)
            if result is None or head.timestamp > state.deadline:
                return False
            digest = commit_digest(case, self._key.address, result, salt_of(self._key, case))
            return await self._send("commit", case, seat, digest)
        if state.committed != state.full and not self.house.is_past(head, state.deadline):
            return False
        _, digest = await self.house.seat(case, seat)
        result = await self._compute(case, state)
        salt = salt_of(self._key, case)
        for known in (result, ABSTAIN):
            if known is not None and digest == commit_digest(case, self._key.address, known, salt):
                return await self._send("reveal", case, seat, known, salt)
        return False

    async def _send(self, function: str, *arguments: object) -> bool:
        try:
            await self.house.send(function, *arguments)
        except TransactionRefused:
            return False  # too late, or sent before; the state tells
        return True


class Accused:
    """An operator's watch: it contests every accusation of a claim that it stands by."""

    def __init__(
        self,
        house: JuryHouse,
        account: EvmAddress,
        stands_by: Callable[[CaseState], Awaitable[bool]],
        claim_of: Callable[[CaseState], SettlementClaim | None] = lambda state: None,
    ) -> None:
        """`claim_of`: the claim that a case is about, where it was kept: with it the accused ends
        a contested case by itself, if the opener does not go to the court and says nothing."""
        self.house, self._account, self._stands_by = house, account, stands_by
        self._claim_of = claim_of

    async def act(self, first: int) -> tuple[bytes, ...]:
        """Contest what was contradicted from block `first` on; returns the cases. To be called at
        least once per `contest_seconds`: what is not contested by then is lost."""
        contested: list[bytes] = []
        for event in await self.house.named("Contradicted", first, operator=self._account):
            if await self.answer(event["case"], await self.house.state(event["case"])):
                contested.append(event["case"])
        return tuple(contested)

    async def answer(self, case: bytes, state: CaseState) -> bool:
        """Do what is due in one case; returns whether it was contested now."""
        claim = self._claim_of(state) if state.phase == Phase.CONTESTED else None
        if claim is not None:
            await Accusation(self.house, case, claim).act(state)
        if state.phase in (Phase.DRAWING, Phase.VOTING):
            await self.house.lapse(case, state)
        if state.phase != Phase.ACCUSED or not await self._stands_by(state):
            return False
        try:
            await self.house.send("contest", case)
        except TransactionRefused:
            return False  # too late, or done; the state tells
        return True


def result_of(rows_out: bytes, sequence: bytes) -> bytes:
    """What a member reveals: keccak-256 of the root of the rows out and, of a hop that ends the
    model, of the root over its tokens (zeros of another)."""
    return keccak(rows_out + sequence)


def commit_digest(case: bytes, member: EvmAddress, result: bytes, salt: bytes) -> bytes:
    """What a member commits to. It names the member: a digest that was copied cannot be opened."""
    return keccak(case + address_word(member) + result + salt)


def salt_of(key: SettlementKey, case: bytes) -> bytes:
    """A member's salt for a case, 32 bytes: after a restart it is the same."""
    return hmac.new(key.secret(), b"unisono/committee-salt/1" + case, hashlib.sha256).digest()
