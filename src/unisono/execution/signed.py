"""What this node signed: one claim per session, so that no gateway can make it contradict itself.

Two claims of one session and epoch convict whoever signed both. A gateway that opens a session
again, or gives it other rows after it was signed for, gets the first claim or none.

Claims are kept in memory. A node with something to lose also writes down in which epoch it signed
last: started again in that epoch, it signs nothing before the next, since what it signed is
forgotten.
"""

from __future__ import annotations

from pathlib import Path

from unisono.clock import Clock
from unisono.errors import ConfigurationError, PeerRefused
from unisono.execution.session import HopSession
from unisono.types import SessionId
from unisono.wire.claims import EPOCH_DRIFT, EPOCH_SECONDS, HopClaim, epoch_at
from unisono.wire.identity import Identity


class SignedClaims:
    """Claims of this epoch and the one before."""

    def __init__(
        self,
        identity: Identity,
        clock: Clock,
        epoch_seconds: int = EPOCH_SECONDS,
        last: Path | None = None,
    ) -> None:
        """`last`: the file that holds the epoch of the last claim; None: nothing is at stake.

        Raises:
            ConfigurationError: the file cannot be read, or is none.
        """
        self._last = last
        self._signed = self._barred = _read(last)
        self._identity = identity
        self._clock = clock
        self._epoch_seconds = epoch_seconds
        self._claims: dict[SessionId, tuple[int, HopClaim]] = {}
        """Session → tokens and claim, the oldest first."""

    @property
    def wait(self) -> float:
        """Seconds until this node may sign again; 0: it may."""
        now = self._clock.now()
        if epoch_at(now, self._epoch_seconds) > self._barred:
            return 0.0
        return (self._barred + 1) * self._epoch_seconds - now

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
            if self.wait:
                raise PeerRefused("this node was started again in this epoch", "not_ready")
            self._note(epoch)
            known = tokens, session.claim(tokens, self._identity, epoch)
            self._claims[session.id] = known
        if known[0] != tokens:
            raise PeerRefused(f"this hop has signed for {known[0]} tokens", "signed")
        return known[1]

    def _note(self, epoch: int) -> None:
        """Write down that something is signed in this epoch, before it is."""
        if self._last is None or epoch <= self._signed:
            return
        part = self._last.with_suffix(".part")
        part.write_text(f"{epoch}\n")
        part.replace(self._last)
        self._signed = epoch

    def _forget(self) -> int:
        """Drop what no claim of this epoch can contradict; returns the epoch."""
        epoch = epoch_at(self._clock.now(), self._epoch_seconds)
        for session, (_, claim) in list(self._claims.items()):
            if claim.epoch >= epoch - EPOCH_DRIFT:
                break
            del self._claims[session]
        return epoch


def _read(path: Path | None) -> int:
    try:
        return -1 if path is None else int(path.read_text())
    except FileNotFoundError:
        return -1
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} should hold the epoch in which this node signed last: {error}; if it was "
            "damaged, wait for two epochs and remove it"
        ) from error
