"""Messages of a committee replay: the task, the sealed results, and their opening.

    auditor → member    ReplayTask      recompute these rows; the body holds the inputs
    member → auditor    TaskTaken       or `Refused`: then the next in the lottery's order is asked
    member → auditor    ResultCommit    a digest of what came out, signed
    auditor → member    CommitsClosed   all digests that count; nothing can be added now
    member → auditor    ResultReveal    what the digest hides
    auditor → member    Settled         what came of it

Beside it, since a hop that does not begin the model needs rows to be computed from:

    auditor → node      RowsTask        compute these layers before the audited hop
    node → auditor      RowsGiven       the rows

A task never shows what the audited node claimed: whoever has not computed has nothing to say.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from unisono.types import LayerRange, Sampling, canonical, digest
from unisono.wire.bounds import (
    MAX_ROWS,
    Code,
    Hash,
    MessageBase,
    Model,
    Natural,
    Node,
    Positions,
    check,
    check_layers,
    check_sampling,
)
from unisono.wire.identity import SIGNATURE_BYTES, Identity, verify_signature

PROOF_BYTES = 96
"""A lottery proof: a compressed point of BLS12-381's second group."""
LOTTERY_KEY_BYTES = 48
SALT_BYTES = 32
MAX_COMMITTEE = 64
MILLION = 1_000_000
MAX_WAIT_MS = 3_600_000

Signature = Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)]
Wait = Annotated[int, Meta(ge=1, le=MAX_WAIT_MS)]


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little")


class LotteryBinding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A node's statement that it draws lots with this key, and no other, from an epoch on."""

    node: Node
    key: Annotated[bytes, Meta(min_length=LOTTERY_KEY_BYTES, max_length=LOTTERY_KEY_BYTES)]
    possession: Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
    """The key's own signature over the node's id."""
    since: Natural
    """First epoch whose lots it draws. It must have been published before that epoch began."""
    signature: Signature = b""

    def signed_bytes(self) -> bytes:
        """What the node's signature covers: everything else."""
        return digest("lottery-binding/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> LotteryBinding:
        """The same statement with the node's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the node signed it; possession of the key is for the lottery to check."""
        return verify_signature(self.node, self.signed_bytes(), self.signature)


class Ticket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lot: whether a claim is audited, drawn by the auditor's key from the epoch's beacon."""

    epoch: Natural
    """The claim's."""
    claim: Hash
    """`claim_hash` of the audited claim."""
    auditor: Node
    roster: Hash
    """`roster_hash` of those whom the committee is drawn from."""
    rate: Annotated[int, Meta(ge=1, le=MILLION)]
    """Audited claims per million; the ticket wins if its lot is below this share."""
    proof: Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]

    def audit(self) -> str:
        """64 hex digits that name the audit of this claim by this auditor."""
        parts = (_number(self.epoch), bytes.fromhex(self.claim), bytes.fromhex(self.auditor))
        return digest("audit/1", *parts).hex()


