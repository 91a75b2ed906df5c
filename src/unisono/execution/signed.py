"""What this node signed: one claim per session, so that no gateway can make it contradict itself.

Two claims of one session and epoch convict whoever signed both. A gateway that opens a session
again, or gives it other rows after it was signed for, gets the first claim or none.
"""

from __future__ import annotations

from unisono.clock import Clock
from unisono.errors import PeerRefused
from unisono.execution.session import HopSession
from unisono.types import SessionId
from unisono.wire.claims import EPOCH_DRIFT, EPOCH_SECONDS, HopClaim, epoch_at
from unisono.wire.identity import Identity


class SignedClaims:
    """Claims of this epoch and the one before."""

    def __init__(
        self, identity: Identity, clock: Clock, epoch_seconds: int = EPOCH_SECONDS
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._epoch_seconds = epoch_seconds
        self._claims: dict[SessionId, tuple[int, HopClaim]] = {}
        """Session → tokens and claim, the oldest first."""

    def __contains__(self, session: SessionId) -> bool:
        self._forget()
        return session in self._claims

    def sign(self, session: HopSession, tokens: int) -> HopClaim:
        """The claim for the first `tokens` tokens: signed now, or before.

        Raises:
            PeerRefused: the session was signed for with another number of tokens
                (`signed`), or is not computed that far (`not_computed`).
        """
        epoch = self._forget()
        known = self._claims.get(session.id)
        if known is None:
            known = tokens, session.claim(tokens, self._identity, epoch)
            self._claims[session.id] = known
        if known[0] != tokens:
            raise PeerRefused(f"this hop has signed for {known[0]} tokens", "signed")
        return known[1]

    def _forget(self) -> int:
        """Drop what no claim of this epoch can contradict; returns the epoch."""
        epoch = epoch_at(self._clock.now(), self._epoch_seconds)
        for session, (_, claim) in list(self._claims.items()):
            if claim.epoch >= epoch - EPOCH_DRIFT:
                break
            del self._claims[session]
        return epoch
