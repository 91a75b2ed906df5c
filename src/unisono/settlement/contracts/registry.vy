# pragma version ==0.4.3
# pragma nonreentrancy on
"""
@title Nodes, their stakes, and models
@license Apache-2.0
@notice An operator registers the ed25519 key of a node, stakes on it, and loses of that stake only
        what a judge decides. There is no owner: token, delay and judges are fixed for ever.
@dev Every amount that the contract holds is in exactly one place: a stake, coins on their way out
     of one (`leaving`), or a credit. Their sum never exceeds the balance.
"""
from ethereum.ercs import IERC20
import purse

initializes: purse

struct Node:
    stake: uint256
    leaving: uint256  # unbonded, still liable
    ready: uint256  # when `leaving` may be withdrawn, in seconds
    locked: uint256  # of stake + leaving: what open disputes are about
    signature_r: bytes32
    signature_s: bytes32

event Registered:
    node: indexed(bytes32)
    operator: indexed(address)
    signature_r: bytes32
    signature_s: bytes32

event Staked:
    node: indexed(bytes32)
    operator: indexed(address)
    amount: uint256

event Unbonded:
    node: indexed(bytes32)
    operator: indexed(address)
    amount: uint256
    ready: uint256

event Withdrawn:
    node: indexed(bytes32)
    operator: indexed(address)
    amount: uint256

event Locked:
    node: indexed(bytes32)
    operator: indexed(address)
    judge: indexed(address)
    amount: uint256

event Unlocked:
    node: indexed(bytes32)
    operator: indexed(address)
    judge: indexed(address)
    amount: uint256

event Slashed:
    node: indexed(bytes32)
    operator: indexed(address)
    judge: indexed(address)
    amount: uint256
    burned: uint256

event Credited:
    owner: indexed(address)
    amount: uint256

event Collected:
    owner: indexed(address)
    amount: uint256

event Published:
    model: indexed(bytes32)
    program: indexed(bytes32)
    weights: bytes32
    parameters: Bytes[4096]

MAX_JUDGES: constant(uint256) = 4
MAX_DELAY: constant(uint256) = 365 * 86400
BURN: public(constant(address)) = 0x000000000000000000000000000000000000dEaD

unbond_seconds: public(immutable(uint256))
is_judge: public(HashMap[address, bool])
nodes: HashMap[bytes32, HashMap[address, Node]]
# node, operator, judge
locked_by: public(HashMap[bytes32, HashMap[address, HashMap[address, uint256]]])
credit: public(HashMap[address, uint256])
published: HashMap[bytes32, uint256]
known: public(HashMap[bytes32, HashMap[bytes32, bool]])  # model, program


@deploy
def __init__(coin: IERC20, delay: uint256, judges: DynArray[address, MAX_JUDGES]):
    """
    @param delay Seconds from unbonding to withdrawal: longer than any dispute about old work.
    @param judges Contracts that may slash. They need not exist yet: the address of a contract
           follows from its deployer and nonce, and a judge's own constructor checks that it is one.
    """
    purse.__init__(coin)
    assert 0 < delay and delay <= MAX_DELAY, "a delay of 1 s to 365 days"
    unbond_seconds = delay
    for judge: address in judges:
        assert judge != empty(address), "an empty judge"
        self.is_judge[judge] = True


@external
@view
def token() -> address:
    return purse.token.address


# Operators


@external
def register(node: bytes32, signature_r: bytes32, signature_s: bytes32):
    """
    @notice Bind a node's ed25519 key to the sender. The signature, by that key over chain id,
            registry and sender, is kept and not checked: who reads the record checks it. A record
            belongs to key and sender together, so that a false one takes nobody's place.
    """
    assert node != empty(bytes32) and signature_r != empty(bytes32), "empty"
    self.nodes[node][msg.sender].signature_r = signature_r
    self.nodes[node][msg.sender].signature_s = signature_s
    log Registered(
        node=node, operator=msg.sender, signature_r=signature_r, signature_s=signature_s
    )


@external
def stake(node: bytes32, amount: uint256):
    """
    @notice Add to the stake of the sender's record of a node.
    """
    assert amount != 0, "nothing to stake"
    entry: Node = self.nodes[node][msg.sender]
    assert entry.signature_r != empty(bytes32), "unregistered"
    self.nodes[node][msg.sender].stake = entry.stake + amount
    purse._take(msg.sender, amount)
    log Staked(node=node, operator=msg.sender, amount=amount)


@external
def unbond(node: bytes32, amount: uint256):
    """
    @notice Begin to withdraw. All that is on its way out becomes ready `unbond_seconds` from now,
            and is liable until it is withdrawn.
    """
    assert amount != 0, "nothing to unbond"
    entry: Node = self.nodes[node][msg.sender]
    assert amount <= entry.stake, "more than the stake"
    ready: uint256 = block.timestamp + unbond_seconds
    self.nodes[node][msg.sender].stake = entry.stake - amount
    self.nodes[node][msg.sender].leaving = entry.leaving + amount
    self.nodes[node][msg.sender].ready = ready
    log Unbonded(node=node, operator=msg.sender, amount=amount, ready=ready)


