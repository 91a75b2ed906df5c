# pragma version ==0.4.3
# pragma nonreentrancy on
"""
@title Payment channels
@license Apache-2.0
@notice One channel per payer and payee. The payer deposits; work is paid off chain by vouchers, each
        of which promises a total since the channel began; the payee redeems the last one when it
        likes. The payer gets the rest back after a window in which vouchers can still be redeemed.
        There is no owner, and no one else can touch a channel.
@dev A channel is one word: paid-in total, paid-out total, when it may close, how often it began
     anew. Every voucher names that count (`epoch`), so that a channel that closed and opened again
     takes none of its old vouchers.
"""
from ethereum.ercs import IERC20
import purse

initializes: purse

struct Channel:
    deposit: uint256  # all that the payer paid in, this epoch
    redeemed: uint256  # all that the payee was paid, this epoch
    closes: uint256  # seconds: when the payer may take the rest; 0: the channel is open
    epoch: uint256

struct Voucher:
    payer: address
    epoch: uint256
    cumulative: uint256
    v: uint256
    r: bytes32
    s: bytes32

event Deposited:
    payer: indexed(address)
    payee: indexed(address)
    epoch: uint256
    amount: uint256

event Redeemed:
    payer: indexed(address)
    payee: indexed(address)
    epoch: uint256
    amount: uint256

event Closing:
    payer: indexed(address)
    payee: indexed(address)
    epoch: uint256
    closes: uint256

event Closed:
    payer: indexed(address)
    payee: indexed(address)
    epoch: uint256
    refund: uint256

MAX_BATCH: constant(uint256) = 64
MAX_WINDOW: constant(uint256) = 90 * 86400
DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
NAME: constant(bytes32) = keccak256("Unisono channels")
VERSION: constant(bytes32) = keccak256("1")
VOUCHER_TYPE: constant(bytes32) = keccak256(
    "Voucher(address payer,address payee,uint256 epoch,uint256 cumulative)"
)
HALF_ORDER: constant(uint256) = (
    57896044618658097711785492504343953926418782139537452191302581570759080747168
)

# Fields of a channel's word, from the lowest bit: 96 bits, 96 bits, 40 bits, 24 bits.
AMOUNT: constant(uint256) = 2**96 - 1
TIME: constant(uint256) = 2**40 - 1
LAST_EPOCH: constant(uint256) = 2**24 - 1

close_seconds: public(immutable(uint256))
home_chain: immutable(uint256)
separator: immutable(bytes32)
words: HashMap[address, HashMap[address, uint256]]  # payer, payee


@deploy
def __init__(coin: IERC20, window: uint256):
    """
    @param window Seconds from the start of a close to its end: time enough for a payee that was
           offline to redeem.
    """
    purse.__init__(coin)
    assert 0 < window and window <= MAX_WINDOW, "a window of 1 s to 90 days"
    close_seconds = window
    home_chain = chain.id
    separator = self._separator()


@external
@view
def token() -> address:
    return purse.token.address


# The payer


@external
def deposit(payee: address, amount: uint256):
    """
    @notice Open or top up the sender's channel to a payee. A close that has begun is off.
    """
    assert payee != empty(address) and payee != self, "no payee"
    assert amount != 0, "nothing to deposit"
    channel: Channel = self._channel(msg.sender, payee)
    # The last epoch is never used, so that every channel with coins in it can be closed.
    assert channel.epoch < LAST_EPOCH, "closed too often: use another address"
    assert amount <= AMOUNT - channel.deposit, "more than a channel holds"
    channel.deposit += amount
    channel.closes = 0
    self._keep(msg.sender, payee, channel)
    purse._take(msg.sender, amount)
    log Deposited(payer=msg.sender, payee=payee, epoch=channel.epoch, amount=amount)


@external
def start_close(payee: address):
    """
    @notice Begin to close the sender's channel to a payee: the window starts.
    """
    channel: Channel = self._channel(msg.sender, payee)
    assert channel.deposit != 0, "no such channel"
    assert channel.closes == 0, "closing already"
    channel.closes = block.timestamp + close_seconds
    self._keep(msg.sender, payee, channel)
    log Closing(payer=msg.sender, payee=payee, epoch=channel.epoch, closes=channel.closes)


@external
def finish_close(payer: address, payee: address) -> uint256:
    """
    @notice Pay the rest back to the payer when the window is over; anybody may send this.
    @return The refund.
    """
    channel: Channel = self._channel(payer, payee)
    assert channel.closes != 0, "nobody began to close"
    assert block.timestamp >= channel.closes, "too early"
    return self._close(payer, payee, channel)


# The payee


