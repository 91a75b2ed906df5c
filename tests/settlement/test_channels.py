"""The channels contract: what each side can do, and what nobody can."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from eth_hash.auto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.settlement.deployed import (
    CLOSE_SECONDS,
    DEPLOYER,
    RICH,
    Deployed,
    deployed,
)
from tests.settlement.evm import NOBODY, Reverted, account
from unisono.settlement.artifacts import Artifact, artifact
from unisono.settlement.eip712 import address_word, checksummed
from unisono.settlement.signature import SettlementKey
from unisono.settlement.vouchers import MAX_AMOUNT, MAX_EPOCH, channels_domain, voucher_digest

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
PAYER = SettlementKey(bytes(31) + b"\x01")
OTHER = SettlementKey(bytes(31) + b"\x02")
PAYEE = account(3)
STRANGER = account(4)


@pytest.fixture(scope="module")
def deployment() -> Deployed:
    made = deployed()
    made.fund(PAYER.address, OTHER.address, PAYEE)
    return made


@pytest.fixture
def at(deployment: Deployed) -> Iterator[Deployed]:
    """The contracts as they were deployed, in every test anew."""
    kept = deployment.evm.snapshot()
    yield deployment
    deployment.evm.restore(kept)


def deposit(at: Deployed, amount: int, key: SettlementKey = PAYER) -> None:
    at.channels.send(key.address, "deposit", PAYEE, amount)


def redeem(at: Deployed, cumulative: int, epoch: int = 0, key: SettlementKey = PAYER) -> int:
    return at.channels.send(STRANGER, "redeem", *at.signed(key, PAYEE, epoch, cumulative))


def close(at: Deployed) -> int:
    at.channels.send(PAYER.address, "start_close", PAYEE)
    at.evm.pass_time(CLOSE_SECONDS)
    return at.channels.send(STRANGER, "finish_close", PAYER.address, PAYEE)


def channel(at: Deployed) -> tuple[int, ...]:
    return at.channels.view("channel", PAYER.address, PAYEE)


def test_the_payee_gets_what_was_promised_and_the_payer_the_rest(at: Deployed) -> None:
    deposit(at, 1_000)
    assert redeem(at, 300) == 300
    assert redeem(at, 450) == 150
    deposit(at, 50)
    assert channel(at) == (1_050, 450, 0, 0)
    assert close(at) == 600
    assert channel(at) == (0, 0, 0, 1)
    assert at.balance(PAYEE) == RICH + 450
    assert at.balance(PAYER.address) == RICH - 450
    assert at.balance(at.channels.address) == 0


def test_a_promise_beyond_the_deposit_pays_the_deposit_and_the_rest_after_a_top_up(
    at: Deployed,
) -> None:
    deposit(at, 100)
    assert redeem(at, 250) == 100
    with pytest.raises(Reverted, match="used up"):
        redeem(at, 250)
    deposit(at, 1_000)
    assert redeem(at, 250) == 150


@pytest.mark.parametrize("cumulative", [300, 299, 0])
def test_an_old_voucher_pays_nothing(at: Deployed, cumulative: int) -> None:
    deposit(at, 1_000)
    redeem(at, 300)
    with pytest.raises(Reverted, match="redeemed before"):
        redeem(at, cumulative)


def test_a_voucher_of_a_closed_channel_is_worthless_when_it_opens_again(at: Deployed) -> None:
    deposit(at, 1_000)
    close(at)
    deposit(at, 1_000)
    for epoch in (0, 2):
        with pytest.raises(Reverted, match="another epoch"):
            redeem(at, 300, epoch=epoch)
    assert redeem(at, 300, epoch=1) == 300


def test_a_voucher_still_pays_while_the_payer_waits_to_close(at: Deployed) -> None:
    deposit(at, 1_000)
    at.channels.send(PAYER.address, "start_close", PAYEE)
    with pytest.raises(Reverted, match="closing already"):
        at.channels.send(PAYER.address, "start_close", PAYEE)
    at.evm.pass_time(CLOSE_SECONDS - 1)
    with pytest.raises(Reverted, match="too early"):
        at.channels.send(PAYER.address, "finish_close", PAYER.address, PAYEE)
    assert redeem(at, 900) == 900
    at.evm.pass_time(1)
    assert at.channels.send(PAYER.address, "finish_close", PAYER.address, PAYEE) == 100


def test_nobody_finishes_a_close_that_the_payer_did_not_begin(at: Deployed) -> None:
    deposit(at, 1_000)
    at.evm.pass_time(10 * CLOSE_SECONDS)
    with pytest.raises(Reverted, match="nobody began"):
        at.channels.send(STRANGER, "finish_close", PAYER.address, PAYEE)
    at.channels.send(PAYER.address, "start_close", PAYEE)
    deposit(at, 1)
    at.evm.pass_time(CLOSE_SECONDS)
    with pytest.raises(Reverted, match="nobody began"):
        at.channels.send(PAYER.address, "finish_close", PAYER.address, PAYEE)


def test_a_payee_can_let_the_payer_go_at_once(at: Deployed) -> None:
    deposit(at, 1_000)
    redeem(at, 10)
    for person in (STRANGER, PAYER.address):
        with pytest.raises(Reverted, match="no such channel"):
            at.channels.send(person, "release", PAYER.address)
    assert at.channels.send(PAYEE, "release", PAYER.address) == 990
    assert at.balance(PAYER.address) == RICH - 10
    with pytest.raises(Reverted, match="another epoch"):
        redeem(at, 500)


def test_every_change_is_told(at: Deployed) -> None:
    ends = {"payer": PAYER.address, "payee": PAYEE, "epoch": 1}
    deposit(at, 5)
    close(at)
    deposit(at, 1_000)
    assert at.channels.events() == [("Deposited", {**ends, "amount": 1_000})]
    redeem(at, 300, epoch=1)
    assert at.channels.events() == [("Redeemed", {**ends, "amount": 300})]
    at.channels.send(PAYER.address, "start_close", PAYEE)
    closes = at.evm.time + CLOSE_SECONDS
    assert at.channels.events() == [("Closing", {**ends, "closes": closes})]
    at.channels.send(PAYEE, "release", PAYER.address)
    assert at.channels.events() == [("Closed", {**ends, "refund": 700})]


def test_the_contract_hashes_vouchers_as_wallets_do(at: Deployed) -> None:
    domain = channels_domain(at.evm.chain_id, at.channels.address)
    for epoch, cumulative in ((0, 1), (7, MAX_AMOUNT)):
        ours = voucher_digest(domain, PAYER.address, PAYEE, epoch, cumulative)
        assert at.channels.view("digest", PAYER.address, PAYEE, epoch, cumulative) == ours


@pytest.mark.parametrize("place", range(7))
@settings(max_examples=15)
@given(change=st.integers(1, 255))
def test_no_part_of_a_voucher_can_be_changed(deployment: Deployed, place: int, change: int) -> None:
    kept = deployment.evm.snapshot()
    deposit(deployment, 1_000)
    deposit(deployment, 1_000, OTHER)
    arguments = list(deployment.signed(PAYER, PAYEE, 0, 500))
    value = arguments[place]
    if isinstance(value, int):
        arguments[place] = value ^ change
    elif isinstance(value, bytes):
        arguments[place] = bytes((*value[:-1], value[-1] ^ change))
    else:
        arguments[place] = OTHER.address if place == 0 else account(change + 10)
    with pytest.raises(Reverted, match="signature"):
        deployment.channels.send(PAYEE, "redeem", *arguments)
    deployment.evm.restore(kept)


def test_the_other_signature_of_the_pair_is_refused(at: Deployed) -> None:
    deposit(at, 1_000)
    *terms, v, r, s = at.signed(PAYER, PAYEE, 0, 500)
    turned = (ORDER - int.from_bytes(s, "big")).to_bytes(32, "big")  # type: ignore[arg-type]
    with pytest.raises(Reverted, match="signature"):
        at.channels.send(PAYEE, "redeem", *terms, 55 - v, r, turned)  # type: ignore[operator]


def test_the_empty_address_signs_nothing(at: Deployed) -> None:
    zero = bytes(32)
    with pytest.raises(Reverted, match="signature"):
        at.channels.send(PAYEE, "redeem", NOBODY, PAYEE, 0, 5, 27, zero, zero)


def test_a_voucher_for_another_contract_or_chain_is_refused(at: Deployed) -> None:
    deposit(at, 1_000)
    second = at.evm.deploy(artifact("channels"), DEPLOYER, at.coin.address, CLOSE_SECONDS)
    at.coin.send(PAYER.address, "approve", second.address, RICH)
    second.send(PAYER.address, "deposit", PAYEE, 1_000)
    voucher = at.signed(PAYER, PAYEE, 0, 500)
    with pytest.raises(Reverted, match="signature"):
        second.send(PAYEE, "redeem", *voucher)
    home = at.evm.chain_id
    at.evm.set_chain_id(home + 1)
    try:
        with pytest.raises(Reverted, match="signature"):
            at.channels.send(PAYEE, "redeem", *voucher)
        # The split-off chain goes on, with its own vouchers.
        assert redeem(at, 400) == 400
    finally:
        at.evm.set_chain_id(home)
    assert at.channels.send(PAYEE, "redeem", *voucher) == 100


def batch(at: Deployed, *items: tuple[SettlementKey, int, int]) -> list[tuple[object, ...]]:
    signed = (at.signed(key, PAYEE, epoch, cumulative) for key, epoch, cumulative in items)
    return [(payer, *rest) for payer, _, *rest in signed]


def test_a_batch_pays_in_one_transfer_and_no_payer_can_spoil_it(at: Deployed) -> None:
    deposit(at, 1_000)
    deposit(at, 100, OTHER)
    redeem(at, 50)
    vouchers = batch(at, (PAYER, 0, 40), (OTHER, 0, 400), (PAYER, 0, 80), (PAYER, 1, 500))
    assert at.channels.send(STRANGER, "redeem_batch", PAYEE, vouchers) == 100 + 30
    assert at.balance(PAYEE) == RICH + 180
    with pytest.raises(Reverted, match="nothing to redeem"):
        at.channels.send(STRANGER, "redeem_batch", PAYEE, vouchers)
    with pytest.raises(Reverted, match="nothing to redeem"):
        at.channels.send(STRANGER, "redeem_batch", PAYEE, [])


def test_a_batch_with_a_forged_voucher_is_an_error(at: Deployed) -> None:
    deposit(at, 1_000)
    good, foreign = batch(at, (PAYER, 0, 40), (OTHER, 0, 400))
    forged = (good[0], *foreign[1:])
    with pytest.raises(Reverted, match="signature"):
        at.channels.send(PAYEE, "redeem_batch", PAYEE, [good, forged])


def test_the_largest_batch_fits_in_a_block(at: Deployed) -> None:
    keys = [SettlementKey(i.to_bytes(32, "big")) for i in range(100, 164)]
    at.fund(*(key.address for key in keys))
    for key in keys:
        deposit(at, 10, key)
    vouchers = batch(at, *((key, 0, 7) for key in keys))
    assert at.channels.send(PAYEE, "redeem_batch", PAYEE, vouchers) == 64 * 7
    with pytest.raises(Reverted):
        at.channels.send(PAYEE, "redeem_batch", PAYEE, [*vouchers, vouchers[0]])


def test_amounts_at_the_edge_of_a_channel(at: Deployed) -> None:
    deposit(at, MAX_AMOUNT)
    with pytest.raises(Reverted, match="more than a channel holds"):
        deposit(at, 1)
    assert redeem(at, 2**256 - 1) == MAX_AMOUNT
    assert channel(at) == (MAX_AMOUNT, MAX_AMOUNT, 0, 0)
    assert close(at) == 0
    with pytest.raises(Reverted, match="more than a channel holds"):
        deposit(at, 2**256 - 1)
    deposit(at, MAX_AMOUNT)
    assert close(at) == MAX_AMOUNT


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        ("deposit", (NOBODY, 5), "no payee"),
        ("deposit", (PAYEE, 0), "nothing"),
        ("start_close", (PAYEE,), "no such channel"),
        ("finish_close", (PAYER.address, PAYEE), "nobody began"),
        ("release", (PAYER.address,), "no such channel"),
    ],
)
def test_a_senseless_call_is_refused(
    at: Deployed, function: str, arguments: tuple[object, ...], reason: str
) -> None:
    with pytest.raises(Reverted, match=reason):
        at.channels.send(PAYER.address, function, *arguments)


def test_the_contract_itself_is_no_payee(at: Deployed) -> None:
    with pytest.raises(Reverted, match="no payee"):
        at.channels.send(PAYER.address, "deposit", at.channels.address, 5)


def test_a_channel_that_closed_too_often_keeps_no_coins(at: Deployed) -> None:
    # The word of a channel: keccak of (keccak of (place of `words`, payer), payee).
    slot = bytes(32)
    for address in (PAYER.address, PAYEE):
        slot = keccak(slot + address_word(address))
    at.evm.store(at.channels.address, slot, (MAX_EPOCH - 1) << 232)
    assert channel(at) == (0, 0, 0, MAX_EPOCH - 1)
    deposit(at, 100)
    assert redeem(at, 10, epoch=MAX_EPOCH - 1) == 10
    assert close(at) == 90
    with pytest.raises(Reverted, match="closed too often"):
        deposit(at, 100)


@pytest.mark.parametrize("window", [0, 90 * 86_400 + 1])
def test_a_window_of_no_use_is_refused_at_deployment(at: Deployed, window: int) -> None:
    with pytest.raises(Reverted, match="a window of"):
        at.evm.deploy(artifact("channels"), DEPLOYER, at.coin.address, window)
    with pytest.raises(Reverted, match="no contract"):
        at.evm.deploy(artifact("channels"), DEPLOYER, account(9), CLOSE_SECONDS)


@pytest.mark.parametrize("window", [1, 90 * 86_400])
def test_the_shortest_and_the_longest_window(at: Deployed, window: int) -> None:
    made = at.evm.deploy(artifact("channels"), DEPLOYER, at.coin.address, window)
    assert made.view("close_seconds") == window


@pytest.fixture
def hostile(compiled: Callable[[str], Artifact]) -> Deployed:
    """Contracts over a coin that misbehaves on demand."""
    made = deployed(compiled("hostile_coin"))
    for person in (PAYER.address, PAYEE, made.coin.address):
        made.coin.send(STRANGER, "mint", person, RICH)
    return made


def test_a_coin_that_takes_a_fee_or_says_no_is_refused(hostile: Deployed) -> None:
    for fee, denies, reason in ((1, False, "a fee"), (0, True, "not paid")):
        hostile.coin.send(STRANGER, "behave", fee, denies, False)
        with pytest.raises(Reverted, match=reason):
            deposit(hostile, 100)
    hostile.coin.send(STRANGER, "behave", 0, False, False)
    deposit(hostile, 100)
    hostile.coin.send(STRANGER, "behave", 0, True, False)
    with pytest.raises(Reverted, match="not paid out"):
        redeem(hostile, 50)
    hostile.coin.send(STRANGER, "behave", 0, False, True)
    # Older coins answer nothing when all is well.
    assert redeem(hostile, 50) == 50
    deposit(hostile, 100)


@pytest.mark.parametrize("again", ["deposit", "redeem", "redeem_batch", "release", "channel"])
def test_a_coin_that_calls_back_gets_nowhere(hostile: Deployed, again: str) -> None:
    coin = checksummed(bytes.fromhex(hostile.coin.address[2:]))
    channels = hostile.channels
    channels.send(PAYER.address, "deposit", coin, 1_000)
    first = hostile.signed(PAYER, coin, 0, 100)
    second = hostile.signed(PAYER, coin, 0, 900)
    payer, _, *rest = second
    data = {
        "deposit": channels.encoded("deposit", coin, 5),
        "redeem": channels.encoded("redeem", *second),
        "redeem_batch": channels.encoded("redeem_batch", coin, [(payer, *rest)]),
        "release": channels.encoded("release", PAYER.address),
        "channel": channels.encoded("channel", PAYER.address, coin),
    }[again]
    hostile.coin.send(STRANGER, "call_back", channels.address, data)
    assert channels.send(PAYEE, "redeem", *first) == 100
    assert hostile.coin.view("attempts") == 1
    assert not hostile.coin.view("reentered")
    # The same call is good as soon as the first is over: the lock refused it, not its contents.
    hostile.coin.send(STRANGER, "execute", channels.address, data)
