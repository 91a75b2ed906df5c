"""A node before the committee of its chain: a member where its account was drawn, and an accused
where its own claims are contradicted.

All state is on the chain, but for results: they are kept, so that a node that was restarted opens
what it committed to. Who was given nothing, or cannot compute it, abstains: no fee, no fine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from unisono.clock import Clock
from unisono.compose.counsel import Counsel
from unisono.compose.wallet import Wallet
from unisono.errors import SettlementError, UnisonoError
from unisono.settlement.bench import COMMITTEE, OwnPlace
from unisono.settlement.claims import SettlementClaim
from unisono.settlement.committees import (
    ABSTAIN,
    Accused,
    CaseState,
    Juror,
    JuryHouse,
    Phase,
    result_of,
)
from unisono.settlement.eip712 import Domain
from unisono.settlement.jury_records import JuryRecords
from unisono.settlement.jury_work import check_task, jury_domain, vote_of, work_of
from unisono.settlement.ledger.ledger import Head
from unisono.settlement.signature import SettlementKey
from unisono.types import LayerRange, ModelId
from unisono.verification.stakes.work import Recomputer, ReplayWork
from unisono.wire.frames import encode_frame
from unisono.wire.identity import Identity
from unisono.wire.jury_messages import JuryTaken, JuryTask
from unisono.wire.messages import Refused
from unisono.wire.transports.base import Stream

log = logging.getLogger(__name__)

PRIVATE_LOOK, PUBLIC_LOOK = 0.5, 12.0
"""Seconds between two looks at the committee."""
LOOK_BACK = 128
"""Blocks that are read again at each look: a chain may replace some."""
MARGIN_SECONDS = 60.0
"""Before the end of the time to commit, or a quarter of that time if it is shorter: who has found
nothing by then abstains, so that the commit is on the chain in time."""
MAX_CHECKING = 2
"""Tasks that are checked at once."""
MAX_REMEMBERED = 4096
"""Cases that are over, and decisions about claims of one's own."""
LONGEST_WAIT = 60.0
"""Seconds between two looks at a chain that does not answer."""


@dataclass
class _Seated:
    """A case in which this account sits."""

    state: CaseState
    seats: set[int] = field(default_factory=set[int])


@dataclass(frozen=True)
class Bench:
    """What a node computes for cases."""

    model: ModelId
    hidden: int
    """The model's width."""
    max_positions: int
    recomputer: Callable[[LayerRange], Recomputer]
    """What computes a block, whichever this node serves."""


async def duty_of(
    wallet: Wallet,
    counsel: Counsel,
    identity: Identity,
    bench: Bench,
    judge: Recomputer,
    clock: Clock,
) -> JuryDuty | None:
    """A node's duty; None where its network has no committee.

    Args:
        counsel: what has the claims that the node signed for the chain.
        judge: what computes them again.

    Raises:
        ConfigurationError: its file cannot be used.
        SettlementError: the chain does not answer.
    """
    deployment, key = wallet.deployment, wallet.key
    if COMMITTEE not in deployment.contracts:
        return None

    def claim_of(state: CaseState) -> SettlementClaim | None:
        brief = counsel.brief(state.claim)
        return None if brief is None else brief.claim

    async def stands_by(state: CaseState) -> bool:
        brief = counsel.brief(state.claim)
        if brief is None or brief.claim is None:
            log.error("nothing was kept of a claim that is contradicted: it cannot be defended")
            return False
        work = work_of(brief, bench.hidden)
        found = vote_of(work, await judge.recompute(work))
        return found == result_of(brief.claim.rows_out, brief.claim.sequence)

    house = wallet.jury_house()
    folder = wallet.folder
    return JuryDuty(
        house,
        wallet.own_place(identity),
        key,
        jury_domain(deployment.chain_id, house.contract.address),
        bench,
        JuryRecords(None if folder is None else folder / "jury.sqlite"),
        clock,
        stands_by=stands_by,
        claim_of=claim_of,
        begin=deployment.block,
        poll_seconds=PRIVATE_LOOK if await wallet.ledger.is_private() else PUBLIC_LOOK,
    )


