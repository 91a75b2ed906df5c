"""What can be said of a quorum's votes without computing.

The receipt itself is the vote of one chain of the majority; `Receipt.quorum` holds the others.
A vote that agrees is as checkable as the receipt: the same request, the same tokens, rows that
are equal wherever blocks of both chains end (the last layer in any case), all of it signed by
other nodes. One that dissents is named, with what it signed if it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from unisono.types import is_complete, request_hash
from unisono.verification.verdict import Fault, fault_of
from unisono.wire.claims import EPOCH_DRIFT, TAG_BYTES, HopClaim, tokens_root
from unisono.wire.votes import Vote, disagreement, incoherence

if TYPE_CHECKING:
    from unisono.verification.receipt import Receipt

_NUMBER_LIMIT = 1 << 62


def check_quorum(receipt: Receipt) -> Fault | None:
    """The first fault of the votes, or None. The receipt's own claims must have been checked.

    That the gateway names all chains that it asked is only its own word; its signature covers it.
    """
    quorum = receipt.quorum
    if quorum is UNSET:
        return None
    seen = {claim.node for claim in receipt.hops}
    for number, vote in enumerate(quorum.votes, 2):
        common = seen & {*vote.nodes}
        if common or len({*vote.nodes}) < len(vote.nodes):
            node = min(common) if common else vote.nodes[0]
            message = f"chain {number} of the quorum shares node {node} with another chain"
            return Fault("quorum", message, node=node)
        seen |= {*vote.nodes}
        fault = _check_vote(receipt, vote, number)
        if fault is not None:
            return fault
    if 2 * quorum.agreed <= quorum.asked:
        return Fault("quorum", f"{quorum.summary}: that is no majority")
    return None


def tokens_of(receipt: Receipt, vote: Vote) -> tuple[int, ...]:
    """What a chain answered, of which the receipt's tokens are known."""
    if vote.said is None:
        return receipt.tokens[: vote.count]
    return (*receipt.tokens[: vote.count - 1], vote.said)


def receipt_of(receipt: Receipt, vote: Vote) -> Receipt:
    """A dissenter's vote in the form of a receipt, which a replay can judge: signed by its hops,
    not by the gateway."""
    tokens = tokens_of(receipt, vote)
    done = is_complete(receipt.request, tokens)
    stopped = bool(tokens) and tokens[-1] in receipt.request.stop_tokens
    return msgspec.structs.replace(
        receipt,
        tokens=tokens,
        finish_reason=("stop" if stopped else "length") if done else "cancelled",
        hops=vote.hops,
        quorum=UNSET,
        signature=b"",
    )


def _check_vote(receipt: Receipt, vote: Vote, number: int) -> Fault | None:
    whole = len(receipt.tokens)
    problem = ""
    if vote.count > whole or (vote.said is not None and not vote.count):
        problem = f"it counts {vote.count} tokens; the answer has {whole}"
    elif vote.said is not None and vote.said == receipt.tokens[vote.count - 1]:
        problem = f"token {vote.said} is said to differ and is the answer's"
    elif vote.tokens != tokens_root(tokens_of(receipt, vote)):
        problem = "its tokens are not those that its hash names"
    elif vote.said is not None and vote.outcome != "dissented":
        problem = f"it is listed as {vote.outcome} and said another token"
    elif vote.hops and vote.outcome in ("late", "lost"):
        problem = f"it is listed as {vote.outcome} and signed"
    elif vote.outcome == "agreed" and (not vote.hops or vote.count != whole):
        problem = "it is listed as agreeing and did not sign the whole answer"
    elif vote.outcome == "agreed" and vote.reason:
        problem = "it agrees and has a reason not to"
    if problem:
        message = f"chain {number} of the quorum (node {vote.nodes[0]}): {problem}"
        return Fault("quorum", message, node=vote.nodes[0])
    fault = _check_claims(receipt, vote, number)
    if fault is not None or not vote.hops or vote.count != whole or vote.said is not None:
        return fault
    layer = disagreement(receipt.hops, vote.hops)
    broken = incoherence(vote.hops, [*receipt.request.prompt, *receipt.tokens[:-1]])
    if (layer is None and broken is None) == (vote.outcome == "agreed"):
        return None
    found = "the same" if layer is None else f"other rows after layer {layer}"
    if broken is not None:
        found = "other rows in than came before"
    problem = f"it is listed as {vote.outcome} and signed {found}"
    return _fault(broken or vote.hops[-1], number, problem)


def _check_claims(receipt: Receipt, vote: Vote, number: int) -> Fault | None:
    """Whether a vote's claims are those of one chain for the tokens that it gave."""
    if not vote.hops:
        return None
    if tuple(claim.node for claim in vote.hops) != vote.nodes:
        return _fault(vote.hops[0], number, "its claims are of other nodes than it lists")
    if not vote.count:
        return _fault(vote.hops[0], number, "it signed and gave no token")
    asked, layer = request_hash(receipt.request), 0
    for index, claim in enumerate(vote.hops):
        facts = (claim.hop, claim.layers.start, claim.layers.stop, claim.positions, claim.epoch)
        problem = ""
        if not all(0 <= fact < _NUMBER_LIMIT for fact in facts):
            problem = "it holds a number out of range"
        elif not claim.signature_is_good():
            problem = "broken signature; the claim was altered after it was signed"
        elif claim.request != asked or claim.model != receipt.request.model:
            problem = "it was signed for another request"
        elif claim.gateway != receipt.gateway:
            problem = "it was signed for another gateway"
        elif claim.hop != index or claim.layers.start != layer or claim.layers.count <= 0:
            problem = f"layers {claim.layers} do not continue at layer {layer}"
        elif claim.session != vote.hops[0].session:
            problem = "it is of another session than the first hop's"
        elif claim.positions != len(receipt.request.prompt) + vote.count - 1:
            problem = f"it covers {claim.positions} positions"
        elif len(claim.out_tags) != TAG_BYTES * claim.positions:
            problem = f"{len(claim.out_tags)} bytes of tags for {claim.positions} positions"
        elif abs(claim.epoch - vote.hops[0].epoch) > 2 * EPOCH_DRIFT:
            problem = f"epoch {claim.epoch} where the first hop's is {vote.hops[0].epoch}"
        if problem:
            return _fault(claim, number, problem)
        layer = claim.layers.stop
    last = vote.hops[-1]
    if layer != receipt.hops[-1].layers.stop:
        return _fault(last, number, f"its chain ends at layer {layer}")
    if last.tokens != vote.tokens:
        return _fault(last, number, "it signed other tokens than the chain is said to have given")
    return None


def _fault(claim: HopClaim, number: int, problem: str) -> Fault:
    message = (
        f"chain {number} of the quorum, claim of hop {claim.hop} (node {claim.node[:16]}…): "
        f"{problem}"
    )
    return fault_of(claim, "quorum", message)
