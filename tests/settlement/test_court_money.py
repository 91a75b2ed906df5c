"""Random games before the court by people who may be anybody: whoever is honest loses nothing.

The machine keeps books of its own beside registry and court, and knows of every call whether it
must be taken and what it must pay. One operator signs true claims, another false ones. The honest
operator and the honest challenger move in time; all others move if they like. Games are real ones
about a tiny model, advanced by some moves, so that they end by a step, by a deadline, or by another
game's verdict. At the end nothing is locked, and everybody takes what is theirs.

`UNISONO_SEQUENCES` sets how many sequences are played, as in `test_conservation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.settlement.courtroom import (
    BOND,
    CLAIM_SECONDS,
    DEPLOYER,
    EPOCH,
    MOVE_SECONDS,
    PENALTY,
    UNBOND_SECONDS,
    Courtroom,
    courtroom,
    moved,
)
from tests.settlement.evm import Contract, Reverted, account
from tests.settlement.test_conservation import EDGES, PLAY, SEQUENCES, near
from tests.verification.fraud import dispute
from tests.verification.fraud.dispute import HOP, answer_of, lying_holdings, one_element
from unisono.settlement.advocates import DECIDED, Appeal, Case, Defence, Prosecution, State
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress
from unisono.verification.fraud.holdings import Holdings
from unisono.verification.fraud.parties import Challenger, Defender
from unisono.verification.fraud.steps import Cell
from unisono.wire.claims import EPOCH_SECONDS

pytestmark = pytest.mark.timeout(0 if SEQUENCES > 100 else 240)

RICH = 10**12
GAMES = 3
"""Open about one claim, beyond which bonds grow with the square of their number."""
KEYS = [SettlementKey(bytes(31) + bytes((i,))) for i in (7, 8)]
HONEST, CHEAT = (key.address for key in KEYS)
SEEKER = account(40)
"""The honest challenger: contradicts false claims only, and moves in time."""
CROWD = [account(n) for n in (41, 42, 43, 44)]
JUDGE = account(50)
"""Another judge of the registry."""
BURN = EvmAddress("0x000000000000000000000000000000000000dEaD")
PAYER = account(13)
PEOPLE = [HONEST, CHEAT, SEEKER, *CROWD]
NODE = bytes.fromhex(HOP.node_id)
LATEST = (EPOCH + 1) * EPOCH_SECONDS + CLAIM_SECONDS
LIE = Cell(1, 6)


class Filed(NamedTuple):
    """A claim that somebody signed, and what its hop can show."""

    operator: EvmAddress
    case: Case
    holdings: Holdings
    twin: Case
    """A claim of the same session that differs."""


@cache
def world() -> tuple[Courtroom, tuple[Filed, ...]]:
    """A court, and three true claims and three false ones."""
    court = courtroom(GAMES, (JUDGE,))
    for person in PEOPLE:
        court.coin.send(DEPLOYER, "mint", person, RICH - court.coin.view("balanceOf", person))
        for contract in (court.registry, court.court):
            court.coin.send(person, "approve", contract.address, 2**256 - 1)
    for operator in (HONEST, CHEAT):
        court.registry.send(operator, "register", NODE, b"\1" * 32, b"\2" * 32)
    answer = answer_of("llama")
    liar = lying_holdings(answer, LIE, one_element("values", 3))
    filed: list[Filed] = []
    for key, holdings in zip(KEYS, (answer.honest, liar), strict=True):
        for n in range(3):
            session = bytes((n + 1,)) * 32
            cases = [
                court.case(answer, session=session, payer=PAYER, **changes)
                for changes in ({}, {"rows_out": bytes(32)})
            ]
            signed = [replace(c, claim=c.claim.signed_by(key, court.domain)) for c in cases]
            filed.append(Filed(key.address, signed[0], holdings, signed[1]))
    return court, tuple(filed)


@dataclass
class Played:
    """A game, and those who play it."""

    number: int
    state: State
    defence: Defence
    prosecution: Prosecution

    @property
    def mover(self) -> EvmAddress | None:
        turn = self.state.turn
        if turn is None:
            return None
        return self.state.defender if turn == "defender" else self.state.challenger


class File:
    """The books of one claim."""

    def __init__(self) -> None:
        self.games: dict[EvmAddress, Played] = {}
        """Open ones."""
        self.heard: set[EvmAddress] = set()
        self.convicted = self.reported = False
        self.locked = 0
        self.first: EvmAddress | None = None


class Record:
    """The books of one operator's stake."""

    def __init__(self) -> None:
        self.stake = self.leaving = self.ready = self.elsewhere = 0
        self.locked = 0
        """By the court."""
        self.waiting = self.kept = 0
        """Claims that found less than the penalty, and coins kept for them."""

    @property
    def free(self) -> int:
        return self.stake + self.leaving - self.locked - self.elsewhere

    def take(self, amount: int) -> None:
        from_stake = min(amount, self.stake)
        self.stake -= from_stake
        self.leaving -= amount - from_stake

    def release(self) -> None:
        """Unlock what no waiting claim needs."""
        kept = min(self.kept, self.waiting * PENALTY)
        self.locked -= self.kept - kept
        self.kept = kept


