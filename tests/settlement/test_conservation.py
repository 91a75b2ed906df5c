"""Random sequences of actions by people who may be anybody: coins are conserved and never stuck.

Each machine keeps its own books beside a contract and knows of every action whether the contract
must take it and what it must pay, so that a contract that is too strict fails as one that is too
lax. Hostile actions (others' money, old vouchers, judges who overreach) are among the actions.

`UNISONO_SEQUENCES` sets how many sequences each machine plays: 10,000 in the nightly mode.
"""

from __future__ import annotations

import os
from functools import cache

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.settlement.deployed import CLOSE_SECONDS, RICH, UNBOND_SECONDS, Deployed, deployed
from tests.settlement.evm import Contract, Reverted, account
from unisono.settlement.signature import SettlementKey
from unisono.settlement.vouchers import MAX_AMOUNT
from unisono.types import EvmAddress

SEQUENCES = int(os.environ.get("UNISONO_SEQUENCES", "20"))
PLAY = settings(
    max_examples=SEQUENCES,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.timeout(0 if SEQUENCES > 1_000 else 120)

KEYS = [SettlementKey(bytes(31) + bytes((i,))) for i in (1, 2, 3)]
PEOPLE = [key.address for key in KEYS]
BURN = EvmAddress("0x000000000000000000000000000000000000dEaD")
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
JUDGES = [account(20), account(21)]
PAIRS = [(0, 1), (2, 1), (1, 0), (0, 0)]
"""Payers and payees: two who pay one, one who pays back, one who pays itself."""
NODES = [b"\x01" * 32, b"\x02" * 32]
RECORDS = [(NODES[0], PEOPLE[0]), (NODES[0], PEOPLE[1]), (NODES[1], PEOPLE[0])]
SOMEBODY = st.integers(0, len(PEOPLE) - 1)
WINNERS = st.tuples(SOMEBODY, SOMEBODY)
EDGES = st.sampled_from([-1, 0])
HUGE = [MAX_AMOUNT - 1, MAX_AMOUNT, MAX_AMOUNT + 1, 2**256 - 1]


def near(limit: int) -> st.SearchStrategy[int]:
    """An amount: around a limit, where mistakes are, or anything."""
    edges = st.sampled_from([limit, max(limit - 1, 0), min(limit + 1, HUGE[-1]), (limit + 1) // 2])
    return st.one_of(edges, edges, edges, st.integers(0, 100), st.sampled_from(HUGE))


@cache
def world() -> Deployed:
    made = deployed(judges=(JUDGES[0], JUDGES[1]))
    made.fund(*PEOPLE)
    return made


class Machine(RuleBasedStateMachine):
    """A deployed contract, its state restored when a sequence ends."""

    contract: Contract

    def __init__(self) -> None:
        super().__init__()
        self.world = world()
        self.evm = self.world.evm
        self.kept = self.evm.snapshot()
        self.purses = dict.fromkeys(PEOPLE, RICH)
        """Coins of everybody outside of the contract, as they must be."""

    def expect(
        self, answer: int | bool | None, sender: EvmAddress, name: str, *arguments: object
    ) -> None:
        """Send a call that must return `answer` (True: nothing), or be refused (None)."""
        try:
            got = self.contract.send(sender, name, *arguments)
        except Reverted:
            assert answer is None, f"{name} was refused, expected {answer}"
        else:
            assert answer is not None, f"{name} was taken"
            assert answer is True or got == answer

    def due(self) -> list[int]:
        """Times at which something becomes possible."""
        raise NotImplementedError

    @rule(data=st.data(), offset=EDGES)
    def time_passes(self, data: st.DataObject, offset: int) -> None:
        later = [x - self.evm.time for x in self.due() if x > self.evm.time]
        seconds = data.draw(st.sampled_from([*later, 10])) + offset
        self.evm.pass_time(max(1, seconds))

    @invariant()
    def the_contract_holds_what_it_owes(self) -> None:
        assert self.world.balance(self.contract.address) == self.held()

    def check(self) -> None:
        """The contract's records are those in the books."""
        raise NotImplementedError

    def held(self) -> int:
        """What the contract must hold."""
        raise NotImplementedError

    def settle(self) -> None:
        """Everybody takes what is theirs."""
        raise NotImplementedError

    def teardown(self) -> None:
        try:
            self.check()
            self.settle()
            assert self.world.balance(self.contract.address) == 0, "coins are stuck"
            for person, coins in self.purses.items():
                assert self.world.balance(person) == coins
        finally:
            self.evm.restore(self.kept)


class Line:
    """The books of one channel."""

    def __init__(self) -> None:
        self.deposit = self.redeemed = self.closes = self.epoch = 0
        self.promised: dict[int, int] = {}
        """Epoch → most that the payer signed."""
        self.paid: dict[int, int] = {}
        """Epoch → what the payee got."""

    def restart(self) -> int:
        """Close; returns the refund."""
        refund = self.deposit - self.redeemed
        self.deposit = self.redeemed = self.closes = 0
        self.epoch += 1
        return refund


class Channels(Machine):
    """Payers and payees of one channels contract; everybody is both, also towards themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.contract = self.world.channels
        self.lines = {(PEOPLE[a], PEOPLE[b]): Line() for a, b in PAIRS}
        self.vouchers: list[tuple[EvmAddress, EvmAddress, int, int, tuple[object, ...]]] = []

    pairs = st.sampled_from([*PAIRS[:1] * 3, *PAIRS])

    def due(self) -> list[int]:
        return [line.closes for line in self.lines.values()]

    @initialize(amounts=st.tuples(*[st.integers(1, 100)] * len(PAIRS)))
    def begin(self, amounts: tuple[int, ...]) -> None:
        for pair, amount in zip(PAIRS, amounts, strict=True):
            self.put_in(pair, amount)

    @rule(pair=pairs, amount=near(50))
    def deposit(self, pair: tuple[int, int], amount: int) -> None:
        self.put_in(pair, amount)

    def put_in(self, pair: tuple[int, int], amount: int) -> None:
        a, b = PEOPLE[pair[0]], PEOPLE[pair[1]]
        line = self.lines[a, b]
        good = 0 < amount <= MAX_AMOUNT - line.deposit and amount <= self.purses[a]
        if good:
            line.deposit += amount
            line.closes = 0
            self.purses[a] -= amount
        self.expect(True if good else None, a, "deposit", b, amount)

    @rule(pair=pairs, data=st.data(), ahead=st.sampled_from([0, 0, 0, -1, 1]))
    def sign(self, pair: tuple[int, int], data: st.DataObject, ahead: int) -> None:
        a, b = PEOPLE[pair[0]], PEOPLE[pair[1]]
        line = self.lines[a, b]
        amount = data.draw(near(data.draw(st.sampled_from([line.deposit, line.redeemed]))))
        epoch = max(0, line.epoch + ahead)
        line.promised[epoch] = max(line.promised.get(epoch, 0), amount)
        signed = self.world.signed(KEYS[pair[0]], b, epoch, amount)
        self.vouchers.append((a, b, epoch, amount, signed))

    def payment(self, payer: EvmAddress, payee: EvmAddress, epoch: int, cumulative: int) -> int:
        """What a voucher pays now; the books take note."""
        line = self.lines[payer, payee]
        if epoch != line.epoch:
            return 0
        paid = max(0, min(cumulative, line.deposit) - line.redeemed)
        line.redeemed += paid
        line.paid[epoch] = line.paid.get(epoch, 0) + paid
        self.purses[payee] += paid
        return paid

    @rule(data=st.data(), sender=SOMEBODY)
    def redeem(self, data: st.DataObject, sender: int) -> None:
        if self.vouchers:
            payer, payee, epoch, cumulative, signed = data.draw(st.sampled_from(self.vouchers))
            paid = self.payment(payer, payee, epoch, cumulative)
            self.expect(paid or None, PEOPLE[sender], "redeem", *signed)

    @rule(data=st.data(), sender=SOMEBODY, payee=SOMEBODY)
    def redeem_batch(self, data: st.DataObject, sender: int, payee: int) -> None:
        mine = [x for x in self.vouchers if x[1] == PEOPLE[payee]]
        chosen = data.draw(st.lists(st.sampled_from(mine), max_size=5)) if mine else []
        paid = sum(self.payment(*x[:4]) for x in chosen)
        batch = [(x[4][0], *x[4][2:]) for x in chosen]
        self.expect(paid or None, PEOPLE[sender], "redeem_batch", PEOPLE[payee], batch)

    @rule(pair=pairs, sender=SOMEBODY)
    def turn_over(self, pair: tuple[int, int], sender: int) -> None:
        """The other signature that fits the same key and digest, of a voucher that would pay."""
        payee = PEOPLE[pair[1]]
        line = self.lines[PEOPLE[pair[0]], payee]
        *terms, v, r, s = self.world.signed(KEYS[pair[0]], payee, line.epoch, line.deposit)
        assert isinstance(s, bytes)
        assert isinstance(v, int)
        turned = (ORDER - int.from_bytes(s, "big")).to_bytes(32, "big")
        self.expect(None, PEOPLE[sender], "redeem", *terms, 55 - v, r, turned)

    @rule(data=st.data(), place=st.integers(0, 6), other=SOMEBODY, change=st.integers(1, 99))
    def forge(self, data: st.DataObject, place: int, other: int, change: int) -> None:
        if self.vouchers:
            signed = list(data.draw(st.sampled_from(self.vouchers))[4])
            match signed[place]:
                case int(number):
                    signed[place] = number ^ change
                case bytes(half):
                    signed[place] = bytes((*half[:-1], half[-1] ^ change))
                case _ if signed[place] != PEOPLE[other]:
                    signed[place] = PEOPLE[other]
                case _:
                    return
            self.expect(None, PEOPLE[other], "redeem", *signed)

    @rule(pair=pairs)
    def start_close(self, pair: tuple[int, int]) -> None:
        a, b = PEOPLE[pair[0]], PEOPLE[pair[1]]
        line = self.lines[a, b]
        good = line.deposit > 0 and line.closes == 0
        if good:
            line.closes = self.evm.time + CLOSE_SECONDS
        self.expect(True if good else None, a, "start_close", b)

    @rule(pair=pairs, sender=SOMEBODY)
    def finish_close(self, pair: tuple[int, int], sender: int) -> None:
        a, b = PEOPLE[pair[0]], PEOPLE[pair[1]]
        line = self.lines[a, b]
        refund = None
        if line.closes and self.evm.time >= line.closes:
            refund = line.restart()
            self.purses[a] += refund
        self.expect(refund, PEOPLE[sender], "finish_close", a, b)

    @rule(pair=pairs, offset=EDGES, amount=near(50))
    def close_and_open_again(self, pair: tuple[int, int], offset: int, amount: int) -> None:
        self.start_close(pair)
        self.evm.pass_time(CLOSE_SECONDS + offset)
        self.finish_close(pair, 2)
        self.put_in(pair, amount)

    @rule(pair=pairs)
    def release(self, pair: tuple[int, int]) -> None:
        a, b = PEOPLE[pair[0]], PEOPLE[pair[1]]
        line = self.lines[a, b]
        refund = line.restart() if line.deposit else None
        self.purses[a] += refund or 0
        self.expect(refund, b, "release", a)

    def check(self) -> None:
        for (payer, payee), line in self.lines.items():
            for epoch, paid in line.paid.items():
                assert paid <= line.promised.get(epoch, 0), "more than was promised"
            found = self.contract.view("channel", payer, payee)
            assert found == (line.deposit, line.redeemed, line.closes, line.epoch)

    def held(self) -> int:
        return sum(line.deposit - line.redeemed for line in self.lines.values())

    def settle(self) -> None:
        for payer, payee, epoch, cumulative, signed in self.vouchers:
            paid = self.payment(payer, payee, epoch, cumulative)
            self.expect(paid or None, payee, "redeem", *signed)
        open_lines = [(pair, line) for pair, line in self.lines.items() if line.deposit]
        for (payer, payee), line in open_lines:
            # An honest payee lost nothing of what it was promised and what was there to pay it.
            assert line.redeemed == min(line.promised.get(line.epoch, 0), line.deposit)
            if not line.closes:
                self.expect(True, payer, "start_close", payee)
        self.evm.pass_time(CLOSE_SECONDS)
        for (payer, payee), line in open_lines:
            refund = line.restart()
            self.purses[payer] += refund
            self.expect(refund, payer, "finish_close", payer, payee)


class Stake:
    """The books of one record."""

    def __init__(self) -> None:
        self.registered = False
        self.stake = self.leaving = self.ready = 0
        self.locked = dict.fromkeys(JUDGES, 0)

    @property
    def free(self) -> int:
        return self.stake + self.leaving - sum(self.locked.values())


class Registry(Machine):
    """Operators, judges, and people who would like to be judges, of one registry."""

    def __init__(self) -> None:
        super().__init__()
        self.contract = self.world.registry
        self.records = {key: Stake() for key in RECORDS}
        self.credits: dict[EvmAddress, int] = dict.fromkeys((*PEOPLE, BURN), 0)
        self.purses[BURN] = 0
        self.staked = self.slashed = self.withdrawn = 0

    keys = st.sampled_from([*RECORDS[:1] * 4, *RECORDS])
    judges = st.sampled_from([*JUDGES[:1] * 3, *JUDGES, PEOPLE[2]])

    def due(self) -> list[int]:
        return [record.ready for record in self.records.values()]

    @initialize(amounts=st.tuples(st.integers(1, 100), st.integers(1, 100)))
    def begin(self, amounts: tuple[int, ...]) -> None:
        """The third record is not registered."""
        for key, amount in zip(RECORDS, amounts, strict=False):
            self.register(key)
            self.put_in(key, amount)

    @rule(key=keys)
    def register(self, key: tuple[bytes, EvmAddress]) -> None:
        self.records[key].registered = True
        self.expect(True, key[1], "register", key[0], b"\x07" * 32, b"\x08" * 32)

    @rule(key=keys, amount=near(50))
    def stake(self, key: tuple[bytes, EvmAddress], amount: int) -> None:
        self.put_in(key, amount)

    def put_in(self, key: tuple[bytes, EvmAddress], amount: int) -> None:
        record = self.records[key]
        good = record.registered and 0 < amount <= self.purses[key[1]]
        if good:
            record.stake += amount
            self.purses[key[1]] -= amount
            self.staked += amount
        self.expect(True if good else None, key[1], "stake", key[0], amount)

    @rule(key=keys, data=st.data())
    def unbond(self, key: tuple[bytes, EvmAddress], data: st.DataObject) -> None:
        self.leave(key, data.draw(near(self.records[key].stake)))

    def leave(self, key: tuple[bytes, EvmAddress], amount: int) -> None:
        record = self.records[key]
        good = 0 < amount <= record.stake
        if good:
            record.stake -= amount
            record.leaving += amount
            record.ready = self.evm.time + UNBOND_SECONDS
        self.expect(True if good else None, key[1], "unbond", key[0], amount)

    @rule(key=keys)
    def withdraw(self, key: tuple[bytes, EvmAddress]) -> None:
        record = self.records[key]
        amount = min(record.leaving, record.free) if self.evm.time >= record.ready else 0
        record.leaving -= amount
        self.purses[key[1]] += amount
        self.withdrawn += amount
        self.expect(amount or None, key[1], "withdraw", key[0])

    @rule(key=keys, data=st.data(), offset=EDGES)
    def unbond_and_withdraw(
        self, key: tuple[bytes, EvmAddress], data: st.DataObject, offset: int
    ) -> None:
        self.leave(key, data.draw(near(self.records[key].stake)))
        self.evm.pass_time(UNBOND_SECONDS + offset)
        self.withdraw(key)

    @rule(key=keys, judge=judges, data=st.data())
    def lock(self, key: tuple[bytes, EvmAddress], judge: EvmAddress, data: st.DataObject) -> None:
        self.reserve(key, judge, data.draw(near(self.records[key].free)))

    def reserve(self, key: tuple[bytes, EvmAddress], judge: EvmAddress, amount: int) -> None:
        record = self.records[key]
        reserved = min(amount, record.free) if judge in JUDGES else 0
        if reserved:
            record.locked[judge] += reserved
        self.expect(reserved or None, judge, "lock", *key, amount)

    @rule(key=keys, judge=judges, data=st.data())
    def unlock(self, key: tuple[bytes, EvmAddress], judge: EvmAddress, data: st.DataObject) -> None:
        record = self.records[key]
        amount = data.draw(near(record.locked.get(judge, 0)))
        good = judge in JUDGES and amount <= record.locked[judge]
        if good:
            record.locked[judge] -= amount
        self.expect(True if good else None, judge, "unlock", *key, amount)

    @rule(key=keys, judge=judges, data=st.data(), winners=WINNERS)
    def slash(
        self,
        key: tuple[bytes, EvmAddress],
        judge: EvmAddress,
        data: st.DataObject,
        winners: tuple[int, int],
    ) -> None:
        amount = data.draw(near(self.records[key].locked.get(judge, 0)))
        shares = (data.draw(near(amount)), data.draw(near(amount // 2)))
        self.take(key, judge, amount, shares, winners)

    @rule(
        key=keys,
        judge=st.sampled_from(JUDGES),
        locks=st.integers(1, 60),
        leaves=st.integers(0, 20),
        data=st.data(),
        winners=WINNERS,
    )
    def dispute(
        self,
        key: tuple[bytes, EvmAddress],
        judge: EvmAddress,
        locks: int,
        leaves: int,
        data: st.DataObject,
        winners: tuple[int, int],
    ) -> None:
        """A judge locks coins and takes most of what it has locked."""
        self.reserve(key, judge, locks)
        amount = max(0, self.records[key].locked[judge] - leaves)
        half = st.integers(0, amount // 2)
        self.take(key, judge, amount, (data.draw(half), data.draw(half)), winners)

    def take(
        self,
        key: tuple[bytes, EvmAddress],
        judge: EvmAddress,
        amount: int,
        shares: tuple[int, int],
        winners: tuple[int, int],
    ) -> None:
        record = self.records[key]
        first, second = (PEOPLE[i] for i in winners)
        good = judge in JUDGES and amount <= record.locked[judge] and sum(shares) <= amount
        if good:
            record.locked[judge] -= amount
            from_stake = min(amount, record.stake)
            record.stake -= from_stake
            record.leaving -= amount - from_stake
            self.credits[first] += shares[0]
            self.credits[second] += shares[1]
            self.credits[BURN] += amount - sum(shares)
            self.slashed += amount
        arguments = (*key, amount, first, shares[0], second, shares[1])
        self.expect(True if good else None, judge, "slash", *arguments)

    @rule(owner=SOMEBODY, sender=SOMEBODY)
    def collect(self, owner: int, sender: int) -> None:
        self.take_credit(PEOPLE[owner], PEOPLE[sender])

    def take_credit(self, owner: EvmAddress, sender: EvmAddress) -> None:
        amount, self.credits[owner] = self.credits[owner], 0
        self.purses[owner] += amount
        self.expect(amount or None, sender, "collect", owner)

    def check(self) -> None:
        for key, record in self.records.items():
            found = self.contract.view("record", *key)[:4]
            locked = sum(record.locked.values())
            assert found == (record.stake, record.leaving, record.ready, locked)
            assert locked <= record.stake + record.leaving
            for judge, amount in record.locked.items():
                assert self.contract.view("locked_by", *key, judge) == amount
        for owner, amount in self.credits.items():
            assert self.contract.view("credit", owner) == amount

    def held(self) -> int:
        stakes = sum(record.stake + record.leaving for record in self.records.values())
        return stakes + sum(self.credits.values())

    def settle(self) -> None:
        for key, record in self.records.items():
            for judge in JUDGES:
                self.expect(True, judge, "unlock", *key, record.locked[judge])
                record.locked[judge] = 0
            if record.stake:
                self.leave(key, record.stake)
        self.evm.pass_time(UNBOND_SECONDS)
        for key in self.records:
            self.withdraw(key)
        for owner in self.credits:
            self.take_credit(owner, owner)
        # No operator lost a unit that no judge took.
        assert self.staked == self.withdrawn + self.slashed


TestChannels = Channels.TestCase
TestChannels.settings = PLAY
TestRegistry = Registry.TestCase
TestRegistry.settings = PLAY
