"""The registry contract: stakes come back in full unless a judge decides otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from eth_hash.auto import keccak

from tests.settlement.deployed import (
    CLOSE_SECONDS,
    DEPLOYER,
    RICH,
    UNBOND_SECONDS,
    Deployed,
    deployed,
)
from tests.settlement.evm import NOBODY, Reverted, account
from unisono.settlement.artifacts import Artifact, artifact
from unisono.types import EvmAddress

OPERATOR, SECOND, STRANGER = account(3), account(4), account(5)
JUDGE, RIVAL = account(6), account(7)
CHALLENGER, PAYER = account(8), account(9)
BURN = EvmAddress("0x000000000000000000000000000000000000dEaD")
NODE, SIGNATURE = b"\x11" * 32, (b"\x22" * 32, b"\x33" * 32)


@pytest.fixture(scope="module")
def deployment() -> Deployed:
    made = deployed(judges=(JUDGE, RIVAL))
    made.fund(OPERATOR, SECOND)
    for operator in (OPERATOR, SECOND):
        made.registry.send(operator, "register", NODE, *SIGNATURE)
    made.registry.send(OPERATOR, "stake", NODE, 1_000)
    return made


@pytest.fixture
def at(deployment: Deployed) -> Iterator[Deployed]:
    """The contracts with a stake of 1,000, in every test anew."""
    kept = deployment.evm.snapshot()
    yield deployment
    deployment.evm.restore(kept)


def lock(at: Deployed, amount: int, judge: EvmAddress = JUDGE) -> int:
    return at.registry.send(judge, "lock", NODE, OPERATOR, amount)


def slash(
    at: Deployed, amount: int, shares: tuple[int, int] = (0, 0), judge: EvmAddress = JUDGE
) -> None:
    challenger, payer = shares
    at.registry.send(judge, "slash", NODE, OPERATOR, amount, CHALLENGER, challenger, PAYER, payer)


def unbond(at: Deployed, amount: int) -> None:
    at.registry.send(OPERATOR, "unbond", NODE, amount)


def withdraw(at: Deployed) -> int:
    return at.registry.send(OPERATOR, "withdraw", NODE)


def record(at: Deployed, operator: EvmAddress = OPERATOR) -> tuple[int, ...]:
    """Stake, leaving, ready, locked."""
    return at.registry.view("record", NODE, operator)[:4]


def test_a_stake_comes_back_after_the_delay(at: Deployed) -> None:
    unbond(at, 400)
    at.evm.pass_time(UNBOND_SECONDS - 1)
    with pytest.raises(Reverted, match="too early"):
        withdraw(at)
    at.evm.pass_time(1)
    assert withdraw(at) == 400
    assert record(at)[:2] == (600, 0)
    assert at.balance(OPERATOR) == RICH - 600
    with pytest.raises(Reverted, match="nothing unbonded"):
        withdraw(at)


def test_unbonding_more_starts_the_delay_again_for_all(at: Deployed) -> None:
    unbond(at, 400)
    at.evm.pass_time(UNBOND_SECONDS - 1)
    unbond(at, 600)
    at.evm.pass_time(1)
    with pytest.raises(Reverted, match="too early"):
        withdraw(at)
    at.evm.pass_time(UNBOND_SECONDS)
    assert withdraw(at) == 1_000


def test_records_of_one_node_id_under_two_addresses_are_apart(at: Deployed) -> None:
    at.registry.send(SECOND, "stake", NODE, 70)
    assert record(at)[0] == 1_000
    assert record(at, SECOND)[0] == 70
    with pytest.raises(Reverted, match="more than the stake"):
        at.registry.send(SECOND, "unbond", NODE, 71)
    lock(at, 1_000)
    slash(at, 1_000)
    assert record(at, SECOND)[0] == 70


def test_the_record_keeps_the_nodes_signature(at: Deployed) -> None:
    assert at.registry.view("record", NODE, OPERATOR)[4:] == SIGNATURE
    at.registry.send(OPERATOR, "register", NODE, SIGNATURE[1], SIGNATURE[0])
    assert at.registry.view("record", NODE, OPERATOR)[4:] == SIGNATURE[::-1]
    assert record(at)[0] == 1_000


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        ("register", (bytes(32), *SIGNATURE), "empty"),
        ("register", (NODE, bytes(32), SIGNATURE[1]), "empty"),
        ("stake", (NODE, 0), "nothing to stake"),
        ("stake", (b"\x12" * 32, 5), "unregistered"),
        ("stake", (NODE, RICH + 1), "balance"),
        ("unbond", (NODE, 0), "nothing to unbond"),
        ("unbond", (NODE, 1_001), "more than the stake"),
        ("withdraw", (NODE,), "nothing unbonded"),
        ("collect", (OPERATOR,), "no credit"),
    ],
)
def test_a_senseless_call_is_refused(
    at: Deployed, function: str, arguments: tuple[object, ...], reason: str
) -> None:
    with pytest.raises(Reverted, match=reason):
        at.registry.send(OPERATOR, function, *arguments)


@pytest.mark.parametrize("person", [OPERATOR, STRANGER, DEPLOYER])
def test_nobody_but_a_judge_touches_a_stake(at: Deployed, person: EvmAddress) -> None:
    lock(at, 500)
    calls = (
        ("lock", (NODE, OPERATOR, 1)),
        ("unlock", (NODE, OPERATOR, 1)),
        ("slash", (NODE, OPERATOR, 1, CHALLENGER, 1, PAYER, 0)),
    )
    for function, arguments in calls:
        with pytest.raises(Reverted, match="only a judge"):
            at.registry.send(person, function, *arguments)


def test_a_slash_is_split_as_told_and_the_rest_is_burned(at: Deployed) -> None:
    assert lock(at, 600) == 600
    slash(at, 600, (200, 150))
    assert record(at) == (400, 0, 0, 0)
    for owner, amount in ((CHALLENGER, 200), (PAYER, 150), (BURN, 250)):
        assert at.registry.view("credit", owner) == amount
        assert at.registry.send(STRANGER, "collect", owner) == amount
        assert at.balance(owner) == amount
        with pytest.raises(Reverted, match="no credit"):
            at.registry.send(owner, "collect", owner)
    assert at.balance(at.registry.address) == 400


def test_one_person_may_be_challenger_and_payer(at: Deployed) -> None:
    lock(at, 100)
    at.registry.send(JUDGE, "slash", NODE, OPERATOR, 100, PAYER, 60, PAYER, 40)
    assert at.registry.view("credit", PAYER) == 100


def test_a_judge_takes_only_what_it_locked(at: Deployed) -> None:
    lock(at, 300)
    lock(at, 200, RIVAL)
    with pytest.raises(Reverted, match="more than was locked"):
        slash(at, 301)
    with pytest.raises(Reverted, match="more than was locked"):
        at.registry.send(RIVAL, "unlock", NODE, OPERATOR, 201)
    with pytest.raises(Reverted, match="above the whole"):
        slash(at, 300, (200, 101))
    with pytest.raises(Reverted, match="above the whole"):
        slash(at, 300, (2**256 - 1, 2))
    with pytest.raises(Reverted, match="empty owner"):
        at.registry.send(JUDGE, "slash", NODE, OPERATOR, 10, NOBODY, 5, PAYER, 5)
    slash(at, 300)
    at.registry.send(RIVAL, "unlock", NODE, OPERATOR, 200)
    assert record(at) == (700, 0, 0, 0)


def test_two_disputes_never_count_on_the_same_coins(at: Deployed) -> None:
    assert lock(at, 700) == 700
    assert lock(at, 700, RIVAL) == 300
    assert at.registry.view("free", NODE, OPERATOR) == 0
    with pytest.raises(Reverted, match="nothing at stake"):
        lock(at, 1)
    slash(at, 300, judge=RIVAL)
    slash(at, 700)
    assert record(at) == (0, 0, 0, 0)


def test_unbonded_coins_stay_liable_until_they_are_withdrawn(at: Deployed) -> None:
    unbond(at, 900)
    at.evm.pass_time(10 * UNBOND_SECONDS)
    assert lock(at, 500) == 500
    assert withdraw(at) == 500
    with pytest.raises(Reverted, match="locked by disputes"):
        withdraw(at)
    slash(at, 250)
    assert record(at)[:2] == (0, 250)
    at.registry.send(JUDGE, "unlock", NODE, OPERATOR, 250)
    assert withdraw(at) == 250


def test_a_dispute_holds_up_only_what_it_is_about(at: Deployed) -> None:
    lock(at, 100)
    unbond(at, 1_000)
    at.evm.pass_time(UNBOND_SECONDS)
    assert withdraw(at) == 900
    at.registry.send(JUDGE, "unlock", NODE, OPERATOR, 100)
    assert withdraw(at) == 100


def test_every_change_is_told(at: Deployed) -> None:
    mine = {"node": NODE, "operator": OPERATOR}
    by_judge = {**mine, "judge": JUDGE}
    ready = at.evm.time + UNBOND_SECONDS
    model, program, weights = b"m" * 32, b"p" * 32, b"w" * 32
    signed = {"signature_r": SIGNATURE[1], "signature_s": SIGNATURE[0]}
    roots = {"model": model, "program": program, "weights": weights}
    shares = (40, CHALLENGER, 10, PAYER, 20)
    for sender, function, arguments, expected in (
        (OPERATOR, "register", (NODE, *SIGNATURE[::-1]), [("Registered", {**mine, **signed})]),
        (OPERATOR, "stake", (NODE, 30), [("Staked", {**mine, "amount": 30})]),
        (OPERATOR, "unbond", (NODE, 7), [("Unbonded", {**mine, "amount": 7, "ready": ready})]),
        (JUDGE, "lock", (NODE, OPERATOR, 50), [("Locked", {**by_judge, "amount": 50})]),
        (JUDGE, "unlock", (NODE, OPERATOR, 10), [("Unlocked", {**by_judge, "amount": 10})]),
        (
            JUDGE,
            "slash",
            (NODE, OPERATOR, *shares),
            [
                ("Credited", {"owner": CHALLENGER, "amount": 10}),
                ("Credited", {"owner": PAYER, "amount": 20}),
                ("Credited", {"owner": BURN, "amount": 10}),
                ("Slashed", {**by_judge, "amount": 40, "burned": 10}),
            ],
        ),
        (STRANGER, "collect", (PAYER,), [("Collected", {"owner": PAYER, "amount": 20})]),
        (
            STRANGER,
            "publish",
            (model, program, weights, b"x"),
            [("Published", {**roots, "parameters": b"x"})],
        ),
    ):
        at.registry.send(sender, function, *arguments)
        assert at.registry.events() == expected
    at.evm.pass_time(UNBOND_SECONDS)
    withdraw(at)
    assert at.registry.events() == [("Withdrawn", {**mine, "amount": 7})]


def test_a_model_is_written_down_once_and_a_false_record_stands_in_no_way(at: Deployed) -> None:
    model, program, weights, parameters = b"m" * 32, b"p" * 32, b"w" * 32, b"layers=2"
    assert not at.registry.view("known", model, program)
    at.registry.send(STRANGER, "publish", model, program, b"x" * 32, parameters)
    at.registry.send(OPERATOR, "publish", model, program, weights, parameters)
    with pytest.raises(Reverted, match="published before"):
        at.registry.send(OPERATOR, "publish", model, program, weights, parameters)
    assert at.registry.view("known", model, program)
    hashed = keccak(parameters)
    assert at.registry.view("published_at", model, program, weights, hashed) == at.evm.time
    assert at.registry.view("published_at", model, program, weights, keccak(b"")) == 0
    for empty in ((bytes(32), program), (model, bytes(32))):
        with pytest.raises(Reverted, match="empty root"):
            at.registry.send(OPERATOR, "publish", *empty, weights, parameters)
    with pytest.raises(Reverted):
        at.registry.send(OPERATOR, "publish", model, weights, weights, bytes(4_097))


@pytest.mark.parametrize(
    ("coin", "delay", "judges", "reason"),
    [
        (True, 0, [JUDGE], "a delay"),
        (True, 365 * 86_400 + 1, [JUDGE], "a delay"),
        (True, UNBOND_SECONDS, [NOBODY], "an empty judge"),
        (False, UNBOND_SECONDS, [JUDGE], "no contract"),
    ],
)
def test_a_registry_of_no_use_is_refused_at_deployment(
    at: Deployed, coin: bool, delay: int, judges: list[EvmAddress], reason: str
) -> None:
    token = at.coin.address if coin else STRANGER
    with pytest.raises(Reverted, match=reason):
        at.evm.deploy(artifact("registry"), DEPLOYER, token, delay, judges)


@pytest.mark.parametrize("delay", [1, 365 * 86_400])
def test_the_shortest_and_the_longest_delay(at: Deployed, delay: int) -> None:
    made = at.evm.deploy(artifact("registry"), DEPLOYER, at.coin.address, delay, [JUDGE])
    assert made.view("unbond_seconds") == delay
    assert made.view("is_judge", JUDGE)


def test_a_judge_may_be_named_before_it_exists(at: Deployed) -> None:
    later = at.evm.next_address(DEPLOYER, ahead=1)
    registry = at.evm.deploy(
        artifact("registry"), DEPLOYER, at.coin.address, UNBOND_SECONDS, [later]
    )
    court = at.evm.deploy(artifact("channels"), DEPLOYER, at.coin.address, CLOSE_SECONDS)
    assert court.address == later
    assert registry.view("is_judge", court.address)
    assert not registry.view("is_judge", JUDGE)


@pytest.fixture
def hostile(compiled: Callable[[str], Artifact]) -> Deployed:
    """Contracts over a coin that misbehaves on demand, and that is an operator itself."""
    coin = compiled("hostile_coin")
    trial = deployed(coin)
    made = deployed(coin, judges=(trial.coin.address, JUDGE))
    assert made.coin.address == trial.coin.address
    made.coin.send(STRANGER, "mint", OPERATOR, RICH)
    made.coin.send(STRANGER, "mint", made.coin.address, RICH)
    made.registry.send(OPERATOR, "register", NODE, *SIGNATURE)
    return made


def test_a_coin_that_takes_a_fee_or_says_no_is_refused(hostile: Deployed) -> None:
    for fee, denies, reason in ((1, False, "a fee"), (0, True, "not paid")):
        hostile.coin.send(STRANGER, "behave", fee, denies, False)
        with pytest.raises(Reverted, match=reason):
            hostile.registry.send(OPERATOR, "stake", NODE, 100)


def test_a_recipient_that_is_refused_coins_blocks_no_verdict(hostile: Deployed) -> None:
    hostile.registry.send(OPERATOR, "stake", NODE, 100)
    lock(hostile, 100)
    hostile.coin.send(STRANGER, "behave", 0, True, False)
    slash(hostile, 100, (60, 40))
    with pytest.raises(Reverted, match="not paid out"):
        hostile.registry.send(CHALLENGER, "collect", CHALLENGER)
    hostile.coin.send(STRANGER, "behave", 0, False, False)
    assert hostile.registry.send(CHALLENGER, "collect", CHALLENGER) == 60


@pytest.mark.parametrize("again", ["collect", "withdraw", "slash", "lock", "free"])
def test_a_coin_that_calls_back_gets_nowhere(hostile: Deployed, again: str) -> None:
    registry, coin = hostile.registry, hostile.coin
    for data in (
        registry.encoded("register", NODE, *SIGNATURE),
        registry.encoded("stake", NODE, 500),
        registry.encoded("unbond", NODE, 200),
    ):
        coin.send(STRANGER, "execute", registry.address, data)
    for operator in (OPERATOR, coin.address):
        if operator == OPERATOR:
            registry.send(OPERATOR, "stake", NODE, 500)
        locked = registry.encoded("lock", NODE, operator, 100)
        coin.send(STRANGER, "execute", registry.address, locked)
    fine = registry.encoded("slash", NODE, OPERATOR, 50, CHALLENGER, 25, PAYER, 25)
    coin.send(STRANGER, "execute", registry.address, fine)
    hostile.evm.pass_time(UNBOND_SECONDS)
    data = {
        "collect": registry.encoded("collect", PAYER),
        "withdraw": registry.encoded("withdraw", NODE),
        "slash": registry.encoded("slash", NODE, OPERATOR, 50, CHALLENGER, 50, PAYER, 0),
        "lock": registry.encoded("lock", NODE, OPERATOR, 10),
        "free": registry.encoded("free", NODE, OPERATOR),
    }[again]
    coin.send(STRANGER, "call_back", registry.address, data)
    assert registry.send(STRANGER, "collect", CHALLENGER) == 25
    assert coin.view("attempts") == 1
    assert not coin.view("reentered")
    # The same call is good as soon as the first is over: the lock refused it, not its contents.
    coin.send(STRANGER, "execute", registry.address, data)
