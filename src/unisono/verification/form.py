"""What can be said of a receipt without computing: signatures, consistency, bounds."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from unisono.models.store import StoredModel
from unisono.models.tokenizer import Tokenizer
from unisono.types import LayerRange, is_complete, request_hash, stop_rule
from unisono.verification.ensemble import check_ensemble, parts
from unisono.verification.quorum import check_quorum
from unisono.verification.receipt import Receipt
from unisono.verification.verdict import Fault, fault_of
from unisono.wire.claims import EPOCH_DRIFT, TAG_BYTES, rows_root, token_hash, tokens_root

_TOKEN_LIMIT = 1 << 32
_NUMBER_LIMIT = 1 << 62


def check_form(receipt: Receipt, model: StoredModel | None = None) -> Fault | None:
    """Everything that can be checked without computing: the first fault, or None.

    Signatures of hops come first, so that an altered request is reported as such and not as
    the broken signature that it also causes.
    """
    each = parts(receipt)
    for part in each:
        problem = _out_of_bounds(part)
        if problem is not None:
            return Fault("malformed", f"malformed receipt: {problem}; no node signs such a thing")
    return (
        _first(_check_signed(part) for part in each)
        or _first(_check_chain(part) or _check_tokens(part, model) for part in each)
        or check_ensemble(receipt)
        or check_quorum(receipt)
        or _check_gateway(receipt)
        or _first(_check_prompt(part) or _check_neighbours(part) for part in each)
    )


def _first(faults: Iterable[Fault | None]) -> Fault | None:
    return next((fault for fault in faults if fault is not None), None)


def _check_signed(receipt: Receipt) -> Fault | None:
    for claim in receipt.hops:
        if not claim.signature_is_good():
            return fault_of(
                claim,
                "claim_signature",
                f"broken signature: hop {claim.hop} does not carry the signature of node "
                f"{claim.node[:16]}…; the claim was altered after it was signed",
            )
    asked = request_hash(receipt.request)
    for claim in receipt.hops:
        if claim.request != asked or claim.model != receipt.request.model:
            return fault_of(
                claim,
                "request_altered",
                "altered request: the prompt, the model or the settings in this receipt are not "
                f"those that hop {claim.hop} (node {claim.node[:16]}…) signed",
            )
    return None


def _check_gateway(receipt: Receipt) -> Fault | None:
    if receipt.signature_is_good():
        return None
    return Fault(
        "gateway_signature",
        f"broken signature: the gateway {receipt.gateway[:16]}… did not sign these contents; some "
        "field was altered",
    )


def _check_prompt(receipt: Receipt) -> Fault | None:
    """What went into the first hop are the tokens: nothing needs to be computed."""
    first = receipt.hops[0]
    tokens = [*receipt.request.prompt, *receipt.tokens[:-1]]
    if first.rows_in == rows_root([token_hash(t) for t in tokens]):
        return None
    return fault_of(
        first,
        "rows_in",
        f"hop 0 (layers {first.layers}, node {first.node}) signed other rows in than the request's "
        "tokens: it answered another prompt",
    )


def _check_neighbours(receipt: Receipt) -> Fault | None:
    """Rows that one hop signed as sent and the next as received are the same, or one of them lies.

    Nothing here shows which: the sender may have sent other rows than it signed, or the receiver
    signed others than it got.
    """
    for before, after in pairwise(receipt.hops):
        if before.rows_out != after.rows_in:
            return Fault(
                "rows_disagree",
                f"hops {before.hop} (layers {before.layers}, node {before.node}) and {after.hop} "
                f"(layers {after.layers}, node {after.node}) signed different rows between them: "
                "one of the two lied",
                layers=LayerRange(before.layers.start, after.layers.stop),
                suspects=(before.node, after.node),
            )
    return None


def _out_of_bounds(receipt: Receipt) -> str | None:
    """The first number that has no meaning, which would have no encoding or no replay."""
    request = receipt.request
    ids = {"a token of the prompt": request.prompt, "a token": receipt.tokens}
    for name, tokens in (ids | {"a stop token": request.stop_tokens}).items():
        if not all(0 <= t < _TOKEN_LIMIT for t in tokens):
            return f"{name} is out of range"
    numbers = {
        "max_tokens": request.max_tokens,
        "created": receipt.created,
        "elapsed_us": receipt.elapsed_us,
        "first_token_us": receipt.first_token_us,
        "attempts": receipt.attempts,
    }
    for claim in receipt.hops:
        facts = (claim.hop, claim.layers.start, claim.layers.stop, claim.positions, claim.epoch)
        numbers |= dict.fromkeys([f"a number in the claim of hop {claim.hop}"], max(facts))
        if min(facts) < 0:
            return f"a number in the claim of hop {claim.hop} is negative"
    for name, number in numbers.items():
        if not 0 <= number < _NUMBER_LIMIT:
            return f"{name} is {number}"
    return request.sampling.problem(_TOKEN_LIMIT)


def _check_chain(receipt: Receipt) -> Fault | None:
    positions = len(receipt.request.prompt) + len(receipt.tokens) - 1
    layer = 0
    if not receipt.hops or not receipt.tokens or not receipt.request.prompt:
        return Fault("claims_inconsistent", "the receipt holds no hops, no tokens or no prompt")
    for index, claim in enumerate(receipt.hops):
        problem = ""
        if claim.hop != index or claim.layers.start != layer or not claim.layers.count > 0:
            problem = f"layers {claim.layers} at hop {index} do not continue at layer {layer}"
        elif claim.positions != positions:
            problem = f"it covers {claim.positions} positions; the answer has {positions}"
        elif claim.gateway != receipt.gateway:
            problem = "it was signed for another gateway"
        elif claim.session != receipt.hops[0].session:
            problem = "it is of another session than the first hop's"
        elif len(claim.out_tags) != TAG_BYTES * positions:
            problem = f"{len(claim.out_tags)} bytes of tags for {positions} positions"
        elif abs(claim.epoch - receipt.hops[0].epoch) > 2 * EPOCH_DRIFT:
            problem = f"epoch {claim.epoch} where the first hop's is {receipt.hops[0].epoch}"
        if problem:
            return fault_of(claim, "claims_inconsistent", f"hop {index}'s claim: {problem}")
        layer = claim.layers.stop
    return None


def _check_tokens(receipt: Receipt, model: StoredModel | None) -> Fault | None:
    last = receipt.hops[-1]
    if last.tokens != tokens_root(receipt.tokens):
        return fault_of(
            last,
            "tokens_altered",
            f"altered answer: the tokens are not those that the last hop (node "
            f"{last.node[:16]}…) signed",
        )
    request, tokens = receipt.request, receipt.tokens
    early = next((i for i in range(1, len(tokens)) if stop_rule(request, i, tokens[i - 1])), None)
    by_rule = "stop" if tokens[-1] in request.stop_tokens else "length"
    problem = ""
    if early is not None:
        problem = f"the answer goes on after it ended at token {early}"
    elif is_complete(request, tokens) and receipt.finish_reason != by_rule:
        # a stop string may end the answer with its very last token
        if not (receipt.finish_reason == "stop" and request.stop):
            problem = f"it says '{receipt.finish_reason}' where the tokens say '{by_rule}'"
    elif not is_complete(request, tokens) and receipt.finish_reason == "length":
        problem = f"it says 'length' after {len(tokens)} of {request.max_tokens} tokens"
    elif not is_complete(request, tokens) and receipt.finish_reason == "stop" and model is not None:
        text = Tokenizer.from_files(model.tokenizer_files()).decode(list(tokens))
        if not any(s in text for s in request.stop):
            problem = "it says 'stop', but no stop token or stop string is in the answer"
    elif receipt.finish_reason not in ("stop", "length", "cancelled"):
        problem = f"'{receipt.finish_reason}' is no finish reason"
    return Fault("finish_reason", f"finish reason: {problem}") if problem else None
