# pragma version ==0.4.3
"""
@title A coin that does what its holders fear, for tests
"""
balanceOf: public(HashMap[address, uint256])
fee: public(uint256)  # units that vanish from every transfer
denies: public(bool)  # answers false and moves nothing
silent: public(bool)  # answers nothing at all
target: address  # called back in the middle of every transfer
calldata: Bytes[2048]
reentered: public(bool)
attempts: public(uint256)


@external
def mint(receiver: address, amount: uint256):
    self.balanceOf[receiver] += amount


@external
def behave(fee: uint256, denies: bool, silent: bool):
    self.fee = fee
    self.denies = denies
    self.silent = silent


@external
def call_back(target: address, calldata: Bytes[2048]):
    self.target = target
    self.calldata = calldata


@external
def execute(target: address, calldata: Bytes[2048]):
    raw_call(target, calldata)


@external
def approve(spender: address, amount: uint256) -> bool:
    return True


@external
@raw_return
def transfer(receiver: address, amount: uint256) -> Bytes[32]:
    return self._answer(self._move(msg.sender, receiver, amount))


@external
@raw_return
def transferFrom(sender: address, receiver: address, amount: uint256) -> Bytes[32]:
    return self._answer(self._move(sender, receiver, amount))


@internal
def _move(sender: address, receiver: address, amount: uint256) -> bool:
    if self.denies:
        return False
    if self.target != empty(address):
        target: address = self.target
        self.target = empty(address)
        self.attempts += 1
        self.reentered = raw_call(target, self.calldata, revert_on_failure=False)
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount - self.fee
    return True


@internal
@view
def _answer(good: bool) -> Bytes[32]:
    if self.silent:
        return b""
    return abi_encode(good)