@external
def withdraw(node: bytes32) -> uint256:
    """
    @notice Pay out what was unbonded long enough ago, save what open disputes are about.
    @return The amount paid to the sender.
    """
    entry: Node = self.nodes[node][msg.sender]
    assert entry.leaving != 0, "nothing unbonded"
    assert block.timestamp >= entry.ready, "too early"
    amount: uint256 = min(entry.leaving, entry.stake + entry.leaving - entry.locked)
    assert amount != 0, "locked by disputes"
    self.nodes[node][msg.sender].leaving = entry.leaving - amount
    purse._give(msg.sender, amount)
    log Withdrawn(node=node, operator=msg.sender, amount=amount)
    return amount


@external
def collect(owner: address) -> uint256:
    """
    @notice Pay an owner's credit to the owner; anybody may send this. Credits instead of transfers
            in a verdict: no recipient can block one.
    """
    amount: uint256 = self.credit[owner]
    assert amount != 0, "no credit"
    self.credit[owner] = 0
    purse._give(owner, amount)
    log Collected(owner=owner, amount=amount)
    return amount


# Judges


@external
def lock(node: bytes32, operator: address, amount: uint256) -> uint256:
    """
    @notice Reserve coins for a dispute, so that no two verdicts count on the same ones.
    @return What was reserved: `amount`, or all that is free if that is less.
    """
    assert self.is_judge[msg.sender], "only a judge"
    entry: Node = self.nodes[node][operator]
    reserved: uint256 = min(amount, entry.stake + entry.leaving - entry.locked)
    assert reserved != 0, "nothing at stake"
    self.nodes[node][operator].locked = entry.locked + reserved
    self.locked_by[node][operator][msg.sender] += reserved
    log Locked(node=node, operator=operator, judge=msg.sender, amount=reserved)
    return reserved


@external
def unlock(node: bytes32, operator: address, amount: uint256):
    """
    @notice Free coins that this judge reserved.
    """
    self._release(node, operator, amount)
    log Unlocked(node=node, operator=operator, judge=msg.sender, amount=amount)


@external
def slash(
    node: bytes32,
    operator: address,
    amount: uint256,
    challenger: address,
    to_challenger: uint256,
    payer: address,
    to_payer: uint256,
):
    """
    @notice Take coins that this judge reserved: shares to challenger and payer as credits, the rest
            is burned.
    """
    self._release(node, operator, amount)
    assert to_challenger <= amount and to_payer <= amount - to_challenger, "shares above the whole"
    entry: Node = self.nodes[node][operator]
    from_stake: uint256 = min(amount, entry.stake)
    self.nodes[node][operator].stake = entry.stake - from_stake
    self.nodes[node][operator].leaving = entry.leaving - (amount - from_stake)
    burned: uint256 = amount - to_challenger - to_payer
    self._credit(challenger, to_challenger)
    self._credit(payer, to_payer)
    self._credit(BURN, burned)
    log Slashed(node=node, operator=operator, judge=msg.sender, amount=amount, burned=burned)


@internal
def _release(node: bytes32, operator: address, amount: uint256):
    assert self.is_judge[msg.sender], "only a judge"
    own: uint256 = self.locked_by[node][operator][msg.sender]
    assert amount <= own, "more than was locked"
    self.locked_by[node][operator][msg.sender] = own - amount
    self.nodes[node][operator].locked -= amount


@internal
def _credit(owner: address, amount: uint256):
    if amount == 0:
        return
    assert owner != empty(address), "an empty owner"
    self.credit[owner] += amount
    log Credited(owner=owner, amount=amount)


# Models


@external
def publish(model: bytes32, program: bytes32, weights: bytes32, parameters: Bytes[4096]):
    """
    @notice Write down a model once: its id, the root of its program, the root of its weights, its
            canonical parameters. Anybody may. A record is named by all four together, so that a
            false one takes no true one's place; nodes recompute one before they stake on it.
    """
    assert model != empty(bytes32) and program != empty(bytes32), "an empty root"
    key: bytes32 = self._model_key(model, program, weights, keccak256(parameters))
    assert self.published[key] == 0, "published before"
    self.published[key] = block.timestamp
    self.known[model][program] = True
    log Published(model=model, program=program, weights=weights, parameters=parameters)


@internal
@pure
def _model_key(
    model: bytes32, program: bytes32, weights: bytes32, parameters: bytes32
) -> bytes32:
    return keccak256(concat(model, program, weights, parameters))


# Views


@external
@view
def record(node: bytes32, operator: address) -> Node:
    return self.nodes[node][operator]


@external
@view
def free(node: bytes32, operator: address) -> uint256:
    """
    @return Coins that are liable and that no dispute has reserved.
    """
    entry: Node = self.nodes[node][operator]
    return entry.stake + entry.leaving - entry.locked


@external
@view
def published_at(
    model: bytes32, program: bytes32, weights: bytes32, parameters: bytes32
) -> uint256:
    """
    @param parameters The hash (keccak-256) of the canonical parameters.
    @return Seconds since the Unix epoch, or 0 if nobody wrote this down.
    """
    return self.published[self._model_key(model, program, weights, parameters)]
