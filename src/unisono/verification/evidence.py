"""Evidence: files from which anyone, with no weights and no trust in the sender, sees who lied.

evidence        what it shows                                              convicts
contradiction   two claims: same rows in, model and layers, other out      the node
                two claims of one session and epoch that differ otherwise  the node
disagreement    what a hop signed as sent, the next not as received        one of the two
badrow          a row under a signed root that no honest hop signs: not    the node
                of its tag, not canonical, not the prompt's token
wrongtile       a signed weight that is not the model's                    the node
refusal         a signed refusal to open what the node's claim covers      the node
silence         a demand, and who saw its deadline pass                    nobody

Verdicts: INVALID names the node that lied; INCONCLUSIVE says what is not shown, with suspects if
one of two lied. Nothing here is ever VALID: evidence does not acquit.
"""

from __future__ import annotations

import binascii
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import UNSET, Meta

from unisono.errors import ReceiptError
from unisono.models.rows import INTEGER, hash_of
from unisono.types import GenerationRequest, NodeId, canonical, digest, request_hash
from unisono.verification.openings import Field, Tile
from unisono.verification.verdict import Fault, Verdict, fault_of
from unisono.wire.bounds import MAX_POSITIONS, Hash, Model, Natural, Node, Position
from unisono.wire.claims import RETENTION_EPOCHS, TAG_BYTES, HopClaim, token_hash
from unisono.wire.identity import Identity, verify_signature
from unisono.wire.mountain_range import RowProof
from unisono.wire.rows import VALUE_LIMIT

VERSION = 2
MAX_BYTES = 8 << 20
"""Of a file: two claims over `MAX_POSITIONS` positions, and some room."""
MAX_WITNESSES = 64

Side = Literal["in", "out"]
_Signature = Annotated[bytes, Meta(max_length=64)]


class EvidenceBase(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="evidence", tag=str.lower
):
    """A tagged piece of evidence: the tag is the class's name in lower case."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]


class OpenedRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One position of a root that a claim signs."""

    hash: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """The row's hash."""
    proof: RowProof


class Contradiction(EvidenceBase, frozen=True):
    """Two claims of one node that cannot both be true."""

    claims: tuple[HopClaim, HopClaim]


class Disagreement(EvidenceBase, frozen=True):
    """The claims of two neighbours, and perhaps the row in which their roots differ."""

    before: HopClaim
    after: HopClaim
    sent: OpenedRow | None = None
    """Under the rows out of the first."""
    received: OpenedRow | None = None
    """Under the rows in of the second, at the same position."""


class BadRow(EvidenceBase, frozen=True):
    """A row that a claim's root holds."""

    claim: HopClaim
    side: Side
    row: OpenedRow
    encoded: bytes = b""
    """The bytes whose hash was signed, if they are what is wrong: of a row 8 for each integer."""
    hidden: Field | None = None
    """The model's `config/hidden_size`, needed to judge `encoded`."""
    request: GenerationRequest | None = None
    """The request, if a first hop read another prompt."""


