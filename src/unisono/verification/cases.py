"""One form of file for everything that may show who lied: JSON, whose tag `evidence` says what.

tag          what                                                   judged by
(claims)     what claims and rows show by themselves                `evidence`
dispute      a bisection game, to its end or not                    `fraud.transcript`
misconduct   what a member of a committee did                       `stakes.faults`
committee    an audit by a committee                                `stakes.transcript`
opening      an answer of a light audit                             `light.judging`

Two kinds need something of the reader. Lateness in a dispute rests on the arbiter's clock, and a
committee's finding on who sat in it: they convict for those who trust the arbiter or the auditor.
An opening convicts for those who have secrets of the model.
"""

from __future__ import annotations

import binascii
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from unisono.errors import ModelError, ReceiptError
from unisono.types import NodeId
from unisono.verification import evidence
from unisono.verification.evidence import VERSION, Evidence, EvidenceBase
from unisono.verification.form import check_form
from unisono.verification.fraud import transcript as disputes
from unisono.verification.light.opened import Opened
from unisono.verification.receipt import Receipt
from unisono.verification.stakes.faults import CommitteeFault
from unisono.verification.stakes.lottery import Roster, binding_is_good
from unisono.verification.stakes.transcript import Transcript
from unisono.verification.verdict import Fault, Verdict
from unisono.wire.verification_messages import LotteryBinding

MAX_BYTES = 8 << 20
"""Of a file."""

_MISCONDUCT = {
    "double_commit": "committed to two results of one task",
    "wrong_opening": "opened another result than it had committed to",
    "copied_commit": "used another member's commit",
    "stale_epoch": "used a commit of an earlier epoch",
    "uncomputed": "gave right roots with wrong rows",
    "dissent": "gave another result than most of its committee",
    "planted_check": "gave another result than the auditor had sealed before",
    "two_faced": "closed one task twice",
    "no_commit": "did not commit in time",
    "no_reveal": "did not reveal in time",
    "late_reveal": "revealed after the others",
}


class Misconduct(EvidenceBase, frozen=True):
    """The fault of one member of a committee, with the messages that show it."""

    fault: CommitteeFault


class Committee(EvidenceBase, frozen=True):
    """A committee's audit of one hop of a receipt, with what its lots were drawn from."""

    receipt: Receipt
    hop: int
    audit: Transcript
    binding: LotteryBinding
    roster: Roster
    beacon: Annotated[bytes, Meta(min_length=32, max_length=32)]
    """The value that the lot was drawn with."""


class Opening(EvidenceBase, frozen=True):
    """What a node opened in a light audit."""

    opened: Opened


Case = Evidence | disputes.Transcript | Misconduct | Committee | Opening


def to_json(case: Case) -> bytes:
    """The form of a file: JSON, bytes as base64."""
    return msgspec.json.encode(case)


def from_json(data: bytes) -> Case:
    """Read a file strictly.

    Raises:
        ReceiptError: it is too large, or nothing that this program knows.
    """
    if len(data) > MAX_BYTES:
        raise ReceiptError(f"the evidence is larger than {MAX_BYTES >> 20} MiB")
    try:
        return msgspec.json.decode(data, type=Case)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        binascii.Error,
        RecursionError,
        ModelError,
    ) as error:
        raise ReceiptError(f"not evidence of version {VERSION}: {error}") from error


def judge(case: Case, trusted: Collection[NodeId] = (), secrets: Path | None = None) -> Verdict:
    """Who is convicted. Any contents that can be read are judged.

    Args:
        trusted: arbiters whose clock, and auditors whose committees, the reader believes.
        secrets: the reader's own file (`light.secrets`), for openings.

    Raises:
        ConfigurationError: the secrets cannot be used, or are of another model.
    """
    try:
        if isinstance(case, disputes.Transcript):
            return disputes.judge(case, trusted)
        if isinstance(case, Misconduct):
            return _judge_misconduct(case.fault)
        if isinstance(case, Committee):
            return _judge_committee(case, trusted)
        if isinstance(case, Opening):
            return _judge_opening(case.opened, secrets)
        return evidence.judge(case)
    except (OverflowError, ReceiptError) as error:
        return Verdict("INCONCLUSIVE", message=f"it proves nothing: {error}")


def _judge_misconduct(fault: CommitteeFault) -> Verdict:
    # the text of a file is whoever's wrote it
    message = f"node {fault.node} {_MISCONDUCT[fault.kind]}"
    return msgspec.structs.replace(fault, message=message).verdict()


class _Known:
    """A beacon of one value."""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def value(self, epoch: int) -> bytes | None:
        """See `Beacon.value`."""
        del epoch
        return self._value


class _Register:
    """The register that a file brings."""

    def __init__(self, binding: LotteryBinding, roster: Roster) -> None:
        self._binding, self._roster = binding, roster

    def binding(self, node: NodeId, epoch: int) -> LotteryBinding | None:
        """See `Register.binding`."""
        held = self._binding.node == node and self._binding.since <= epoch
        return self._binding if held and binding_is_good(self._binding) else None

    def roster(self, epoch: int, auditor: NodeId) -> Roster | None:
        """See `Register.roster`."""
        del auditor
        return self._roster if self._roster.epoch == epoch else None


def _judge_committee(case: Committee, trusted: Collection[NodeId]) -> Verdict:
    fault = check_form(case.receipt)
    if fault is not None and fault.kind != "rows_disagree":
        return Verdict("INCONCLUSIVE", message=f"it proves nothing: {fault.message}")
    register, auditor = _Register(case.binding, case.roster), case.audit.task.ticket.auditor
    found = case.audit.check(case.receipt, case.hop, register, _Known(case.beacon))
    if found.verdict != "INVALID" or auditor in trusted:
        return found
    message = (
        f"a committee of auditor {auditor} says: {found.message}. That convicts for those who "
        "trust this auditor about who sat in it; a replay or a dispute convicts for all"
    )
    return Verdict("INCONCLUSIVE", found.fault, message)


def _judge_opening(opened: Opened, secrets: Path | None) -> Verdict:
    problem = opened.problem()
    if problem is not None:
        return Verdict("INCONCLUSIVE", message=f"it proves nothing: {problem}")
    if secrets is not None:
        # late: only those who have secrets need torch
        from unisono.verification.light.judging import judge_opened
        from unisono.verification.light.secrets import Secrets

        return judge_opened(opened, Secrets.load(secrets, opened.claim.model))
    claim = opened.claim
    cells = [*opened.challenge.cells, *opened.challenge.samples]
    where = f"layer {cells[0].layer}, position {cells[0].position}" if cells else "its logits"
    message = (
        f"node {claim.node} opened {where}; whether that is what the model computes, those see who "
        "have secrets of it (`unisono audit --prepare`, then --secrets FILE), and a dispute "
        "shows it to all"
    )
    fault = Fault("operator", message, claim.hop, claim.node, claim.layers)
    return Verdict("INCONCLUSIVE", msgspec.structs.replace(fault, suspects=(claim.node,)), message)
