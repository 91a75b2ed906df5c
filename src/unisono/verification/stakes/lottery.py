"""The lottery: which claims are audited, who replays them, and at which positions.

A lot is a verifiable random function: for one key and one input there is exactly one output,
and a proof that it is the right one. Here it is a BLS signature on BLS12-381 (Boneh, Lynn,
Shacham 2001), which is unique and so cannot be drawn again until it suits; an ed25519 signature
could be: the signer chooses its nonce. Library: chia_rs over blst, in constant time.
An output is the hash of the proof.

The auditor's lot for a claim mixes the beacon's value, which the node did not know when it
signed, with a key of its own, which the beacon's operator does not know. It decides whether the
claim is audited, seeds the choice of the committee, and names the rows to be opened. Everyone
checks all three from the ticket.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Annotated

import msgspec
from chia_rs import AugSchemeMPL, G1Element, G2Element
from msgspec import Meta

from unisono.errors import ConfigurationError
from unisono.types import LayerRange, NodeId, canonical, digest
from unisono.verification.stakes.beacon import AUDIT_DELAY, Beacon
from unisono.wire.bounds import Node
from unisono.wire.claims import HopClaim
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import MILLION, PROOF_BYTES, LotteryBinding, Ticket

MAX_VERIFIERS = 65_536
MAX_STAKE = 1 << 96
SAMPLED_ROWS = 4
"""Rows whose whole content a committee commits to."""
_MAX_KEYS = 4096


class LotteryKey:
    """A key that draws lots. It follows from the node's identity and never leaves it."""

    __slots__ = ("_key", "public")

    def __init__(self, identity: Identity) -> None:
        self._key = AugSchemeMPL.key_gen(digest("lottery-key/1", identity.secret_seed()))
        self.public = bytes(self._key.get_g1())

    def draw(self, alpha: bytes) -> bytes:
        """The proof of this key's lot for an input: `PROOF_BYTES` (0.4 ms)."""
        return bytes(AugSchemeMPL.sign(self._key, alpha))

    def binding(self, identity: Identity, since: int) -> LotteryBinding:
        """The statement that ties the key to the node, from epoch `since` on."""
        return LotteryBinding(
            node=identity.node_id,
            key=self.public,
            possession=self.draw(_possession(identity.node_id)),
            since=since,
        ).signed_by(identity)

    def __repr__(self) -> str:
        return f"LotteryKey({self.public.hex()[:16]}…)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a lottery key does not travel: it is private")


def verify_lot(key: bytes, alpha: bytes, proof: bytes) -> bool:
    """Whether `proof` is the one lot of `key` for an input (1.0 ms). Malformed is just False."""
    if len(proof) != PROOF_BYTES:
        return False
    point = _public_point(key)
    if point is None:
        return False
    try:
        return AugSchemeMPL.verify(point, alpha, G2Element.from_bytes(proof))
    except ValueError:
        return False


def binding_is_good(binding: LotteryBinding) -> bool:
    """Whether node and key have both agreed to be tied to each other."""
    return binding.signature_is_good() and verify_lot(
        binding.key, _possession(binding.node), binding.possession
    )


def lot_output(proof: bytes) -> bytes:
    """The 32 uniform bytes of a lot."""
    return digest("lottery-output/1", proof)


def claim_hash(claim: HopClaim) -> str:
    """64 hex digits that name a claim by what its node signed."""
    return claim.signed_bytes().hex()


class Verifier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node that may be asked to replay, what it has at stake, and which block it can replay."""

    node: Node
    stake: int
    model: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    """Empty: it computes whatever it is asked for."""
    layers: LayerRange = LayerRange(0, 0)

    def computes(self, model: str, layers: LayerRange) -> bool:
        """Whether it holds exactly this block."""
        return not self.model or (self.model, self.layers) == (model, layers)


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Those whom the committees of an epoch are drawn from, ascending by node id.

    It must be fixed before the beacon value that its claims are audited with is public: on a chain
    by its registry, else by the auditor's signature (`bulletin.Bulletin`).
    """

    epoch: int
    verifiers: tuple[Verifier, ...]

    @classmethod
    def of(cls, epoch: int, verifiers: Iterable[Verifier]) -> Roster:
        """Order and check a roster.

        Raises:
            ConfigurationError: a node twice, a stake out of range, or too many nodes.
        """
        ordered = tuple(sorted(verifiers, key=lambda v: v.node))
        if len({v.node for v in ordered}) != len(ordered) or len(ordered) > MAX_VERIFIERS:
            raise ConfigurationError(
                f"a roster holds each node once and at most {MAX_VERIFIERS} nodes; "
                f"this one has {len(ordered)} entries"
            )
        if not all(0 < v.stake <= MAX_STAKE for v in ordered):
            raise ConfigurationError("a verifier's stake is positive and at most 2^96")
        return cls(epoch, ordered)

    def hash(self) -> str:
        """64 hex digits; a ticket names its roster by them."""
        return digest("roster/2", canonical(self)).hex()

    def able(self, model: str, layers: LayerRange) -> Roster:
        """Those of it that can replay a block: only they are worth a seat."""
        return Roster(self.epoch, tuple(v for v in self.verifiers if v.computes(model, layers)))


