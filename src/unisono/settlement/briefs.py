"""What a node keeps of a claim that it signed for a chain, so that it can defend it later.

The chain holds claims and games; prompt, answer and rows it does not hold. Whoever wants a claim
for the chain shows them to the node, which checks and keeps them as long as the claim can be
challenged: after a restart it needs the chain and these files, and nothing else.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import msgspec
from msgspec import Meta

from unisono.errors import ModelError, PeerCheating, PeerRefused
from unisono.settlement.advocates import State
from unisono.settlement.claims import SettlementClaim
from unisono.types import canonical
from unisono.verification.fraud.moves import Subject
from unisono.wire.bounds import MAX_POSITIONS, TokenId

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20
"""Of one brief."""
MAX_BRIEFS, MAX_KEPT_BYTES = 4096, 4 << 30
"""Of all that are kept; with more, claims are not signed for a chain until some are too old."""
SUFFIX = ".brief"


class Brief(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A claim with everything from which its hop can be computed again."""

    subject: Subject
    answer: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_POSITIONS)] = ()
    """For a hop that begins the model and does not end it: the subject has no tokens then."""
    widths: bytes = b""
    """Of the rows that came in, as in `wire.rows`; empty of a hop that begins the model."""
    rows: bytes = b""
    claim: SettlementClaim | None = None
    """The form for the chain, signed; None until it is."""


def decode_brief(data: bytes) -> Brief:
    """Read a brief strictly.

    Raises:
        PeerCheating: too large, or anything but the canonical form of a brief.
    """
    if len(data) > MAX_BYTES:
        raise PeerCheating(f"a brief of {len(data)} bytes; at most {MAX_BYTES} are allowed")
    try:
        brief = msgspec.msgpack.decode(data, type=Brief)
        if canonical(brief) == data:
            return brief
    except (msgspec.DecodeError, UnicodeDecodeError, ModelError, OverflowError) as error:
        raise PeerCheating(f"not a brief: {error}") from error
    raise PeerCheating("a brief that is not in canonical form")


class Briefs:
    """The briefs of one account on one chain, by the digest of the claim; in a folder or, without
    one, in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[bytes, bytes] = {}
        self._epochs: dict[bytes, int] = {}
        self._bytes = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in folder.glob(f"*{SUFFIX}"):
                epoch, _, name = path.stem.partition("-")
                if epoch.isdigit() and len(name) == 64:
                    self._epochs[bytes.fromhex(name)] = int(epoch)
                    self._bytes += path.stat().st_size

    def keep(self, digest: bytes, brief: Brief) -> None:
        """Keep a brief.

        Raises:
            PeerRefused: there is no room.
        """
        data = canonical(brief)
        full = len(self._epochs) >= MAX_BRIEFS or self._bytes + len(data) > MAX_KEPT_BYTES
        if len(data) > MAX_BYTES or full:
            raise PeerRefused("no room for more claims that can be disputed", "capacity")
        epoch = brief.subject.claim.epoch
        if self._folder is None:
            self._memory[digest] = data
        else:
            path = self._path(digest, epoch)
            part = path.with_suffix(".part")
            part.write_bytes(data)
            part.replace(path)
        self._epochs[digest] = epoch
        self._bytes += len(data)

    def find(self, digest: bytes) -> Brief | None:
        """The brief of a claim; None if it is not here, or not readable any more."""
        if digest not in self._epochs:
            return None
        try:
            if self._folder is None:
                return decode_brief(self._memory[digest])
            return decode_brief(self._path(digest, self._epochs[digest]).read_bytes())
        except (OSError, PeerCheating) as error:
            log.error("the brief of claim %s… cannot be read: %s", digest.hex()[:12], error)
            return None

    def forget(self, before: int) -> None:
        """Drop those of epochs before this one."""
        for digest, epoch in list(self._epochs.items()):
            if epoch < before:
                del self._epochs[digest]
                if self._folder is None:
                    self._bytes -= len(self._memory.pop(digest))
                else:
                    path = self._path(digest, epoch)
                    self._bytes -= path.stat().st_size if path.exists() else 0
                    path.unlink(missing_ok=True)

    def _path(self, digest: bytes, epoch: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{epoch}-{digest.hex()}{SUFFIX}"


def encode_state(state: State) -> bytes:
    """A game's state for a process of this machine: JSON, since integers have up to 256 bits."""
    fields = [x.hex() if isinstance(x, bytes) else x for x in state]
    return json.dumps(fields).encode()


def decode_state(data: bytes) -> State:
    """What `encode_state` wrote."""
    fields: list[Any] = json.loads(data)
    kinds = get_type_hints(State)
    values: list[Any] = []
    for name, value in zip(State._fields, fields, strict=True):
        if kinds[name] is bytes:
            value = bytes.fromhex(value)
        values.append(tuple(cast("list[int]", value)) if isinstance(value, list) else value)
    return State(*values)
