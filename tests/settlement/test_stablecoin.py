"""The test coin is an ERC-20 that only its minter makes."""

from __future__ import annotations

import pytest

from tests.settlement.deployed import DEPLOYER, Deployed, deployed
from tests.settlement.evm import NOBODY, Reverted, account

ALICE, BOB = account(30), account(31)


@pytest.fixture
def at() -> Deployed:
    made = deployed()
    made.coin.send(DEPLOYER, "mint", ALICE, 100)
    return made


def test_only_the_minter_makes_coins(at: Deployed) -> None:
    assert at.coin.view("totalSupply") == 100
    assert at.coin.view("decimals") == 6
    with pytest.raises(Reverted, match="only the minter"):
        at.coin.send(ALICE, "mint", ALICE, 1)
    with pytest.raises(Reverted):
        at.coin.send(DEPLOYER, "mint", BOB, 2**256 - 1)


def test_coins_move_as_their_owner_says(at: Deployed) -> None:
    assert at.coin.send(ALICE, "transfer", BOB, 40) is True
    assert at.coin.send(BOB, "transfer", BOB, 40) is True
    assert (at.balance(ALICE), at.balance(BOB)) == (60, 40)
    for receiver, amount in ((BOB, 61), (NOBODY, 1)):
        with pytest.raises(Reverted):
            at.coin.send(ALICE, "transfer", receiver, amount)


def test_an_allowance_is_used_up_unless_it_is_endless(at: Deployed) -> None:
    with pytest.raises(Reverted, match="more than allowed"):
        at.coin.send(BOB, "transferFrom", ALICE, BOB, 1)
    at.coin.send(ALICE, "approve", BOB, 30)
    at.coin.send(BOB, "transferFrom", ALICE, BOB, 20)
    assert at.coin.view("allowance", ALICE, BOB) == 10
    with pytest.raises(Reverted, match="more than allowed"):
        at.coin.send(BOB, "transferFrom", ALICE, BOB, 11)
    at.coin.send(ALICE, "approve", BOB, 2**256 - 1)
    at.coin.send(BOB, "transferFrom", ALICE, BOB, 50)
    assert at.coin.view("allowance", ALICE, BOB) == 2**256 - 1
    assert at.balance(BOB) == 70
