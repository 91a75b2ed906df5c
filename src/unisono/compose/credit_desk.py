"""A node's side of service levels: it keeps its own log, and gives back what it owes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from unisono.clock import Clock
from unisono.errors import ConfigurationError, PeerRefused, SettlementError
from unisono.market.service_log import ServiceLog
from unisono.market.sla import credit_share
from unisono.routing.membership import Membership
from unisono.settlement.eip712 import parse_address
from unisono.settlement.payments.till import Till
from unisono.types import NodeId
from unisono.wire.bounds import MAX_MESSAGE_CHARACTERS
from unisono.wire.frames import encode_frame
from unisono.wire.messages import Refused
from unisono.wire.payment_messages import CreditAsked, CreditGiven
from unisono.wire.transports.base import Stream

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class CreditDesk:
    """Use: `run` until cancelled, `handle` streams that begin with `CreditAsked`."""

    def __init__(
        self,
        till: Till,
        kept: ServiceLog,
        members: Membership,
        clock: Clock,
        convicted_at: Callable[[NodeId], float | None],
    ) -> None:
        """`convicted_at`: when a node signed what it is convicted of, in Unix seconds; None: it is
        not convicted."""
        self._till = till
        self._kept = kept
        self._members = members
        self._node = members.own
        self._clock = clock
        self._convicted_at = convicted_at

    async def run(self) -> None:
        """Keep the log of this node's own heartbeats until cancelled."""
        while True:
            self.look()
            await self._clock.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """Take note of the record that this node told last."""
        entry = self._members.find(self._node)
        if entry is not None:
            tier = self._till.terms.tier
            record = entry.record
            self._kept.heard(self._node, record.expires, leaving=record.leaving, tier=tier)
        self._kept.look(self._clock.now())

    async def handle(self, stream: Stream, asked: CreditAsked) -> None:
        """Answer one gateway.

        Raises:
            WireError: the stream failed.
        """
        try:
            units = await self._give(stream.peer, asked)
            reply = CreditGiven(asked.window, units)
            log.info("gateway %s… gets %d units back", stream.peer[:8], units)
        except PeerRefused as refusal:
            reply = Refused(refusal.code, str(refusal)[:MAX_MESSAGE_CHARACTERS])
        except (SettlementError, ConfigurationError) as error:
            log.warning("a credit waits: %s", error)
            reply = Refused("credit_later", "the accounts cannot be read or written now")
        await stream.send(encode_frame(reply))

    async def _give(self, peer: NodeId, asked: CreditAsked) -> int:
        """Units that a gateway got for a window, all told.

        The gateway's figures count as far as this node's own log agrees: the rule is applied to
        the smaller of both.

        Raises:
            PeerRefused: nothing is due, or not yet.
            ConfigurationError, SettlementError: not now.
        """
        kept = self._kept
        if asked.seconds * 1000 != kept.window_ms:
            raise PeerRefused(
                f"windows have {kept.window_ms // 1000} s here, not {asked.seconds}",
                "credit_window",
            )
        if asked.window > kept.last_closed:
            raise PeerRefused("that window is not over", "credit_early")
        payer = parse_address(asked.payer)
        own = kept.figures_of(asked.window, self._node)
        signed = self._convicted_at(self._node)
        guilty = signed is not None and kept.window(signed) == asked.window
        share = credit_share(
            min(asked.tier, own.tier),
            min(asked.down, own.down),
            kept.window_ms,
            convicted=asked.convicted and guilty,
        )
        if not share:
            raise PeerRefused(
                f"by this node's log it was down {own.down} ms of that window, and kept its word",
                "credit_undue",
            )
        return await self._till.credit(peer, payer, asked.window, share)