class Court(RuleBasedStateMachine):
    """Registry and court, their people, and the books."""

    def __init__(self) -> None:
        super().__init__()
        self.court, self.filed = world()
        self.evm = self.court.evm
        self.snapshot = self.evm.snapshot()
        self.files = [File() for _ in self.filed]
        self.records = {HONEST: Record(), CHEAT: Record()}
        self.purses = dict.fromkeys(PEOPLE, RICH)
        self.verdicts = dict.fromkeys((*PEOPLE, PAYER, BURN), 0)
        """Credits in the registry."""
        self.bonds = dict.fromkeys((*PEOPLE, PAYER, BURN), 0)
        """Credits in the court."""
        self.slashed = 0

    # Calls

    def expect(
        self, good: bool, sender: EvmAddress, contract: Contract, name: str, *arguments: object
    ) -> None:
        """Send a call that must be taken, or must be refused."""
        data = contract.encoded(name, *arguments)
        self.call(good, name, lambda: self.evm.call(sender, contract.address, data))

    def pay(self, good: bool, sender: EvmAddress, appeal: Appeal) -> None:
        """The same of a call of the court."""
        self.call(good, appeal.function, lambda: self.court.send(sender, appeal))

    def call(self, good: bool, name: str, send: Callable[[], object]) -> None:
        refusal = ""
        try:
            send()
        except Reverted as error:
            refusal = str(error) or "no reason"
        assert (not refusal) == good, f"{name}: {refusal or 'taken'}"

    # Operators and another judge

    operators = st.sampled_from([HONEST, CHEAT, CHEAT])
    claims = st.sampled_from([0, 1, 3, 3, 3, 4, 4, 5])
    challengers = st.sampled_from([SEEKER, SEEKER, *CROWD, CHEAT])

    @initialize(amounts=st.tuples(*[st.integers(1, 3 * PENALTY)] * 2))
    def begin(self, amounts: tuple[int, int]) -> None:
        for operator, amount in zip(self.records, amounts, strict=True):
            self.put_in(operator, amount)

    @rule(operator=operators, amount=near(PENALTY))
    def stakes(self, operator: EvmAddress, amount: int) -> None:
        self.put_in(operator, amount)

    def put_in(self, operator: EvmAddress, amount: int) -> None:
        good = 0 < amount <= self.purses[operator]
        if good:
            self.records[operator].stake += amount
            self.purses[operator] -= amount
        self.expect(good, operator, self.court.registry, "stake", NODE, amount)

    @rule(operator=operators, data=st.data())
    def unbonds(self, operator: EvmAddress, data: st.DataObject) -> None:
        self.leave(operator, data.draw(near(self.records[operator].stake)))

    def leave(self, operator: EvmAddress, amount: int) -> None:
        record = self.records[operator]
        good = 0 < amount <= record.stake
        if good:
            record.stake -= amount
            record.leaving += amount
            record.ready = self.evm.time + UNBOND_SECONDS
        self.expect(good, operator, self.court.registry, "unbond", NODE, amount)

    @rule(operator=operators)
    def withdraws(self, operator: EvmAddress) -> None:
        record = self.records[operator]
        amount = min(record.leaving, record.free)
        good = amount > 0 and self.evm.time >= record.ready
        if good:
            record.leaving -= amount
            self.purses[operator] += amount
        self.expect(good, operator, self.court.registry, "withdraw", NODE)

    @rule(operator=operators, amount=near(PENALTY))
    def another_judge_locks(self, operator: EvmAddress, amount: int) -> None:
        record = self.records[operator]
        reserved = min(amount, record.free)
        record.elsewhere += reserved
        arguments = (NODE, operator, amount)
        self.expect(reserved > 0, JUDGE, self.court.registry, "lock", *arguments)

    @rule(operator=operators)
    def another_judge_unlocks(self, operator: EvmAddress) -> None:
        record = self.records[operator]
        amount, record.elsewhere = record.elsewhere, 0
        self.expect(True, JUDGE, self.court.registry, "unlock", NODE, operator, amount)

    @rule()
    def another_judge_slashes(self) -> None:
        record = self.records[CHEAT]
        amount, record.elsewhere = record.elsewhere, 0
        record.take(amount)
        self.slashed += amount
        self.verdicts[BURN] += amount
        arguments = (NODE, CHEAT, amount, PAYER, 0, PAYER, 0)
        self.expect(True, JUDGE, self.court.registry, "slash", *arguments)

    # Games

    @rule(number=claims, challenger=challengers)
    def opens(self, number: int, challenger: EvmAddress) -> None:
        filed, file = self.filed[number], self.files[number]
        if challenger == SEEKER and filed.operator == HONEST:
            return
        record, count = self.records[filed.operator], len(file.games) + 1
        bond = BOND * count * max(count, GAMES) // GAMES
        good = bool(
            challenger not in file.heard
            and not file.convicted
            and (file.games or record.stake + record.leaving > 0)
            and self.evm.time <= LATEST
            and bond <= self.purses[challenger]
        )
        if not good:
            self.pay(False, challenger, filed.case.opening())
            return
        state = self.court.open(filed.case, challenger)
        assert state.bond == bond, f"{state.bond}, expected {bond}"
        self.purses[challenger] -= bond
        if not file.games:
            file.first = challenger
            file.locked = min(PENALTY, record.free)
            record.locked += file.locked
            record.waiting += file.locked < PENALTY
        file.heard.add(challenger)
        honest = answer_of("llama").honest
        target = None if challenger == SEEKER else (LIE, "mixed")
        file.games[challenger] = Played(
            number,
            state,
            Defence(filed.case, state, Defender(HOP, filed.holdings)),
            Prosecution(filed.case, state, Challenger(dispute.CHALLENGER, honest, target)),
        )

    @property
    def games(self) -> list[Played]:
        return [game for file in self.files for game in file.games.values()]

    def move(self, game: Played) -> None:
        """Whoever's turn it is moves."""
        mover, sides = game.mover, (game.defence, game.prosecution)
        assert mover is not None
        appeal = next(a for side in sides if (a := side.appeal()) is not None)
        if self.evm.time > game.state.deadline:
            self.pay(False, mover, appeal)
            return
        game.state, shown = moved(game.state, self.court.send(mover, appeal))
        for side in sides:
            side.hear(game.state, shown)

    @rule(data=st.data(), most=st.sampled_from([1, 2, 40]))
    def moves(self, data: st.DataObject, most: int) -> None:
        if self.games:
            game = data.draw(st.sampled_from(self.games))
            for _ in range(most):
                if game.mover is not None:
                    self.move(game)

    @rule(offset=EDGES, data=st.data())
    def time_passes(self, offset: int, data: st.DataObject) -> None:
        due = [game.state.deadline + 1 for game in self.games]
        due += [record.ready for record in self.records.values()]
        later = [x - self.evm.time for x in due if x > self.evm.time]
        self.wait(max(1, data.draw(st.sampled_from([*later, 10])) + offset))

    def wait(self, seconds: int) -> None:
        """Time passes, in which the honest move as long as it is their turn."""
        for game in self.games:
            while game.mover in (HONEST, SEEKER) and self.evm.time <= game.state.deadline:
                if self.evm.time + seconds <= game.state.deadline:
                    break
                self.move(game)
        self.evm.pass_time(seconds)

    @rule(data=st.data(), sender=st.sampled_from(PEOPLE))
    def settles(self, data: st.DataObject, sender: EvmAddress) -> None:
        if self.games:
            self.end(data.draw(st.sampled_from(self.games)), sender)

    def end(self, game: Played, sender: EvmAddress) -> None:
        """Have a game paid out, if it is over."""
        state, file, filed = game.state, self.files[game.number], self.filed[game.number]
        record = self.records[filed.operator]
        decided = state.phase == DECIDED
        good = decided or file.convicted or self.evm.time > state.deadline
        if good:
            del file.games[state.challenger]
            lost = state.challenger_lost if decided else state.turn == "challenger"
            if file.convicted:
                self.bonds[state.challenger] += state.bond
            elif lost:
                self.lose(file, state, record)
            else:
                self.convict(file, state, record)
            assert filed.operator == CHEAT or not file.convicted
            assert state.challenger != SEEKER or file.convicted
        self.pay(good, sender, filed.case.settling(state))
        if good:
            with pytest.raises(Reverted, match="another state"):
                self.court.send(sender, filed.case.settling(state))

    def lose(self, file: File, state: State, record: Record) -> None:
        share = state.bond * 6 // 10
        self.bonds[state.defender] += share
        self.bonds[BURN] += state.bond - share
        if file.first == state.challenger:
            file.first = None
        if not file.games:
            record.waiting -= file.locked < PENALTY
            record.kept += file.locked
            record.release()
            file.locked = 0

    def convict(self, file: File, state: State, record: Record) -> None:
        self.bonds[state.challenger] += state.bond
        amount = file.locked
        if amount < PENALTY:
            record.waiting -= 1
            kept = min(record.kept, PENALTY - amount)
            record.kept -= kept
            record.release()
            more = min(PENALTY - amount - kept, record.free)
            record.locked += more
            amount += kept + more
        half = amount // 2 if file.first not in (None, state.challenger) else 0
        if half:
            assert file.first is not None
            self.slash(record, half, file.first)
        self.slash(record, amount - half, state.challenger)
        file.convicted, file.locked = True, 0

    def slash(self, record: Record, amount: int, winner: EvmAddress) -> None:
        record.locked -= amount
        record.take(amount)
        self.slashed += amount
        self.verdicts[winner] += amount // 2
        self.verdicts[PAYER] += amount * 3 // 10
        self.verdicts[BURN] += amount - amount // 2 - amount * 3 // 10

    @rule(number=st.sampled_from([3, 4, 5]), reporter=challengers)
    def reports(self, number: int, reporter: EvmAddress) -> None:
        """Two claims of one session."""
        filed, file, record = self.filed[number], self.files[number], self.records[CHEAT]
        pair = [x for c in (filed.case, filed.twin) for x in (c.claim.words(), c.claim.signature)]
        amount = min(PENALTY, record.free)
        held = record.locked + record.elsewhere
        good = not file.reported and (amount == PENALTY or (amount > 0 and not held))
        if good:
            file.reported = True
            record.locked += amount
            self.slash(record, amount, reporter)
        self.pay(good, reporter, Appeal("equivocate", tuple(pair)))

    @rule(number=st.sampled_from([0, 1]), reporter=challengers)
    def slanders(self, number: int, reporter: EvmAddress) -> None:
        """One claim twice, or another operator's beside it."""
        mine, other = self.filed[number].case.claim, self.filed[number + 3].twin.claim
        for second in (mine, other, replace(mine, rows_out=bytes(32))):
            pair = (mine.words(), mine.signature, second.words(), second.signature)
            self.pay(False, reporter, Appeal("equivocate", pair))

    @rule(data=st.data(), sender=st.sampled_from(PEOPLE), word=st.integers(4, 14))
    def forges(self, data: st.DataObject, sender: EvmAddress, word: int) -> None:
        """A settlement of a state that is not the game's."""
        if self.games:
            game = data.draw(st.sampled_from(self.games))
            values = list(game.state)
            values[word] = not values[word] if word == 8 else int(str(values[word])) + 1
            self.pay(False, sender, self.filed[game.number].case.settling(State(*values)))

    @rule(owner=st.sampled_from([*PEOPLE, PAYER]))
    def collects(self, owner: EvmAddress) -> None:
        for contract, credits in (
            (self.court.registry, self.verdicts),
            (self.court.court, self.bonds),
        ):
            amount, credits[owner] = credits[owner], 0
            self.purses[owner] = self.purses.get(owner, 0) + amount
            self.expect(amount > 0, owner, contract, "collect", owner)

    # Checks

    def balance(self, owner: EvmAddress) -> int:
        return self.court.coin.view("balanceOf", owner)

    @invariant()
    def contracts_hold_what_they_owe(self) -> None:
        bonds = sum(game.state.bond for game in self.games) + sum(self.bonds.values())
        assert self.balance(self.court.court.address) == bonds
        stakes = sum(record.stake + record.leaving for record in self.records.values())
        held = self.balance(self.court.registry.address)
        assert held == stakes + sum(self.verdicts.values())

    @invariant()
    def the_honest_keep_their_stake(self) -> None:
        record = self.records[HONEST]
        assert self.purses[HONEST] + record.stake + record.leaving >= RICH

    def check(self) -> None:
        """The contracts' records are those in the books."""
        for operator, record in self.records.items():
            found = self.court.registry.view("record", NODE, operator)[:4]
            locked = record.locked + record.elsewhere
            expected = (record.stake, record.leaving, record.ready, locked)
            assert found == expected, f"{operator}: {found}, expected {expected}"
            assert locked <= record.stake + record.leaving
            place = self.court.court.address
            by_court = self.court.registry.view("locked_by", NODE, operator, place)
            assert by_court == record.locked
            queue = self.court.court.view("queues", NODE, operator)
            assert queue == (record.waiting, record.kept)
        for contract, credits in (
            (self.court.registry, self.verdicts),
            (self.court.court, self.bonds),
        ):
            for owner, amount in credits.items():
                assert contract.view("credit", owner) == amount

    def teardown(self) -> None:
        try:
            self.check()
            self.leave_court()
        finally:
            self.evm.restore(self.snapshot)

    def leave_court(self) -> None:
        """All games end, and everybody takes what is theirs."""
        while self.games:
            self.wait(MOVE_SECONDS + 1)
            for game in self.games:
                if game.state.phase == DECIDED or self.evm.time > game.state.deadline:
                    self.end(game, CROWD[0])
        self.check()
        for operator, record in self.records.items():
            self.another_judge_unlocks(operator)
            assert (record.locked, record.waiting, record.kept) == (0, 0, 0), "coins stay locked"
            if record.stake:
                self.leave(operator, record.stake)
        self.evm.pass_time(UNBOND_SECONDS)
        for operator, record in self.records.items():
            if record.leaving:
                self.withdraws(operator)
        for owner in self.verdicts:
            self.collects(owner)
        for contract in (self.court.registry, self.court.court):
            assert self.balance(contract.address) == 0, "coins are stuck"
        for person, coins in self.purses.items():
            assert self.balance(person) == coins
        assert min(self.purses[HONEST], self.purses[SEEKER]) >= RICH, "the honest lost"
        assert sum(self.purses.values()) == len(PEOPLE) * RICH


TestCourt = Court.TestCase
TestCourt.settings = PLAY