class JuryDuty:
    """One node's part. Use: `run` until cancelled; `handle` takes the streams of openers."""

    def __init__(
        self,
        house: JuryHouse,
        place: OwnPlace,
        key: SettlementKey,
        domain: Domain,
        bench: Bench,
        records: JuryRecords,
        clock: Clock,
        *,
        stands_by: Callable[[CaseState], Awaitable[bool]],
        claim_of: Callable[[CaseState], SettlementClaim | None],
        begin: int,
        poll_seconds: float,
    ) -> None:
        """
        Args:
            key: of the account that is enrolled and answers for the node's claims.
            domain: of openers' tasks (`jury_work.jury_domain`).
            stands_by: whether a contradicted claim of this node is right after all.
            claim_of: the claim that a case is about, if this node kept it.
            begin: the first block that can have cases.
        """
        self._house, self._place, self._key, self._domain = house, place, key, domain
        self._bench, self._records, self._clock = bench, records, clock
        self._begin, self._poll_seconds = begin, poll_seconds
        self._juror = Juror(house, key, self._result)
        self._accused = Accused(house, key.address, self._decided, claim_of)
        self._stands_by = stands_by
        self._open: dict[bytes, _Seated] = {}
        """Cases in which this account sits and that were not over at the last look."""
        self._against: dict[bytes, CaseState] = {}
        """The same of cases about claims of this account."""
        self._read = {"sit": 0, "defend": 0}
        """Up to which block the two looks came."""
        self._over: dict[bytes, None] = {}
        self._tasks: dict[bytes, bytes] = {}
        """What was taken of each case: its contents."""
        self._decisions: dict[bytes, bool] = {}
        self._turn = asyncio.Semaphore(1)
        self._checking = 0
        self._commit_seconds = 0
        self._working: set[asyncio.Task[None]] = set()

    async def handle(self, stream: Stream, task: JuryTask, body: bytes | memoryview) -> None:
        """Serve a stream whose first message is a `JuryTask`.

        Raises:
            PeerCheating: the opener did not sign it, or the body is not what it announces.
            PeerGone: it went away.
        """
        refusal = self._refusal(task)
        if refusal is None:
            refusal = await self._take(task, body)
        await stream.send(encode_frame(refusal or JuryTaken(task.case)))

    def _refusal(self, task: JuryTask) -> Refused | None:
        """Why a task is not even looked at, or None."""
        if bytes.fromhex(task.case) not in self._open:
            return Refused("not_seated", "this node sits in no such case, or has not heard of it")
        if task.model != self._bench.model:
            return Refused("not_held", f"model {task.model[:16]}… is not here: this node abstains")
        if task.positions > self._bench.max_positions:
            most = self._bench.max_positions
            return Refused("too_long", f"replays of up to {most} positions: this node abstains")
        if self._checking >= MAX_CHECKING:
            return Refused("capacity", f"{self._checking} tasks are being checked; come back")
        return None

    async def _take(self, task: JuryTask, body: bytes | memoryview) -> Refused | None:
        """Take a task that the opener signed, once per case."""
        case = bytes.fromhex(task.case)
        opener = self._open[case].state.opener
        self._checking += 1
        try:
            work = await asyncio.to_thread(
                check_task, task, body, self._bench.hidden, opener, self._domain
            )
            contents = await asyncio.to_thread(task.contents, body)
        finally:
            self._checking -= 1
        known = self._tasks.get(case)
        if known is not None and known != contents:
            return Refused("another_task", "the opener set this node another task before")
        if known is None and case in self._open:
            self._tasks[case] = contents
            working = asyncio.create_task(self._compute(case, work))
            self._working.add(working)
            working.add_done_callback(self._working.discard)
        return None

    async def _compute(self, case: bytes, work: ReplayWork) -> None:
        async with self._turn:
            try:
                found = await self._bench.recomputer(work.layers).recompute(work)
            except UnisonoError as error:
                log.warning("case %s… is not computed, this node abstains: %s", _short(case), error)
                return
            self._records.keep(case, await asyncio.to_thread(vote_of, work, found))

    async def run(self) -> None:
        """Look at the chain, and do what is due, until cancelled."""
        try:
            # apart: what a claim of one's own is worth takes long to compute
            await asyncio.gather(self._repeat(self.sit), self._repeat(self.defend))
        finally:
            for working in self._working:
                working.cancel()
            self._records.close()

    async def _repeat(self, act: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            try:
                await act()
                failures = 0
            except SettlementError as error:
                failures += 1
                log.warning("a part before a committee is not played (%d): %s", failures, error)
            wait = self._poll_seconds * 2.0 ** min(failures, 16)
            await self._clock.sleep(min(wait, max(LONGEST_WAIT, self._poll_seconds)))

    async def sit(self) -> None:
        """Do what is due where this account sits.

        Raises:
            LedgerUnreachable: the chain does not answer.
            SettlementError: a message does not reach it.
        """
        if not self._commit_seconds:
            self._commit_seconds = (await self._house.rules()).commit_seconds
            await self._place.collect()
        head = await self._house.ledger.head()
        for event in await self._house.named("Seated", self._first, operator=self._key.address):
            case = event["case"]
            if case not in self._open and case not in self._over:
                self._open[case] = _Seated(await self._house.state(case))
            if case in self._open:
                self._open[case].seats.add(event["seat"])
        for case, seated in list(self._open.items()):
            await self._follow(case, seated)
        self._advance("sit", head)

    def _advance(self, look: str, head: Head) -> None:
        """Look from a later block on, if both looks have come so far and no case needs more."""
        self._read[look] = head.number
        states = *(x.state for x in self._open.values()), *self._against.values()
        blocks = *(state.block for state in states), min(self._read.values()) - LOOK_BACK
        self._records.first = max(self._first, min(blocks))

    async def _follow(self, case: bytes, seated: _Seated) -> None:
        seated.state = await self._house.state(case)
        if seated.state.phase == Phase.OVER:
            del self._open[case]
            await self._end(case)
            return
        for seat in sorted(seated.seats):
            await self._juror.sit(case, seat)
        await self._house.lapse(case, seated.state)

    async def defend(self) -> None:
        """Contest what was contradicted and is right, and end what its opener leaves open.

        Raises: as `sit`.
        """
        head = await self._house.ledger.head()
        for event in await self._house.named("Opened", self._first, operator=self._key.address):
            case = event["case"]
            if case not in self._against and case not in self._over:
                log.warning("case %s… is about a claim of this node", _short(case))
                self._against[case] = await self._house.state(case)
        for case in list(self._against):
            state = self._against[case] = await self._house.state(case)
            if state.phase == Phase.OVER:
                del self._against[case]
                await self._end(case)
            elif await self._accused.answer(case, state):
                log.warning("case %s… about a claim of this node is contested", _short(case))
        self._advance("defend", head)

    @property
    def _first(self) -> int:
        return max(self._begin, self._records.first)

    async def _end(self, case: bytes) -> None:
        self._tasks.pop(case, None)
        self._over[case] = None
        while len(self._over) > MAX_REMEMBERED:
            del self._over[next(iter(self._over))]
        units = await self._place.collect()
        log.info("case %s… is over; collected %d units", _short(case), units)

    async def _result(self, case: bytes, state: CaseState) -> bytes | None:
        """See `Juror.compute`: what was found, or in the end that nothing was."""
        known = self._records.result(case)
        margin = min(MARGIN_SECONDS, self._commit_seconds / 4)
        if known is None and self._clock.now() > state.deadline - margin:
            log.warning("case %s…: nothing to compute came in time", _short(case))
            return self._records.keep(case, ABSTAIN)
        return known

    async def _decided(self, state: CaseState) -> bool:
        """Whether to contest, computed once per claim."""
        known = self._decisions.get(state.claim)
        if known is None:
            try:
                known = await self._stands_by(state)
            except UnisonoError as error:
                log.error("whether a claim is right cannot be computed: %s", error)
                return False
            if not known:
                log.error("a claim of this node is false: the contradiction is not contested")
            self._decisions[state.claim] = known
            while len(self._decisions) > MAX_REMEMBERED:
                del self._decisions[next(iter(self._decisions))]
        return known


def _short(case: bytes) -> str:
    return case.hex()[:12]