class Work(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a commit, a closing list and a reveal are about. Two tasks of one audit are two works:
    an auditor that sets members different tasks shows it in what they sign."""

    audit: Hash
    epoch: Natural
    task: Hash
    """`ReplayTask.hash`."""


class ReplayResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a replay gives: roots as the claim has them, and rows that no claim shows."""

    rows_in: Hash
    rows_out: Hash
    tokens: Annotated[str, Meta(pattern=r"^(?:[0-9a-f]{64})?\Z")]
    """Root of the tokens that are drawn after the rows; empty unless the block ends the model."""
    sampled: Hash
    """Digest of the whole rows at the positions that the beacon drew."""

    def roots(self) -> tuple[str, str, str]:
        """The part that a claim shows too."""
        return self.rows_in, self.rows_out, self.tokens

    def sealed(self, salt: bytes, node: str, work: Work) -> str:
        """The digest that commits one node to this result of one task: 64 hex digits."""
        return digest(
            "replay-commit/1", canonical(self), salt, bytes.fromhex(node), canonical(work)
        ).hex()


class ReplayInputs(Protocol):
    """What tasks say of the inputs in their body, however they came about."""

    @property
    def layers(self) -> LayerRange: ...

    @property
    def prompt(self) -> int: ...

    @property
    def positions(self) -> int: ...

    @property
    def sampling(self) -> Sampling | None: ...

    @property
    def widths(self) -> bytes: ...


def check_inputs(task: ReplayInputs) -> None:
    """Raises:
    ValueError: the fields of a task do not fit together.
    """
    check_layers(task.layers, empty=False)
    check(task.prompt <= task.positions, f"prompt {task.prompt} of {task.positions}")
    rows = 0 if task.layers.start == 0 else task.positions
    check(len(task.widths) == rows, f"{len(task.widths)} widths of {rows} rows")
    if task.sampling is not None:
        check_sampling(task.sampling)


def token_bytes(task: ReplayInputs) -> int:
    """Bytes of a task's body that are tokens."""
    needed = task.layers.start == 0 or task.sampling is not None
    return 4 * task.positions if needed else 0


class ReplayTask(MessageBase, frozen=True):
    """Auditor to member: compute this block over these inputs, and commit to the outcome.

    The body is little-endian u32 tokens (`positions` of them) if the block begins the model or
    draws tokens, then encoded rows (`wire.rows`) if it does not begin the model.
    """

    ticket: Ticket
    sealed: Hash
    """Hides whether the auditor knows the outcome; every task has one."""
    model: Model
    layers: LayerRange
    prompt: Positions
    positions: Positions
    """How many rows; token `positions` is drawn after the last."""
    sampling: Sampling | None
    """How the last hop draws tokens; None for blocks that do not end the model."""
    widths: Annotated[bytes, Meta(max_length=MAX_ROWS)]
    """Of the rows in the body; empty if the block begins the model."""
    seats: Annotated[int, Meta(ge=1, le=MAX_COMMITTEE)]
    """Of the committee: a verdict takes more than half of them, whoever sits or not."""
    commit_ms: Wait
    reveal_ms: Wait

    def __post_init__(self) -> None:
        check_inputs(self)

    @property
    def audit(self) -> str:
        """The audit that it belongs to."""
        return self.ticket.audit()

    def work(self, body: bytes | memoryview) -> Work:
        """This task over these inputs."""
        size = self.token_bytes
        tokens, rows = (hashlib.sha256(part).digest() for part in (body[:size], body[size:]))
        return self.work_over(tokens, rows)

    def work_over(self, tokens: bytes, rows: bytes) -> Work:
        """The same, of the SHA-256 of the tokens in the body and of the rest: whoever checks a
        committee need not see what was asked and answered."""
        named = digest("replay-task/2", canonical(self), tokens, rows)
        return Work(self.audit, self.ticket.epoch, named.hex())

    @property
    def token_bytes(self) -> int:
        """Bytes of the body that are tokens."""
        return token_bytes(self)


class TaskTaken(MessageBase, frozen=True):
    """Member to auditor: I compute it; a commit follows in time."""

    audit: Hash


class ResultCommit(MessageBase, frozen=True):
    """Member to auditor: my result is sealed in this digest."""

    work: Work
    node: Node
    digest: Hash
    signature: Signature = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("result-commit/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> ResultCommit:
        """The same message with the member's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the member signed it."""
        return verify_signature(self.node, self.signed_bytes(), self.signature)


class CommitsClosed(MessageBase, frozen=True):
    """Auditor to members: these digests count, by node id; now open yours."""

    work: Work
    auditor: Node
    sealed: Hash
    """The task's."""
    commits: Annotated[tuple[tuple[Node, Hash], ...], Meta(max_length=MAX_COMMITTEE)]
    signature: Signature = b""

    def __post_init__(self) -> None:
        nodes = [node for node, _ in self.commits]
        check(nodes == sorted(set(nodes)), "commits not ascending by node")

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("commits-closed/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> CommitsClosed:
        """The same message with the auditor's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the auditor signed it."""
        return verify_signature(self.auditor, self.signed_bytes(), self.signature)


class ResultReveal(MessageBase, frozen=True):
    """Member to auditor: this is what my digest hides."""

    work: Work
    node: Node
    result: ReplayResult
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    signature: Signature = b""

    def signed_bytes(self) -> bytes:
        """What the signature covers: everything else."""
        return digest("result-reveal/1", canonical(msgspec.structs.replace(self, signature=b"")))

    def signed_by(self, identity: Identity) -> ResultReveal:
        """The same message with the member's signature."""
        return msgspec.structs.replace(self, signature=identity.sign(self.signed_bytes()))

    def signature_is_good(self) -> bool:
        """Whether the member signed it."""
        return verify_signature(self.node, self.signed_bytes(), self.signature)

    def opens(self, commit: ResultCommit) -> bool:
        """Whether this is what the commit hides. Signatures are for the caller to check."""
        same = (commit.work, commit.node) == (self.work, self.node)
        return same and commit.digest == self.sealed()

    def sealed(self) -> str:
        """The digest that this opens."""
        return self.result.sealed(self.salt, self.node, self.work)


class Settled(MessageBase, frozen=True):
    """Auditor to member: the audit is over."""

    audit: Hash
    decided: bool
    """Whether a majority of the seats agreed."""
    fault: Code | None
    """What you are found at fault for, if anything."""


class RowsTask(MessageBase, frozen=True):
    """Auditor to a node: what comes out of this block? For an audit of a hop behind it.

    The body is that of a `ReplayTask`: tokens if the block begins the model, else rows.
    """

    ticket: Ticket
    """A winning one, of the hop that is audited."""
    model: Model
    layers: LayerRange
    positions: Positions
    widths: Annotated[bytes, Meta(max_length=MAX_ROWS)]

    def __post_init__(self) -> None:
        check_layers(self.layers, empty=False)
        rows = 0 if self.layers.start == 0 else self.positions
        check(len(self.widths) == rows, f"{len(self.widths)} widths of {rows} rows")


class RowsGiven(MessageBase, frozen=True):
    """Node to auditor: these rows, in the body. The auditor holds them against a signed root."""

    widths: Annotated[bytes, Meta(max_length=MAX_ROWS)]


VerificationMessage = (
    ReplayTask
    | TaskTaken
    | ResultCommit
    | CommitsClosed
    | ResultReveal
    | Settled
    | RowsTask
    | RowsGiven
)
