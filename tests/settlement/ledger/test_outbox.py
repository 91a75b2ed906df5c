"""The worker does everything once, whatever the chain and its own process do."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.settlement.ledger.scripted import COIN, Crash, ScriptedLedger
from unisono.clock import VirtualClock
from unisono.errors import (
    ConfigurationError,
    InsufficientFunds,
    SettlementError,
    TransactionRefused,
)
from unisono.settlement.ledger.delivery import OutboxSettings
from unisono.settlement.ledger.fees import GWEI, FeeRule
from unisono.settlement.ledger.intents import Intent, State
from unisono.settlement.ledger.outbox import Outbox, stop
from unisono.settlement.signature import SettlementKey

KEY = SettlementKey(b"\x05" * 32)
PAYEE = SettlementKey(b"\x06" * 32).address
Opener = Callable[..., Awaitable[Outbox]]


def intent(data: bytes, **more: str) -> Intent:
    return Intent(PAYEE, data, **more)


@pytest.fixture
def ledger() -> ScriptedLedger:
    return ScriptedLedger()


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def opened(
    ledger: ScriptedLedger, clock: VirtualClock, tmp_path: Path
) -> AsyncGenerator[Opener]:
    """Opens the outbox of one file; closes what is open at the end."""
    outboxes: list[Outbox] = []

    async def open_(confirmations: int = 0, fees: FeeRule | None = None) -> Outbox:
        outbox = await Outbox.open(
            tmp_path / "outbox.sqlite",
            ledger,
            KEY,
            settings=OutboxSettings(confirmations, fees=fees or FeeRule()),
            clock=clock,
            locks=tmp_path / "locks",
        )
        outboxes.append(outbox)
        return outbox

    yield open_
    for outbox in outboxes:
        await outbox.close()


async def test_an_intent_becomes_one_transaction_and_a_receipt(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    outbox = await opened()
    name = await outbox.submit(intent(b"pay"))
    assert await outbox.step()
    assert (await outbox.entry(name)).state is State.sent
    ledger.mine()
    assert not await outbox.step()
    receipt = await outbox.final(name)
    assert receipt.succeeded
    assert receipt.block == 1
    assert ledger.done() == [b"pay"]
    assert not (await outbox.entry(name)).attempts  # signed transactions are not kept


async def test_the_same_content_is_the_same_intent_unless_its_key_differs(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    outbox = await opened()
    first = await outbox.submit(intent(b"pay", purpose="a voucher"))
    assert await outbox.submit(intent(b"pay")) == first
    await outbox.step()
    ledger.mine()
    await outbox.step()
    assert await outbox.submit(intent(b"pay")) == first  # also when it is over
    assert await outbox.submit(intent(b"pay", key="2")) != first
    await outbox.step()
    ledger.mine()
    await outbox.step()
    assert ledger.done() == [b"pay", b"pay"]


async def test_a_restart_goes_on_with_what_was_signed(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    outbox = await opened()
    name = await outbox.submit(intent(b"pay"))
    ledger.calls_left = 7  # dies after signing, before the chain has it
    with pytest.raises(Crash):
        await outbox.step()
    ledger.calls_left = None
    assert (await outbox.entry(name)).state is State.signed
    assert not ledger.pool
    await outbox.close()
    again = await opened()
    await again.step()
    ledger.mine()
    await again.step()
    assert (await again.final(name)).succeeded
    assert ledger.done() == [b"pay"]


async def test_a_transaction_is_final_only_under_enough_blocks(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    outbox = await opened(confirmations=3)
    name = await outbox.submit(intent(b"pay"))
    await outbox.step()
    ledger.mine(3)
    await outbox.step()
    assert (await outbox.entry(name)).state is State.mined
    ledger.mine()
    await outbox.step()
    assert (await outbox.entry(name)).state is State.final


@pytest.mark.parametrize("keep", [True, False])
async def test_a_transaction_that_leaves_its_block_is_sent_again(
    opened: Opener, ledger: ScriptedLedger, keep: bool
) -> None:
    outbox = await opened(confirmations=3)
    names = [await outbox.submit(intent(b"pay %d" % n)) for n in range(3)]
    await outbox.step()
    ledger.mine(2)
    await outbox.step()
    ledger.reorganise(2, keep=keep)
    await outbox.step()
    assert len(ledger.pool) == 3
    ledger.mine(4)
    await outbox.step()
    assert [(await outbox.entry(n)).state for n in names] == [State.final] * 3
    assert ledger.done() == [b"pay 0", b"pay 1", b"pay 2"]


async def test_the_offer_rises_until_a_block_takes_it(
    opened: Opener, ledger: ScriptedLedger, clock: VirtualClock
) -> None:
    outbox = await opened(fees=FeeRule(wait_seconds=30))
    name = await outbox.submit(intent(b"pay"))
    await outbox.step()
    ledger.least_tip = 2 * GWEI
    ledger.mine()
    await outbox.step()
    assert len((await outbox.entry(name)).attempts) == 1  # patient at first
    await clock.advance(31)
    await outbox.step()
    first, second = (await outbox.entry(name)).attempts
    assert second.fee.tip >= 2 * GWEI
    assert 8 * second.fee.most > 9 * first.fee.most
    ledger.mine()
    await outbox.step()
    assert (await outbox.final(name)).transaction == second.hash


async def test_the_offer_never_rises_above_the_limit_nor_too_often(
    opened: Opener, ledger: ScriptedLedger, clock: VirtualClock
) -> None:
    rule = FeeRule(limit=4 * GWEI, wait_seconds=1, longest_wait_seconds=1, bumps=3)
    outbox = await opened(fees=rule)
    name = await outbox.submit(intent(b"pay"))
    await outbox.step()
    ledger.least_tip = 2 * GWEI + GWEI // 2
    ledger.base_fee = 3 * GWEI
    for _ in range(20):
        await clock.advance(2)
        await outbox.step()
    attempts = (await outbox.entry(name)).attempts
    assert 1 < len(attempts) <= 1 + rule.bumps
    assert all(a.fee.tip <= a.fee.most <= rule.limit for a in attempts)


async def test_a_contract_that_would_revert_costs_nothing_and_says_why(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    outbox = await opened()
    name = await outbox.submit(intent(b"revert", purpose="closing the channel"))
    await outbox.step()
    with pytest.raises(TransactionRefused, match=r"closing the channel: .*too early"):
        await outbox.final(name)
    assert ledger.seen == 0
    await outbox.submit(intent(b"revert"))
    assert (await outbox.entry(name)).state is State.queued  # later it may be time


async def test_a_revert_in_a_block_is_a_failure(opened: Opener, ledger: ScriptedLedger) -> None:
    outbox = await opened()
    name = await outbox.submit(intent(b"fails"))
    await outbox.step()
    ledger.mine()
    await outbox.step()
    with pytest.raises(TransactionRefused, match="reverted"):
        await outbox.final(name)
    await outbox.submit(intent(b"fails"))
    assert (await outbox.entry(name)).state is State.failed


async def test_too_little_money_is_said_and_waited_for(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    outbox = await opened()
    ledger.money = COIN // 10_000
    ledger.base_fee = 100 * GWEI
    name = await outbox.submit(intent(b"pay", purpose="redeeming 3 vouchers"))
    await outbox.step()
    with pytest.raises(InsufficientFunds) as caught:
        await outbox.final(name)
    assert caught.value.have == ledger.money < caught.value.need
    assert "0.0001, needed 0.0135" in str(caught.value)
    assert "redeeming 3 vouchers" in str(caught.value)
    assert KEY.address in str(caught.value)
    ledger.money = COIN
    await outbox.step()
    ledger.mine()
    await outbox.step()
    assert (await outbox.final(name)).succeeded


async def test_a_transaction_that_another_one_displaced_gets_a_new_nonce(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    """Somebody used the key elsewhere."""
    outbox = await opened(confirmations=2)
    name = await outbox.submit(intent(b"pay"))
    await outbox.step()
    key, mine = ledger.pool.popitem()
    ledger.pool[key] = type(mine)(
        mine.hash[:-4] + "ffff", mine.sender, 0, b"foreign", 1, mine.most, mine.tip
    )
    ledger.mine(4)
    for _ in range(4):
        await outbox.step()
    ledger.mine(3)
    await outbox.step()
    assert (await outbox.final(name)).succeeded
    assert ledger.done() == [b"foreign", b"pay"]


async def test_a_chain_that_lost_what_was_final_gets_nothing_more(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    outbox = await opened()
    await outbox.submit(intent(b"pay"))
    await outbox.step()
    ledger.mine()
    await outbox.step()
    ledger.reorganise(1, keep=False)
    name = await outbox.submit(intent(b"more"))
    await outbox.step()
    entry = await outbox.entry(name)
    assert entry.state is State.queued
    assert "no longer has 1 transactions that were final" in entry.problem
    assert ledger.seen == 1


async def test_what_is_queued_can_be_taken_back_and_what_is_signed_cannot(
    opened: Opener, ledger: ScriptedLedger
) -> None:
    outbox = await opened()
    name = await outbox.submit(intent(b"pay"))
    assert await outbox.cancel(name)
    await outbox.step()
    assert ledger.seen == 0
    with pytest.raises(TransactionRefused, match="cancelled"):
        await outbox.final(name)
    assert await outbox.submit(intent(b"pay")) == name
    await outbox.step()
    assert not await outbox.cancel(name)


async def test_two_workers_never_share_a_key(opened: Opener) -> None:
    first = await opened()
    with pytest.raises(ConfigurationError, match="another process works for"):
        await opened()
    await first.close()
    await opened()


async def test_an_outbox_belongs_to_one_chain(opened: Opener, ledger: ScriptedLedger) -> None:
    await (await opened()).close()
    ledger.blocks[0].hash = ledger.blocks[0].hash[:-1] + "z"
    with pytest.raises(ConfigurationError, match="is of first block"):
        await opened()


async def test_the_running_worker_waits_for_the_chain_and_wakes_up_for_work(
    opened: Opener, ledger: ScriptedLedger, clock: VirtualClock
) -> None:
    outbox = await opened()
    worker = asyncio.create_task(outbox.run())
    ledger.away = True
    name = await outbox.submit(intent(b"pay"))
    waiting = asyncio.create_task(outbox.final(name, timeout=300))
    for _ in range(10):
        await _advance(clock, 5)
    ledger.away = False
    for _ in range(20):
        await _advance(clock, 10)
        ledger.mine()
    assert (await waiting).succeeded
    late = asyncio.create_task(outbox.final(await outbox.submit(intent(b"late")), timeout=3))
    for _ in range(5):
        await _advance(clock, 1)
    with pytest.raises(SettlementError, match="only sent after 3 s"):
        await late
    await stop(worker)


async def _advance(clock: VirtualClock, seconds: float) -> None:
    """Let other threads answer, then move time."""
    for _ in range(40):
        await asyncio.sleep(0.0005)
    await clock.advance(seconds)


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_every_intent_happens_exactly_once(data: st.DataObject) -> None:
    """Random blocks, reorganisations shallower than the depth, lost transactions and crashes."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_storm(data, Path(folder)))


