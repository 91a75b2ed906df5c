"""A gateway's purse: pays nodes ahead, a window at a time, and never further than their progress.

Implements `routing.payments.Purse`. What a node can lose is nothing, since it is paid first; what
a gateway can lose to a node that takes the money and goes is one window: `Terms.window` tokens of
an answer, or a second of reading a prompt (`READ_SECONDS`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from unisono.clock import Clock
from unisono.errors import ConfigurationError, LedgerUnreachable, SettlementError, VoucherRefused
from unisono.market.sla import WINDOW_SECONDS, credit
from unisono.settlement.eip712 import parse_address
from unisono.settlement.ledger.shortfall import shortfall
from unisono.settlement.payments.account import Account, Tariff
from unisono.settlement.payments.books import Books, Place
from unisono.settlement.payments.channels import Channels
from unisono.settlement.payments.credits import Credits
from unisono.settlement.signature import SettlementKey
from unisono.settlement.vouchers import Channel, accept, decode_voucher, sign_voucher
from unisono.types import EvmAddress, NodeId, SessionId
from unisono.wire.payment_messages import Agreed, Due, Held, Pay
from unisono.wire.records import NodeRecord
from unisono.wire.sold import Sold, Wallet
from unisono.wire.terms import Terms

log = logging.getLogger(__name__)

READ_SECONDS = 1.0
"""Of a node's reading of a prompt that one payment ahead is good for."""
DEFAULT_ROWS = 256
"""The same in rows, for a node that does not say how fast it reads."""
RETRY_SECONDS = 0.25
DEPOSIT = 1_000_000
"""Units that a channel is opened or topped up with, if it needs less."""
LOW = 4
"""A channel is topped up in the background when less than a fourth of a deposit is left."""


@dataclass(slots=True)
class _Payee:
    """A channel to one payee."""

    place: Place
    account: Account
    deposit: int
    voucher: bytes = b""
    topping: asyncio.Task[None] | None = None


class PayingTab:
    """One session's payments to one hop. See `routing.payments.Tab`."""

    def __init__(self, purse: Purse, payee: _Payee, sold: Sold, post: Callable[[Pay], None]):
        record = sold.record
        assert record.terms is not None
        self.agreed = Agreed(record.price_in, record.price_out, purse.address)
        self._purse, self._payee, self._sold, self._post = purse, payee, sold, post
        self._window = record.terms.window
        rows = int(READ_SECONDS * 1e6 / record.row_us) if record.row_us else DEFAULT_ROWS
        self._reading = max(self._window, rows)
        self._begun = purse.clock.monotonic()
        self._tokens = 0
        self._computed = 0
        self._paid = 0
        self._over = False
        self._retry: asyncio.Task[None] | None = None
        tariff = Tariff(record.price_in, record.price_out, record.layers.count, sold.layer_count)
        payee.account.open(sold.session, tariff, sold.prompt)

    def begin(self) -> None:
        """See `Tab`."""
        self._pay()

    def due(self, due: Due) -> None:
        """See `Tab`."""
        self._computed = max(self._computed, min(due.positions, self._sold.positions))
        self._pay()

    def heard(self, tokens: int) -> None:
        """See `Tab`."""
        self._tokens = max(self._tokens, tokens)

    def held(self, held: Held) -> None:
        """See `Tab`. This side forgot a voucher that it signed: it is taken up again, if good."""
        if self._purse.remember(self._payee, held.voucher):
            self._send(self._paid)

    def finish(self, tokens: int) -> None:
        """See `Tab`."""
        if not self._over:
            self._over = True
            before = self._payee.account.charged
            self._payee.account.finish(self._sold.session, tokens)
            self._purse.save(self._payee)
            charged = self._payee.account.charged - before
            self._purse.credits.earned(self._payee.place, self._sold.record.node, charged)

    def drop(self) -> None:
        """See `Tab`."""
        if self._retry is not None:
            self._retry.cancel()
        if not self._over:
            self._over = True
            self._payee.account.drop(self._sold.session)
            self._purse.save(self._payee)

    def _ahead(self, computed: int) -> int:
        """Up to which position one payment goes: a second's reading, and behind the prompt one
        window."""
        sold = self._sold
        read = computed + self._reading
        if read < sold.given:
            return read
        return min(sold.positions, max(computed, sold.given) + self._window)

    def _plausible(self) -> int:
        """Positions that the hop can have computed, as far as this side can tell: those before the
        newest token and a window of guesses; while a prompt is read, what its speed allows."""
        sold = self._sold
        if sold.prompt + self._tokens > sold.given:
            return sold.prompt + self._tokens + self._window
        seconds = self._purse.clock.monotonic() - self._begun
        return int(self._reading * (1 + 2 * seconds / READ_SECONDS))

    def _pay(self) -> None:
        """Pay up to one window behind what is computed, now or when that is plausible."""
        if self._over:
            return
        wanted = min(self._computed, self._plausible())
        target = self._ahead(wanted)
        if target > self._paid:
            self._paid = target
            self._send(target)
        if wanted < self._computed and self._retry is None:
            self._retry = asyncio.create_task(self._later())

    async def _later(self) -> None:
        await self._purse.clock.sleep(RETRY_SECONDS)
        self._retry = None
        self._pay()

    def _send(self, positions: int) -> None:
        try:
            voucher = self._purse.promise(self._payee, self._sold.session, positions)
        except ConfigurationError as error:
            log.error("a payment was not kept, and so not made: %s", error)
            return
        self._post(Pay(self._sold.session, positions, voucher))


