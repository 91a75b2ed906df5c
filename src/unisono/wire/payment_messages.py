"""Messages about money: what a session is paid for, so far and from here on.

A gateway pays ahead, a window at a time, and a node that is not paid stops. Vouchers are opaque
here (`settlement.vouchers`): they promise totals per payer and payee, so one of them settles all
sessions between the two, and a lost one is made good by the next.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.wire.bounds import Count, MessageBase, Natural, Session
from unisono.wire.terms import TIERS, AddressText

MAX_VOUCHER = 256
VoucherBytes = Annotated[bytes, Meta(max_length=MAX_VOUCHER)]


class Agreed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The prices at which a gateway opens a session, and who pays."""

    price_in: Natural
    """As the node's record has it."""
    price_out: Natural
    payer: AddressText


class Pay(MessageBase, frozen=True):
    """Gateway to hop: a session is paid for up to some of its positions, prompt included."""

    session: Session
    positions: Count
    voucher: VoucherBytes
    """Empty where the last one promises enough."""


class Due(MessageBase, frozen=True):
    """Hop to gateway: so many positions are computed, and payment ahead is running out."""

    session: Session
    positions: Count


class Held(MessageBase, frozen=True):
    """Hop to gateway: a voucher came that promises no more than this one, which came before."""

    session: Session
    voucher: VoucherBytes


class CreditAsked(MessageBase, frozen=True):
    """Gateway to node: what the node promised of a window was not kept, by what is seen here."""

    payer: AddressText
    window: Natural
    """Its number: Unix time divided by its length."""
    seconds: Annotated[int, Meta(ge=1, lt=1 << 32)]
    """Its length."""
    tier: Annotated[int, Meta(ge=0, lt=len(TIERS))]
    """The highest that the node's records promised in it."""
    down: Natural
    """Milliseconds of it."""
    convicted: bool = False
    """The node signed something in it that is proven false."""


class CreditGiven(MessageBase, frozen=True):
    """Node to gateway: so much less than before counts as charged, for a window, all told."""

    window: Natural
    units: Natural


PaymentMessage = Pay | Due | Held | CreditAsked | CreditGiven
