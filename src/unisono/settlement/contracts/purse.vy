# pragma version ==0.4.3
"""
@title Coins in and out of a contract
@license Apache-2.0
@notice A coin that answers false is refused, as is one that delivers less or more than it was told:
        what the contract notes is what it holds.
"""
from ethereum.ercs import IERC20

token: immutable(IERC20)


@deploy
def __init__(coin: IERC20):
    assert coin.address.is_contract, "the token is no contract"
    token = coin


@internal
def _take(sender: address, amount: uint256):
    before: uint256 = staticcall token.balanceOf(self)
    assert extcall token.transferFrom(sender, self, amount, default_return_value=True), "not paid"
    assert staticcall token.balanceOf(self) == before + amount, "a fee on transfer"


@internal
def _give(receiver: address, amount: uint256):
    assert extcall token.transfer(receiver, amount, default_return_value=True), "not paid out"