class TileStatement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node's signed word about the weights that it computes with, given when it was asked."""

    node: Node
    model: Model
    tensor: Annotated[str, Meta(max_length=255)]
    row: Natural
    tile: Natural
    data: Annotated[bytes, Meta(max_length=1024)]
    signature: _Signature = b""

    def signed_bytes(self) -> bytes:
        """What the node's signature covers: everything else."""
        return digest("tile/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> TileStatement:
        """The same statement with the node's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the node that it names signed it."""
        return verify_signature(self.node, self.signed_bytes(), self.signature)


class WrongTile(EvidenceBase, frozen=True):
    """What a node said of a tile, and what the model id commits to there."""

    statement: TileStatement
    true: Tile


class Demand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A challenger's signed demand that a node open a position of a claim."""

    challenger: Node
    claim: Hash
    """`claim_hash` of the claim."""
    side: Side
    position: Position
    deadline: Natural
    """Epoch at whose end the answer was due."""
    signature: _Signature = b""

    def signed_bytes(self) -> bytes:
        """What the challenger's signature covers: everything else."""
        return digest("demand/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> Demand:
        """The same demand with the challenger's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the challenger that it names signed it."""
        return verify_signature(self.challenger, self.signed_bytes(), self.signature)


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody signs about a demand: `refuse`, by the node that was asked; `silent`, by a
    witness that saw the deadline pass without an answer."""

    by: Node
    says: Literal["refuse", "silent"]
    demand: Hash
    """Hex of the demand's signed bytes."""
    signature: _Signature = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("demand-statement/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> Statement:
        """The same statement with its author's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def holds(self, demand: Demand) -> bool:
        """Whether its author signed it about this demand."""
        about = self.demand == demand.signed_bytes().hex()
        return about and verify_signature(self.by, self.signed_bytes(), self.signature)


class Refusal(EvidenceBase, frozen=True):
    """A node that signed a claim and then, signed too, would not open it."""

    claim: HopClaim
    demand: Demand
    statement: Statement


class Silence(EvidenceBase, frozen=True):
    """A node that did not answer, as far as others say."""

    claim: HopClaim
    demand: Demand
    witnesses: Annotated[tuple[Statement, ...], Meta(max_length=MAX_WITNESSES)]


Evidence = Contradiction | Disagreement | BadRow | WrongTile | Refusal | Silence


def claim_hash(claim: HopClaim) -> str:
    """64 hex digits that name a signed claim."""
    return claim.signed_bytes().hex()


def to_json(evidence: Evidence) -> bytes:
    """The form of a file: JSON, bytes as base64."""
    return msgspec.json.encode(evidence)


def from_json(data: bytes) -> Evidence:
    """Read evidence strictly.

    Raises:
        ReceiptError: it is too large, or none that this program knows.
    """
    if len(data) > MAX_BYTES:
        raise ReceiptError(f"the evidence is larger than {MAX_BYTES >> 20} MiB")
    try:
        return msgspec.json.decode(data, type=Evidence)
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, RecursionError) as error:
        raise ReceiptError(f"not evidence of version {VERSION}: {error}") from error


def judge(evidence: Evidence) -> Verdict:
    """Who is convicted. Any contents that can be read are judged: nothing is raised."""
    try:
        if isinstance(evidence, Contradiction):
            return _judge_contradiction(*evidence.claims)
        if isinstance(evidence, Disagreement):
            return _judge_disagreement(evidence)
        if isinstance(evidence, BadRow):
            return _judge_row(evidence)
        if isinstance(evidence, WrongTile):
            return _judge_tile(evidence)
        return _judge_demand(evidence)
    except OverflowError:
        return _nothing("a number in it is too large to have been signed")


def _nothing(why: str) -> Verdict:
    return Verdict("INCONCLUSIVE", message=f"it proves nothing: {why}")


def _convicted(fault: Fault) -> Verdict:
    return Verdict("INVALID", fault, fault.message)


def _named(claim: HopClaim) -> str:
    return f"hop {claim.hop} (layers {claim.layers}, node {claim.node})"


def _unsigned(*claims: HopClaim) -> Verdict | None:
    for claim in claims:
        if not claim.signature_is_good():
            return _nothing(f"{_named(claim)} did not sign the claim as it stands here")
        if not 0 <= claim.positions <= MAX_POSITIONS:
            return _nothing(f"a claim covers {claim.positions} positions")
    return None


def _judge_contradiction(one: HopClaim, other: HopClaim) -> Verdict:
    unsigned = _unsigned(one, other)
    if unsigned is not None:
        return unsigned
    if one.node != other.node:
        return _nothing("the claims are of two nodes, which may both be right about different runs")
    same_work = (one.model, one.layers, one.positions, one.rows_in) == (
        other.model,
        other.layers,
        other.positions,
        other.rows_in,
    )
    if same_work and (one.rows_out, one.out_tags) != (other.rows_out, other.out_tags):
        what = "signed two results of the same layers of the same model for the same rows in"
        return _convicted(fault_of(one, "contradiction", f"{_named(one)} {what}"))
    # tokens that an ensemble gave to its hops are no answers of theirs
    answers = {c.tokens for c in (one, other) if c.distributions is UNSET} - {""}
    if same_work and one.request == other.request and len(answers) == 2:
        what = "signed two answers to one request, from the same rows"
        return _convicted(fault_of(one, "contradiction", f"{_named(one)} {what}"))
    if (one.session, one.epoch) != (other.session, other.epoch):
        return _nothing(
            "the claims are of two sessions or epochs, and do not contradict each other"
        )
    where = [(c.hop, c.layers, c.model, c.request, c.gateway) for c in (one, other)]
    if where[0] != where[1] or (one.positions == other.positions and one.rows_in != other.rows_in):
        what = f"signed two claims in session {one.session} where a node signs one"
        return _convicted(fault_of(one, "equivocation", f"{_named(one)} {what}"))
    return _nothing("the claims do not contradict each other")


def _judge_disagreement(evidence: Disagreement) -> Verdict:
    before, after = evidence.before, evidence.after
    unsigned = _unsigned(before, after)
    if unsigned is not None:
        return unsigned
    pair = [(c.session, c.request, c.gateway, c.model, c.positions) for c in (before, after)]
    follows = after.hop == before.hop + 1 and after.layers.start == before.layers.stop
    if pair[0] != pair[1] or not follows:
        return _nothing("the claims are not of two neighbours in one session")
    if before.rows_out == after.rows_in:
        return _nothing("the neighbours signed the same rows")
    position = None
    if evidence.sent is not None and evidence.received is not None:
        sent, received = evidence.sent, evidence.received
        if not (_opens(before, "out", sent) and _opens(after, "in", received)):
            return _nothing("a row does not open under the root that it is shown for")
        if sent.proof.position != received.proof.position or sent.hash == received.hash:
            return _nothing("the opened rows do not differ at one position")
        position = sent.proof.position
    where = f", first shown at position {position}" if position is not None else ""
    message = (
        f"{_named(before)} and {_named(after)} signed different rows between them{where}: one of "
        "the two lied, and nothing signed here shows which"
    )
    suspects = (before.node, after.node)
    fault = Fault("rows_disagree", message, position=position, suspects=suspects)
    return Verdict("INCONCLUSIVE", fault, message)


def _opens(claim: HopClaim, side: Side, row: OpenedRow) -> bool:
    root = claim.rows_in if side == "in" else claim.rows_out
    return row.proof.count == claim.positions and row.proof.holds(root, row.hash)


def _judge_row(evidence: BadRow) -> Verdict:
    claim, row = evidence.claim, evidence.row
    unsigned = _unsigned(claim)
    if unsigned is not None:
        return unsigned
    if not _opens(claim, evidence.side, row):
        return _nothing(f"the row does not open under the rows {evidence.side} of the claim")
    at = row.proof.position
    if evidence.side == "out":
        tag = claim.out_tags[TAG_BYTES * at : TAG_BYTES * (at + 1)]
        if tag != row.hash[:TAG_BYTES]:
            message = f"{_named(claim)} signed a tag and a root that differ at position {at}"
            return _convicted(fault_of(claim, "wrong_tags", message, at))
    if evidence.encoded:
        return _judge_encoded(evidence, at)
    if evidence.request is not None:
        return _judge_prompt(claim, evidence.side, row, evidence.request)
    return _nothing("the row is what the claim says, and nothing shows that it is wrong")


def _judge_encoded(evidence: BadRow, at: int) -> Verdict:
    claim, field, encoded = evidence.claim, evidence.hidden, evidence.encoded
    if hash_of(encoded) != evidence.row.hash:
        return _nothing("the row's bytes do not have the opened hash")
    if evidence.side == "in" and claim.hop == 0:
        return _nothing("what goes into the first hop are tokens, not rows")
    hidden = field.integer() if field is not None else None
    if field is None or hidden is None or field.name != "config/hidden_size" or hidden < 1:
        return _nothing("the model's hidden size is not opened beside the row")
    if not field.check(claim.model):
        return _nothing("the hidden size does not open under the model id of the claim")
    problem = _row_problem(encoded, hidden)
    if problem is not None:
        message = f"{_named(claim)} signed bytes at position {at} that are no row: {problem}"
        return _convicted(fault_of(claim, "wrong_row", message, at))
    return _nothing("the row is a canonical one; whether it is right, only a replay shows")


def _row_problem(data: bytes, hidden: int) -> str | None:
    if len(data) != INTEGER * hidden:
        return f"a row of {hidden} values has {INTEGER * hidden} bytes; got {len(data)}"
    values = np.frombuffer(data, "<i8")
    if int(values.min()) <= -VALUE_LIMIT or int(values.max()) >= VALUE_LIMIT:
        return "a value has magnitude 2^43 or more"
    return None


def _judge_prompt(
    claim: HopClaim, side: Side, row: OpenedRow, request: GenerationRequest
) -> Verdict:
    at = row.proof.position
    if claim.hop != 0 or claim.layers.start != 0 or side != "in":
        return _nothing("only what goes into the first hop are tokens")
    if request_hash(request) != claim.request:
        return _nothing("the claim is for another request")
    if at >= len(request.prompt) or not 0 <= request.prompt[at] < 1 << 32:
        return _nothing(f"position {at} is not in the prompt")
    if row.hash == token_hash(request.prompt[at]):
        return _nothing("the first hop read the prompt's token")
    message = f"{_named(claim)} signed another token than the prompt's at position {at}"
    return _convicted(fault_of(claim, "other_prompt", message, at))


def _judge_tile(evidence: WrongTile) -> Verdict:
    said, true = evidence.statement, evidence.true
    if not said.signature_is_good():
        return _nothing(f"node {said.node} did not sign the statement as it stands here")
    if not true.check(said.model):
        return _nothing("the tile does not open under the model id")
    if (true.tensor, true.row, true.tile) != (said.tensor, said.row, said.tile):
        return _nothing("the opened tile is another one")
    if true.data == said.data:
        return _nothing("the statement is true")
    message = (
        f"node {said.node} signed a tile {said.tile} of row {said.row} of '{said.tensor}' that is "
        f"not the one of model {said.model}"
    )
    return _convicted(Fault("wrong_tile", message, node=NodeId(said.node)))


def _judge_demand(evidence: Refusal | Silence) -> Verdict:
    claim, demand = evidence.claim, evidence.demand
    unsigned = _unsigned(claim)
    if unsigned is not None:
        return unsigned
    if demand.claim != claim_hash(claim) or not demand.signature_is_good():
        return _nothing("the demand is not signed, or about another claim")
    if demand.position >= claim.positions:
        return _nothing(f"the claim does not cover position {demand.position}")
    if not claim.epoch <= demand.deadline <= claim.epoch + RETENTION_EPOCHS:
        return _nothing(
            f"a node opens its claims for {RETENTION_EPOCHS} epochs; the demand was due in epoch "
            f"{demand.deadline}, the claim is of {claim.epoch}"
        )
    if isinstance(evidence, Refusal):
        said = evidence.statement
        if said.by != claim.node or said.says != "refuse" or not said.holds(demand):
            return _nothing("the node did not sign that it refuses this demand")
        message = (
            f"{_named(claim)} refused to open position {demand.position} of the rows {demand.side} "
            "that it had signed"
        )
        return _convicted(fault_of(claim, "refusal", message, demand.position))
    silent = {s.by for s in evidence.witnesses if s.says == "silent" and s.holds(demand)}
    independent = silent - {claim.node, demand.challenger}
    return _nothing(
        f"{len(independent)} witnesses say that {_named(claim)} did not answer in time; that "
        "nothing was sent has no proof, so it depends on whom one trusts"
    )