@pytest.mark.slow
@pytest.mark.timeout(600)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_every_intent_happens_exactly_once_in_many_storms(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_storm(data, Path(folder)))


async def _storm(data: st.DataObject, folder: Path) -> None:
    ledger, clock = ScriptedLedger(), VirtualClock()
    depth = 3
    rule = FeeRule(wait_seconds=10, bumps=50)

    async def reopened() -> Outbox:
        return await Outbox.open(
            folder / "outbox.sqlite",
            ledger,
            KEY,
            settings=OutboxSettings(depth, fees=rule, in_flight=3),
            clock=clock,
            locks=folder,
        )

    outbox = await reopened()
    sent: list[bytes] = []
    names: list[str] = []
    deepest = 0
    for _ in range(data.draw(st.integers(5, 30))):
        action = data.draw(
            st.sampled_from(["submit", "step", "mine", "crash", "reorg", "lose", "away", "time"])
        )
        if action == "submit" and len(sent) < 6:
            sent.append(b"pay %d" % len(sent))
            names.append(await outbox.submit(intent(sent[-1])))
        elif action == "step":
            await outbox.step()
        elif action == "mine":
            ledger.mine()
            deepest = max(0, deepest - 1)
        elif action == "crash":
            ledger.calls_left = data.draw(st.integers(0, 25))
            with contextlib.suppress(Crash):
                await outbox.step()
            ledger.calls_left = None
            await outbox.close()
            outbox = await reopened()
        elif action == "reorg":
            ledger.reorganise(data.draw(st.integers(1, depth)), keep=data.draw(st.booleans()))
        elif action == "lose":
            ledger.pool.clear()
        elif action == "away":
            ledger.away = True
            with pytest.raises(SettlementError):
                await outbox.step()
            ledger.away = False
        elif action == "time":
            await clock.advance(15)
    for _ in range(60):
        if not await outbox.step():
            break
        ledger.mine(2)
        await clock.advance(700)
    assert sorted(ledger.done()) == sorted(sent)
    for name in names:
        assert (await outbox.entry(name)).state is State.final
    await outbox.close()