def draw_ticket(
    key: LotteryKey, auditor: NodeId, claim: HopClaim, roster: Roster, rate: int, beacon: Beacon
) -> Ticket | None:
    """The auditor's lot for a claim; it may lose, see `wins`. None: the beacon has no value yet.

    `rate` counts audited claims per million.
    """
    value = beacon.value(claim.epoch + AUDIT_DELAY)
    if value is None:
        return None
    named = claim_hash(claim)
    return Ticket(
        epoch=claim.epoch,
        claim=named,
        auditor=auditor,
        roster=roster.hash(),
        rate=rate,
        proof=key.draw(lot_input(value, claim.epoch, named)),
    )


def lot_input(value: bytes, epoch: int, claim: str) -> bytes:
    """What the lot for a claim is drawn over; 32 bytes."""
    return digest("lottery/1", value, epoch.to_bytes(8, "little"), bytes.fromhex(claim))


def ticket_is_good(ticket: Ticket, binding: LotteryBinding, beacon: Beacon) -> bool:
    """Whether a ticket is its auditor's one lot for the claim. Its `rate` is for policy to judge.

    The binding's own signatures are for the caller to check, once. False as long as the beacon
    has no value for the ticket's epoch.
    """
    value = beacon.value(ticket.epoch + AUDIT_DELAY)
    if value is None or binding.node != ticket.auditor or binding.since > ticket.epoch:
        return False
    alpha = lot_input(value, ticket.epoch, ticket.claim)
    return verify_lot(binding.key, alpha, ticket.proof)


def wins(ticket: Ticket) -> bool:
    """Whether the ticket's claim is audited: its lot is below `rate` of a million."""
    lot = int.from_bytes(_drawn(ticket, "audit")[:16], "big")
    return lot * MILLION < ticket.rate << 128


def draw_committee(
    ticket: Ticket, roster: Roster, count: int, exclude: Collection[NodeId] = ()
) -> tuple[NodeId, ...]:
    """The first `count` nodes of the ticket's order (fewer if there are not so many).

    Nodes are drawn without replacement, each with the chance of its stake: who splits a stake
    over many identities has no more seats to expect. `exclude` holds those who may not judge:
    the nodes of the audited chain and the auditor.
    """
    left = [v for v in roster.verifiers if v.node not in exclude]
    total = sum(v.stake for v in left)
    chosen: list[NodeId] = []
    while left and len(chosen) < count:
        seed = _drawn(ticket, f"seat {len(chosen)}") + _drawn(ticket, f"Seat {len(chosen)}")
        # 512 bits over a total below 2^112: the remainder is uniform to 2^-400
        at = int.from_bytes(seed, "big") % total
        place = 0
        while at >= left[place].stake:
            at -= left[place].stake
            place += 1
        total -= left[place].stake
        chosen.append(left.pop(place).node)
    return tuple(chosen)


def draw_positions(ticket: Ticket, positions: int, count: int = SAMPLED_ROWS) -> tuple[int, ...]:
    """The positions, ascending, whose whole rows a committee commits to."""
    if positions <= count:
        return tuple(range(positions))
    found: set[int] = set()
    turn = 0
    while len(found) < count:
        seed = _drawn(ticket, f"position {turn}")
        found.add(int.from_bytes(seed[:16], "big") % positions)
        turn += 1
    return tuple(sorted(found))


def _drawn(ticket: Ticket, purpose: str) -> bytes:
    return digest("lottery-draw/1", purpose.encode(), lot_output(ticket.proof))


def _possession(node: str) -> bytes:
    return digest("lottery-possession/1", bytes.fromhex(node))


@lru_cache(_MAX_KEYS)
def _public_point(key: bytes) -> G1Element | None:
    """The point of a public key; None for bytes that are none, or the one that binds to nothing."""
    try:
        point = G1Element.from_bytes(key)
    except ValueError:
        return None
    return None if point == G1Element() else point
