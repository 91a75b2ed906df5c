"""A node's till: takes vouchers ahead, says how far sessions are paid, and redeems.

Implements `execution.credit.Till`. A gateway is known by its network key and names its payer, which
anybody can: credit is only spent for the gateway that showed a voucher of that payer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import msgspec

from unisono.clock import Clock
from unisono.errors import ConfigurationError, PeerRefused, SettlementError, VoucherRefused
from unisono.market.sla import WINDOW_SECONDS, credit
from unisono.settlement.eip712 import parse_address
from unisono.settlement.payments.account import Account, Tariff
from unisono.settlement.payments.books import Books, Place
from unisono.settlement.payments.channels import Channels, ChannelState
from unisono.settlement.payments.credits import Credits
from unisono.settlement.vouchers import Channel, Voucher, accept, decode_voucher
from unisono.types import EvmAddress, LayerRange, NodeId, SessionId
from unisono.wire.link import Link
from unisono.wire.messages import Open, Refused
from unisono.wire.payment_messages import Held, Pay
from unisono.wire.terms import Terms

log = logging.getLogger(__name__)

PRICES_HONOURED = 60.0
"""Seconds for which a price that the node has told is good after it has told another."""
MAX_PAYERS = 4096
SAFETY_SECONDS = 30
"""A channel that closes is worth nothing this long before its window ends."""
REDEEM_SECONDS = 60.0
"""How often vouchers are looked through, whether redeeming them is due."""


@dataclass(slots=True)
class _Payer:
    """One payer's channel and account."""

    place: Place
    channel: Channel
    account: Account
    voucher: bytes
    state: ChannelState
    owner: NodeId | None = None
    """The gateway that showed a voucher of the payer last: anybody can name an address."""
    grow: dict[SessionId, Callable[[int], None]] = field(
        default_factory=dict[SessionId, Callable[[int], None]]
    )