class Purse:
    """One payer's."""

    def __init__(
        self,
        key: SettlementKey,
        channels: Channels,
        books: Books,
        clock: Clock,
        *,
        deposit: int = DEPOSIT,
        window_seconds: int = WINDOW_SECONDS,
    ) -> None:
        """`deposit`: units that a new channel gets, unless a request needs more;
        `window_seconds`: over which service levels are promised."""
        self._key = key
        self._channels = channels
        self._books = books
        self.clock = clock
        self._deposit = deposit
        self.credits = Credits(books, clock, window_seconds)
        self._payees: dict[EvmAddress, _Payee] = {}
        self._opening: dict[EvmAddress, asyncio.Lock] = {}
        self.address = key.address
        domain = channels.domain
        self.wallets: frozenset[Wallet] = frozenset({(domain.chain_id, domain.contract)})
        """See `routing.payments.Purse`."""

    async def prepare(self, record: NodeRecord, most: int) -> None:
        """See `routing.payments.Purse`."""
        payee = _payee_of(record.terms, record.node)
        async with self._opening.setdefault(payee, asyncio.Lock()):
            known = self._payees.get(payee) or await self._load(payee)
            if known.deposit - known.account.promised >= most:
                self._top_up_early(known)
                return
            await self._top_up(known, max(most, self._deposit))

    def open(self, sold: Sold, post: Callable[[Pay], None]) -> PayingTab:
        """See `routing.payments.Purse`."""
        known = self._payees[_payee_of(sold.record.terms, sold.record.node)]
        return PayingTab(self, known, sold, post)

    def promise(self, payee: _Payee, session: SessionId, positions: int) -> bytes:
        """Reserve a session's next positions and return the voucher's bytes that cover it.

        Raises:
            ConfigurationError: the account cannot be kept.
        """
        account = payee.account
        lacking = account.lacking(session, positions)
        if lacking:
            account.promised += lacking
            payee.voucher = self._signed(payee)
        account.reserve(session, positions)
        self.save(payee)  # before it is sent: a total that was promised is never forgotten
        return payee.voucher

    def remember(self, payee: _Payee, data: bytes) -> bool:
        """Take up a voucher of one's own that promises more than what is remembered."""
        place, account = payee.place, payee.account
        channel = Channel(
            self._channels.domain,
            place.payer,
            place.payee,
            place.epoch,
            payee.deposit,
            account.promised,
        )
        try:
            voucher = decode_voucher(data)
            accept(channel, voucher)
        except VoucherRefused as refusal:
            log.warning("payee %s shows no voucher of ours: %s", place.payee, refusal)
            return False
        # what it was promised for is not remembered either, so all of it counts as spent
        account.charged = voucher.cumulative
        account.promised = voucher.cumulative + account.reserved
        payee.voucher = self._signed(payee)
        self.save(payee)
        return True

    def _signed(self, payee: _Payee) -> bytes:
        """A voucher for all that is promised."""
        place, promised = payee.place, payee.account.promised
        domain = self._channels.domain
        return sign_voucher(self._key, domain, place.payee, place.epoch, promised).encode()

    def save(self, payee: _Payee) -> None:
        """Keep a payee's account."""
        self._books.save(payee.place, payee.account, payee.voucher)

    async def _load(self, payee: EvmAddress) -> _Payee:
        domain = self._channels.domain
        state = await self._channels.state(self.address, payee)
        place = Place("payer", domain.chain_id, domain.contract, self.address, payee, state.epoch)
        account, voucher = self._books.load(place)
        known = _Payee(place, account, state.deposit, voucher)
        self._payees[payee] = known
        return known

    def _top_up_early(self, known: _Payee) -> None:
        left = known.deposit - known.account.promised
        busy = known.topping is not None and not known.topping.done()
        if left < self._deposit // LOW and not busy:
            known.topping = asyncio.create_task(self._top_up_quietly(known))

    async def _top_up_quietly(self, known: _Payee) -> None:
        try:
            await self._top_up(known, self._deposit)
        except SettlementError as error:
            log.warning("the channel to %s is not topped up: %s", known.place.payee, error)

    async def _top_up(self, known: _Payee, amount: int) -> None:
        """Raises:
        InsufficientFunds: the payer has less than `amount`.
        SettlementError: the chain is away or refuses.
        """
        have = await self._channels.balance(self.address)
        if have < amount:
            raise shortfall(
                have,
                amount,
                what=f"balance of {self.address}",
                purpose=f"a channel to {known.place.payee}",
                remedy="send {missing} to that address, or ask for fewer tokens",
                decimals=6,
            )
        await self._channels.deposit(known.place.payee, amount)
        state = await self._channels.state(self.address, known.place.payee)
        if state.epoch != known.place.epoch:
            raise LedgerUnreachable(f"the channel to {known.place.payee} was closed meanwhile")
        known.deposit = state.deposit

    async def paid(self, record: NodeRecord, window: int) -> int:
        """Units for answers that a node signed in a window.

        Raises:
            SettlementError: the node names nobody who could be paid, or the chain is away.
        """
        known = await self.payee(_payee_of(record.terms, record.node))
        return self.credits.paid(known.place, record.node, window)

    async def credited(
        self, record: NodeRecord, window: int, units: int, share: int
    ) -> tuple[int, int]:
        """A node gives so much of what it was paid in a window back, all told, and owes this share
        of it in thousandths. Returns what it comes to here, which is no more than was paid, and
        the least that it had to be.

        Raises:
            SettlementError: the chain is away.
            ConfigurationError: the account cannot be kept.
        """
        known = await self.payee(_payee_of(record.terms, record.node))
        place, node = known.place, record.node
        came = self.credits.grant(place, known.account, known.voucher, node, window, units)
        return came, credit(self.credits.paid(place, node, window, sure=True), share)

    async def payee(self, address: EvmAddress) -> _Payee:
        """A payee's channel.

        Raises:
            SettlementError: the chain is away.
        """
        async with self._opening.setdefault(address, asyncio.Lock()):
            return self._payees.get(address) or await self._load(address)

    def accounts(self) -> list[tuple[Place, Account, int]]:
        """Every channel that was used, with its account and deposit."""
        return [(known.place, known.account, known.deposit) for known in self._payees.values()]

    async def close(self) -> None:
        """Stop what runs in the background; idempotent."""
        for known in self._payees.values():
            if known.topping is not None:
                known.topping.cancel()


def _payee_of(terms: Terms | None, node: NodeId) -> EvmAddress:
    if terms is None:
        raise SettlementError(f"node {node[:8]}… names nobody who could be paid")
    try:
        return parse_address(terms.payee)
    except ConfigurationError as error:
        raise SettlementError(f"node {node[:8]}… names no payee: {error}") from error
