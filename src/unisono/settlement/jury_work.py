"""What a case on a chain is about, off the chain: tasks that its opener signs, work, and votes."""

from __future__ import annotations

import msgspec
import numpy as np

from unisono.errors import BadSignature, PeerCheating
from unisono.settlement.briefs import Brief
from unisono.settlement.claims import sequence_tree
from unisono.settlement.committees import result_of
from unisono.settlement.eip712 import Domain, checksummed
from unisono.settlement.signature import SettlementKey, recover
from unisono.types import EvmAddress
from unisono.verification.fraud.tree import EMPTY
from unisono.verification.stakes.work import Recomputed, ReplayWork
from unisono.wire.jury_messages import JuryTask
from unisono.wire.rows import WIDE

NAME, VERSION = "Unisono jury", "1"


def jury_domain(chain_id: int, committee: EvmAddress) -> Domain:
    """What an opener's tasks are bound to."""
    return Domain(NAME, VERSION, chain_id, committee)


def task_of(
    brief: Brief, case: bytes, key: SettlementKey, domain: Domain
) -> tuple[JuryTask, bytes]:
    """The task of a case about a brief's claim, signed by the account that opened it; its body.

    Raises:
        ValueError: there are more rows than a message holds.
    """
    task, body = _task(brief, case)
    signature = key.sign(domain.digest(task.contents(body)))
    return msgspec.structs.replace(task, signature=signature), body


def _task(brief: Brief, case: bytes) -> tuple[JuryTask, bytes]:
    claim, request = brief.subject.claim, brief.subject.request
    task = JuryTask(
        case=case.hex(),
        model=claim.model,
        layers=claim.layers,
        prompt=len(request.prompt),
        positions=claim.positions,
        sampling=request.sampling if claim.tokens else None,
        widths=brief.widths,
    )
    inputs = (*request.prompt, *(brief.subject.tokens or brief.answer)[:-1])
    tokens = np.array(inputs, dtype="<u4").tobytes() if task.token_bytes else b""
    return task, tokens + brief.rows


def check_task(
    task: JuryTask, body: bytes | memoryview, hidden: int, opener: EvmAddress, domain: Domain
) -> ReplayWork:
    """The work of a task, if the opener of its case signed it. Hashes the body.

    Raises:
        PeerCheating: it is not what it says, or somebody else signed it.
    """
    if len(body) > task.token_bytes + WIDE * hidden * len(task.widths):
        raise PeerCheating(f"{len(body)} bytes of body for {task.positions} positions")
    try:
        signer = checksummed(recover(domain.digest(task.contents(body)), task.signature))
    except BadSignature as error:
        raise PeerCheating(f"a task of a case that nobody signed: {error}") from error
    if signer != opener:
        raise PeerCheating(f"a task of a case that {opener} opened, signed by {signer}")
    return ReplayWork.seated(task, body, hidden)


def work_of(brief: Brief, hidden: int) -> ReplayWork:
    """The hop of a brief's claim, to be computed again.

    Raises:
        PeerCheating: what was kept is not what came in.
    """
    return ReplayWork.seated(*_task(brief, bytes(32)), hidden)


def vote_of(work: ReplayWork, found: Recomputed) -> bytes:
    """What a member reveals that computed this."""
    sequence = EMPTY
    if work.sampling is not None:
        sequence = sequence_tree((*work.tokens[: work.prompt], *found.tokens)).root
    return result_of(bytes.fromhex(found.rows_out), sequence)