@external
def redeem(
    payer: address,
    payee: address,
    epoch: uint256,
    cumulative: uint256,
    v: uint256,
    r: bytes32,
    s: bytes32,
) -> uint256:
    """
    @notice Pay the payee what a voucher promises beyond what was paid before, as far as the deposit
            reaches; anybody may send this. What the deposit lacks can be redeemed after a top-up.
    @return The amount paid.
    """
    assert self._signed(payer, payee, epoch, cumulative, v, r, s), "not the payer's signature"
    channel: Channel = self._channel(payer, payee)
    assert epoch == channel.epoch, "a voucher of another epoch"
    assert cumulative > channel.redeemed, "redeemed before"
    paid: uint256 = self._redeem(payer, payee, channel, cumulative)
    assert paid != 0, "the deposit is used up"
    purse._give(payee, paid)
    return paid


@external
def redeem_batch(payee: address, vouchers: DynArray[Voucher, MAX_BATCH]) -> uint256:
    """
    @notice Redeem vouchers of several payers with one transfer. One that yields nothing, because
            its channel closed or paid meanwhile, is passed over: no payer can spoil a batch. One
            that its payer did not sign is an error.
    @return The amount paid.
    """
    paid: uint256 = 0
    for x: Voucher in vouchers:
        good: bool = self._signed(x.payer, payee, x.epoch, x.cumulative, x.v, x.r, x.s)
        assert good, "not the payer's signature"
        channel: Channel = self._channel(x.payer, payee)
        if x.epoch == channel.epoch and x.cumulative > channel.redeemed:
            paid += self._redeem(x.payer, payee, channel, x.cumulative)
    assert paid != 0, "nothing to redeem"
    purse._give(payee, paid)
    return paid


@external
def release(payer: address) -> uint256:
    """
    @notice The payee closes a channel at once and gives up what it has not redeemed.
    @return The refund to the payer.
    """
    channel: Channel = self._channel(payer, msg.sender)
    assert channel.deposit != 0, "no such channel"
    return self._close(payer, msg.sender, channel)


# Inside


@internal
def _redeem(
    payer: address, payee: address, before: Channel, cumulative: uint256
) -> uint256:
    channel: Channel = before
    channel.redeemed = min(cumulative, channel.deposit)
    paid: uint256 = channel.redeemed - before.redeemed
    if paid != 0:
        self._keep(payer, payee, channel)
        log Redeemed(payer=payer, payee=payee, epoch=channel.epoch, amount=paid)
    return paid


@internal
def _close(payer: address, payee: address, channel: Channel) -> uint256:
    refund: uint256 = channel.deposit - channel.redeemed
    fresh: Channel = Channel(deposit=0, redeemed=0, closes=0, epoch=channel.epoch + 1)
    self._keep(payer, payee, fresh)
    if refund != 0:
        purse._give(payer, refund)
    log Closed(payer=payer, payee=payee, epoch=channel.epoch, refund=refund)
    return refund


@internal
@view
def _channel(payer: address, payee: address) -> Channel:
    word: uint256 = self.words[payer][payee]
    return Channel(
        deposit=word & AMOUNT,
        redeemed=(word >> 96) & AMOUNT,
        closes=(word >> 192) & TIME,
        epoch=word >> 232,
    )


@internal
def _keep(payer: address, payee: address, channel: Channel):
    # No field outgrows its place: `deposit` bounds the amounts, and closing bounds the epoch.
    self.words[payer][payee] = (
        channel.deposit
        | (channel.redeemed << 96)
        | (channel.closes << 192)
        | (channel.epoch << 232)
    )


@internal
@view
def _signed(
    payer: address,
    payee: address,
    epoch: uint256,
    cumulative: uint256,
    v: uint256,
    r: bytes32,
    s: bytes32,
) -> bool:
    # Of the two signatures for one digest, (r, s) and (r, -s), only one counts.
    if convert(s, uint256) > HALF_ORDER:
        return False
    digest: bytes32 = self._digest(payer, payee, epoch, cumulative)
    signer: address = ecrecover(digest, v, r, s)
    return signer != empty(address) and signer == payer


@internal
@view
def _digest(payer: address, payee: address, epoch: uint256, cumulative: uint256) -> bytes32:
    content: bytes32 = keccak256(abi_encode(VOUCHER_TYPE, payer, payee, epoch, cumulative))
    # A chain that splits in two gets two chain ids: no voucher may count on both.
    domain: bytes32 = separator
    if chain.id != home_chain:
        domain = self._separator()
    return keccak256(concat(0x1901, domain, content))


@internal
@view
def _separator() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, self))


# Views


@external
@view
def channel(payer: address, payee: address) -> Channel:
    return self._channel(payer, payee)


@external
@view
def digest(payer: address, payee: address, epoch: uint256, cumulative: uint256) -> bytes32:
    """
    @return What the payer signs.
    """
    return self._digest(payer, payee, epoch, cumulative)
