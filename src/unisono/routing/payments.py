"""How a gateway pays for sessions, as routing sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from unisono.wire.payment_messages import Agreed, Due, Held, Pay
from unisono.wire.records import NodeRecord
from unisono.wire.sold import Sold, Wallet


class Tab(Protocol):
    """One session's payments to one hop."""

    @property
    def agreed(self) -> Agreed:
        """What the hop is told when the session is opened."""
        ...

    def begin(self) -> None:
        """The session was opened: pay the first window."""
        ...

    def due(self, due: Due) -> None:
        """The hop asks for more: it is paid as soon as its progress is plausible."""
        ...

    def held(self, held: Held) -> None:
        """The hop has a voucher that promises more than the last one it was sent."""
        ...

    def heard(self, tokens: int) -> None:
        """So many tokens of the answer are known."""
        ...

    def finish(self, tokens: int) -> None:
        """The hop signed for so many tokens: that is what it is paid."""
        ...

    def drop(self) -> None:
        """The session has ended; without `finish` the hop keeps what it was paid ahead."""
        ...


class Purse(Protocol):
    """Pays nodes."""

    @property
    def wallets(self) -> frozenset[Wallet]:
        """Where it can pay; nodes that are paid elsewhere are not asked."""
        ...

    async def prepare(self, record: NodeRecord, most: int) -> None:
        """See to it that the node can be paid `most` smallest units more.

        Raises:
            InsufficientFunds: the payer has not so much; says what is missing.
            SettlementError: the chain cannot be reached or refuses.
        """
        ...

    def open(self, sold: Sold, post: Callable[[Pay], None]) -> Tab:
        """Begin a tab; `post` sends to the hop."""
        ...