class Till:
    """One node's."""

    def __init__(
        self,
        payee: EvmAddress,
        channels: Channels,
        books: Books,
        clock: Clock,
        layer_count: int,
        *,
        window: int = 64,
        operator: EvmAddress | None = None,
        tier: int = 0,
        worth: int = 10_000,
        window_seconds: int = WINDOW_SECONDS,
    ) -> None:
        """`layer_count` is the whole model's; `window_seconds`: over which service levels are
        promised; `operator`: whose stake answers for the node, if it
        is not the payee; `worth`: units from which redeeming pays for its transaction."""
        self._payee = payee
        self._channels = channels
        self._books = books
        self._clock = clock
        self._layer_count = layer_count
        self._worth = worth
        self.credits = Credits(books, clock, window_seconds)
        self._prices: list[tuple[float, tuple[int, int]]] = []
        """(until when, prices), newest last; the newest has no end."""
        self._payers: dict[NodeId, _Payer] = {}
        self._places: dict[Place, _Payer] = {}
        """The same by channel: gateways that name one payer share its account."""
        self._sessions: dict[SessionId, tuple[NodeId, EvmAddress, Open, Callable[[int], None]]] = {}
        self._joining: dict[NodeId, asyncio.Task[None]] = {}
        self._waiting: dict[NodeId, list[tuple[Link, Pay]]] = {}
        self.window = window
        """See `execution.credit.Till.window`."""
        domain = channels.domain
        self.terms = Terms(payee, domain.chain_id, domain.contract, 0, tier, window, operator)
        """What the node's record says."""

    @property
    def prices(self) -> tuple[int, int]:
        """What is asked now, per million tokens read and written."""
        return self._prices[-1][1] if self._prices else (0, 0)

    @property
    def is_open(self) -> bool:
        """Whether a price was told yet."""
        return bool(self._prices)

    def staked(self, amount: int) -> None:
        """Tell this stake from now on."""
        self.terms = msgspec.structs.replace(self.terms, stake=amount)

    def ask(self, price_in: int, price_out: int) -> None:
        """Ask these prices from now on. Earlier ones are honoured for `PRICES_HONOURED`."""
        now = self._clock.monotonic()
        if self._prices and self._prices[-1][1] == (price_in, price_out):
            return
        if self._prices:
            self._prices[-1] = now + PRICES_HONOURED, self._prices[-1][1]
        self._prices = [(until, p) for until, p in self._prices if until > now]
        self._prices.append((float("inf"), (price_in, price_out)))

    def admit(self, peer: NodeId, opened: Open, grow: Callable[[int], None]) -> None:
        """See `execution.credit.Till`."""
        agreed = opened.agreed
        if agreed is None:
            raise PeerRefused("this node is paid, and the session offers no payment", "unpaid")
        now = self._clock.monotonic()
        offered = agreed.price_in, agreed.price_out
        if not any(until > now and offered == p for until, p in self._prices):
            wanted = "/".join(map(str, self.prices))
            raise PeerRefused(
                f"the session offers {offered[0]}/{offered[1]} per million tokens in/out, and this "
                f"node asks {wanted} now",
                "price",
            )
        try:
            payer = parse_address(agreed.payer)
        except ConfigurationError as error:
            raise PeerRefused(str(error), "malformed") from error
        for known in self._places.values():
            paying = any(stay.paid for stay in known.account.stays.values())
            if known.channel.payer == payer and known.owner not in (None, peer) and paying:
                raise PeerRefused("another gateway pays with this address now", "payer_bound")
        self._sessions[opened.session] = peer, payer, opened, grow
        known = self._payers.get(peer)
        if known is not None and known.channel.payer == payer:
            self._enter(known, opened, grow)

    def take(self, link: Link, pay: Pay) -> None:
        """See `execution.credit.Till`."""
        peer = link.peer
        entry = self._sessions.get(pay.session)
        if entry is None or entry[0] != peer:
            return  # of a session that has ended, or was refused
        known = self._payers.get(peer)
        if known is not None and known.channel.payer == entry[1] and self._settle(known, link, pay):
            return
        # the chain has to be asked: of a payer that is new, of a deposit that has grown
        self._waiting.setdefault(peer, []).append((link, pay))
        if peer not in self._joining:
            task = asyncio.create_task(self._look(peer, entry[1]))
            self._joining[peer] = task
            task.add_done_callback(lambda _: self._joining.pop(peer, None))

    def finish(self, session: SessionId, tokens: int) -> None:
        """See `execution.credit.Till`."""
        self._end(session, tokens)

    def drop(self, session: SessionId) -> None:
        """See `execution.credit.Till`."""
        self._end(session, None)

    def _end(self, session: SessionId, tokens: int | None) -> None:
        entry = self._sessions.pop(session, None)
        known = None if entry is None else self._payers.get(entry[0])
        if entry is None or known is None or session not in known.account.stays:
            return
        known.grow.pop(session, None)
        if tokens is None:
            known.account.drop(session)
        else:
            before = known.account.charged
            known.account.finish(session, tokens)
            self.credits.earned(known.place, entry[0], known.account.charged - before)
        if known.owner is not None:
            self._save(known)
        elif not known.account.stays:
            self._forget(known)

    async def credit(self, peer: NodeId, payer: EvmAddress, window: int, share: int) -> int:
        """Give a gateway this share, in thousandths, of what it paid in a window back, unless that
        was done. Returns the units that it got for the window, all told.

        Raises:
            PeerRefused: it paid nothing in that window.
            SettlementError: the chain is away.
        """
        domain = self._channels.domain
        paid = self.credits.place_of(peer, payer, self._payee, window)
        if paid is None or (paid.chain, paid.contract) != (domain.chain_id, domain.contract):
            raise PeerRefused("nothing was paid in that window", "credit_unpaid")
        known = self._payers.get(peer)
        if known is None or known.place != paid:
            known = self._know(peer, payer, await self._channels.state(payer, self._payee))
            if known.place != paid:
                raise PeerRefused("the channel of that window is closed", "credit_unpaid")
        units = credit(self.credits.paid(known.place, peer, window), share)
        return self.credits.grant(known.place, known.account, known.voucher, peer, window, units)

    def _enter(self, known: _Payer, opened: Open, grow: Callable[[int], None]) -> None:
        agreed = opened.agreed
        assert agreed is not None
        layers: LayerRange = opened.layers
        tariff = Tariff(agreed.price_in, agreed.price_out, layers.count, self._layer_count)
        known.account.open(opened.session, tariff, opened.prompt)
        known.grow[opened.session] = grow

    def _settle(self, known: _Payer, link: Link, pay: Pay, *, last: bool = False) -> bool:
        """Take a payment of a known payer; False if the chain has to be asked first. With `last`
        it has been, and what is wrong is said on the link."""
        account = known.account
        if pay.session not in account.stays:
            return False
        try:
            if pay.voucher and pay.voucher != known.voucher:
                voucher = decode_voucher(pay.voucher)
                accept(known.channel, voucher)
                account.promised = voucher.cumulative
                known.voucher = pay.voucher
                known.owner = link.peer
                self._narrow(known)
        except VoucherRefused as refusal:
            older = refusal.code in ("replayed", "reordered")
            if older and self._is_signed(known, pay.voucher):
                known.owner = link.peer
                link.post(Held(pay.session, known.voucher))
                return True
            if not last and refusal.code in ("overdrawn", "closed_epoch"):
                return False
            log.warning("gateway %s…: %s", link.peer[:8], refusal)
            link.post(Refused(f"voucher_{refusal.code}", str(refusal)[:1024], pay.session))
            return True
        # the last voucher itself, shown again, is known to the payer and to this node alone
        if pay.voucher and pay.voucher == known.voucher:
            known.owner = link.peer
        if known.owner == link.peer and account.reserve(pay.session, pay.positions):
            self._save(known)
            known.grow[pay.session](pay.positions)
        else:
            lacking = account.lacking(pay.session, pay.positions)
            link.post(Refused("unpaid", f"{lacking} units are lacking for that", pay.session))
        return True

    def _is_signed(self, known: _Payer, data: bytes) -> bool:
        """Whether the payer signed a voucher that promises no more than the last one."""
        try:
            accept(replace(known.channel, accepted=0), decode_voucher(data))
        except VoucherRefused:
            return False
        return True

    def _forget(self, known: _Payer) -> None:
        """Nobody showed that this payer is theirs."""
        self._places.pop(known.place, None)
        self._payers = {peer: each for peer, each in self._payers.items() if each is not known}

    def _narrow(self, known: _Payer) -> None:
        """The channel as the next voucher is held against it."""
        place, state = known.place, known.state
        usable = state.deposit if self._is_open(state) else max(state.redeemed, 0)
        known.channel = Channel(
            self._channels.domain,
            place.payer,
            place.payee,
            state.epoch,
            usable,
            known.account.promised,
        )

    def _is_open(self, state: ChannelState) -> bool:
        return not state.closes or self._clock.now() < state.closes - SAFETY_SECONDS

    async def _look(self, peer: NodeId, payer: EvmAddress) -> None:
        """Read a payer's channel, then take what waits."""
        try:
            state = await self._channels.state(payer, self._payee)
            known = self._know(peer, payer, state)
        except SettlementError as error:
            log.warning("a payment of gateway %s… waits for the chain: %s", peer[:8], error)
            for link, pay in self._waiting.pop(peer, []):
                link.post(Refused("chain_away", str(error)[:1024], pay.session))
            return
        for link, pay in self._waiting.pop(peer, []):
            if pay.session in self._sessions and not self._settle(known, link, pay, last=True):
                link.post(Refused("unpaid", "no such session", pay.session))

    def _know(self, peer: NodeId, payer: EvmAddress, state: ChannelState) -> _Payer:
        """A payer as the chain has it now.

        Raises:
            SettlementError: there are too many.
        """
        domain = self._channels.domain
        place = Place("payee", domain.chain_id, domain.contract, payer, self._payee, state.epoch)
        known = self._payers.get(peer)
        if known is None or known.place != place:
            if len(self._payers) >= MAX_PAYERS and known is None:
                raise SettlementError(f"{MAX_PAYERS} payers are known: no more are taken")
            if place not in self._places:
                account, voucher = self._books.load(place)
                channel = Channel(domain, payer, self._payee, state.epoch, 0)
                self._places[place] = _Payer(place, channel, account, voucher, state)
            known = self._payers[peer] = self._places[place]
            for owner, address, opened, grow in tuple(self._sessions.values()):
                if owner == peer and address == payer:
                    self._enter(known, opened, grow)
        known.state = state
        self._narrow(known)
        return known

    def _save(self, known: _Payer) -> None:
        self._books.save(known.place, known.account, known.voucher)

    async def run(self) -> None:
        """Redeem what is worth a transaction, and whatever is left of channels that close, until
        cancelled."""
        while True:
            await self._clock.sleep(REDEEM_SECONDS)
            try:
                await self.redeem(self._worth)
            except SettlementError as error:
                log.warning("redeeming waits: %s", error)

    async def redeem(self, worth: int = 1) -> int:
        """Redeem every voucher that yields at least `worth` units, or whose channel closes;
        returns the units that came.

        Raises:
            SettlementError: the chain is away or refuses; what is promised is not lost.
        """
        due: list[Voucher] = []
        total = 0
        domain = self._channels.domain
        for place in self._books.places("payee"):
            if (place.chain, place.contract, place.payee) != (
                domain.chain_id,
                domain.contract,
                self._payee,
            ):
                continue
            _, data = self._books.load(place)
            if not data:
                continue
            state = await self._channels.state(place.payer, self._payee)
            voucher = decode_voucher(data)
            yields = min(voucher.cumulative, state.deposit) - state.redeemed
            if state.epoch == place.epoch and yields > 0 and (yields >= worth or state.closes):
                due.append(voucher)
                total += yields
        if due:
            await self._channels.redeem(self._payee, tuple(due))
        return total
