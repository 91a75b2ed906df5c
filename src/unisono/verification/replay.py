"""Replay: recompute an answer alone, in one prefill pass, and compare hashes.

Because every honest node computes the same bytes, the first difference names a hop, a layer
range, a position, and the key that signed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import msgspec
import torch

from unisono.errors import CorruptModel
from unisono.models.decoder import Decoder, Segment
from unisono.models.loading import load_block
from unisono.models.store import ModelStore, StoredModel
from unisono.models.tokenizer import Tokenizer
from unisono.numerics.sampling import choose
from unisono.types import LayerRange, NodeId, request_hash, stop_rule
from unisono.verification.receipt import Receipt
from unisono.wire.claims import TAG_BYTES, HopClaim, row_hash, rows_root, token_hash, tokens_root
from unisono.wire.rows import encode_rows

_ROWS = 256
"""Rows of one step of the replay."""
_TOKEN_LIMIT = 1 << 32
_NUMBER_LIMIT = 1 << 62

FaultKind = Literal[
    "malformed",
    "claim_signature",
    "gateway_signature",
    "request_altered",
    "claims_inconsistent",
    "tokens_altered",
    "finish_reason",
    "rows_in",
    "rows_out",
    "sampling",
]


class Fault(msgspec.Struct, frozen=True):
    """What is wrong, and who answers for it where one hop does."""

    kind: FaultKind
    message: str
    hop: int | None = None
    node: NodeId | None = None
    layers: LayerRange | None = None
    position: int | None = None


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of a check."""

    verdict: Literal["VALID", "INVALID", "INCONCLUSIVE"]
    fault: Fault | None = None
    message: str = ""
    positions: int = 0
    seconds: float = 0.0


Progress = Callable[[int, int], None]
"""Called with (hops replayed, hops in all)."""


def verify(receipt: Receipt, store: ModelStore, progress: Progress | None = None) -> Verdict:
    """Check a receipt's signatures and consistency, then replay it from the weights.

    INCONCLUSIVE: the model is not in the store, or damaged there.
    """
    started = time.perf_counter()
    try:
        model = store.get(receipt.request.model)
    except CorruptModel as error:
        fault = check_form(receipt)
        if fault is not None:
            return Verdict("INVALID", fault, fault.message)
        return Verdict("INCONCLUSIVE", message=f"unknown model: {error}")
    try:
        fault = check_form(receipt, model) or _replay(receipt, model, progress)
    except CorruptModel as error:
        return Verdict("INCONCLUSIVE", message=f"damaged model: {error}")
    seconds = time.perf_counter() - started
    positions = len(receipt.request.prompt) + len(receipt.tokens) - 1
    if fault is not None:
        return Verdict("INVALID", fault, fault.message, positions, seconds)
    return Verdict("VALID", None, "every hop computed what it signed", positions, seconds)


def check_form(receipt: Receipt, model: StoredModel | None = None) -> Fault | None:
    """Everything that can be checked without computing: the first fault, or None.

    Signatures of hops come first, so that an altered request is reported as such and not as
    the broken signature that it also causes.
    """
    problem = _out_of_bounds(receipt)
    if problem is not None:
        return Fault("malformed", f"malformed receipt: {problem}; no node signs such a thing")
    for claim in receipt.hops:
        if not claim.signature_is_good():
            return _fault(
                claim,
                "claim_signature",
                f"broken signature: hop {claim.hop} does not carry the signature of node "
                f"{claim.node[:16]}…; the claim was altered after it was signed",
            )
    asked = request_hash(receipt.request)
    for claim in receipt.hops:
        if claim.request != asked or claim.model != receipt.request.model:
            return _fault(
                claim,
                "request_altered",
                "altered request: the prompt, the model or the settings in this receipt are not "
                f"those that hop {claim.hop} (node {claim.node[:16]}…) signed",
            )
    return (
        _check_chain(receipt)
        or _check_tokens(receipt, model)
        or (
            None
            if receipt.signature_is_good()
            else Fault(
                "gateway_signature",
                f"broken signature: the gateway {receipt.gateway[:16]}… did not sign these "
                "contents; some field was altered",
            )
        )
    )


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
        facts = (claim.hop, claim.layers.start, claim.layers.stop, claim.positions)
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
        if problem:
            return _fault(claim, "claims_inconsistent", f"hop {index}'s claim: {problem}")
        layer = claim.layers.stop
    return None


def _check_tokens(receipt: Receipt, model: StoredModel | None) -> Fault | None:
    last = receipt.hops[-1]
    if last.tokens != tokens_root(receipt.tokens):
        return _fault(
            last,
            "tokens_altered",
            f"altered answer: the tokens are not those that the last hop (node "
            f"{last.node[:16]}…) signed",
        )
    request, tokens = receipt.request, receipt.tokens
    early = next((i for i in range(1, len(tokens)) if stop_rule(request, tokens[:i])), None)
    by_rule = "stop" if tokens[-1] in request.stop_tokens else "length"
    problem = ""
    if early is not None:
        problem = f"the answer goes on after it ended at token {early}"
    elif stop_rule(request, tokens) and receipt.finish_reason != by_rule:
        # a stop string may end the answer with its very last token
        if not (receipt.finish_reason == "stop" and request.stop):
            problem = f"it says '{receipt.finish_reason}' where the tokens say '{by_rule}'"
    elif not stop_rule(request, tokens) and receipt.finish_reason == "length":
        problem = f"it says 'length' after {len(tokens)} of {request.max_tokens} tokens"
    elif not stop_rule(request, tokens) and receipt.finish_reason == "stop" and model is not None:
        text = Tokenizer.from_files(model.tokenizer_files()).decode(list(tokens))
        if not any(s in text for s in request.stop):
            problem = "it says 'stop', but no stop token or stop string is in the answer"
    elif receipt.finish_reason not in ("stop", "length", "cancelled"):
        problem = f"'{receipt.finish_reason}' is no finish reason"
    return Fault("finish_reason", f"finish reason: {problem}") if problem else None


def _fault(claim: HopClaim, kind: FaultKind, message: str, position: int | None = None) -> Fault:
    return Fault(kind, message, claim.hop, claim.node, claim.layers, position)


def _replay(receipt: Receipt, model: StoredModel, progress: Progress | None) -> Fault | None:
    request, answer = receipt.request, receipt.tokens
    if model.layer_count != receipt.hops[-1].layers.stop:
        return _fault(
            receipt.hops[-1],
            "claims_inconsistent",
            f"the chain ends at layer {receipt.hops[-1].layers.stop} of {model.layer_count}",
        )
    tokens = [*request.prompt, *answer[:-1]]
    vocabulary = model.manifest.config.vocabulary_size
    if not all(0 <= t < vocabulary for t in (*tokens, answer[-1])):
        return Fault("tokens_altered", f"a token id is outside the vocabulary of {vocabulary}")
    problem = request.sampling.problem(vocabulary)
    if problem is not None:
        return Fault("malformed", f"malformed receipt: {problem}")
    incoming = [token_hash(t) for t in tokens]
    rows: torch.Tensor | None = None
    with torch.inference_mode():
        for claim in receipt.hops:
            decoder = Decoder(model.manifest.config, load_block(model, claim.layers))
            rows = _forward(decoder, tokens if rows is None else rows)
            _, encoded = encode_rows(cast(Any, rows).numpy())
            outgoing = [row_hash(row) for row in encoded]
            if claim.rows_in != rows_root(incoming):
                return _wrong_input(receipt, claim)
            if claim.rows_out != rows_root(outgoing) or claim.out_tags != b"".join(
                h[:TAG_BYTES] for h in outgoing
            ):
                return _wrong_output(claim, outgoing)
            incoming = outgoing
            if claim is receipt.hops[-1]:
                return _check_sampling(receipt, claim, decoder, rows)
            if progress is not None:
                progress(claim.hop + 1, len(receipt.hops))
    return None


def _forward(decoder: Decoder, source: Sequence[int] | torch.Tensor) -> torch.Tensor:
    cache = decoder.new_cache(len(source))
    out: list[torch.Tensor] = []
    for start in range(0, len(source), _ROWS):
        part = source[start : start + _ROWS]
        rows = part if isinstance(part, torch.Tensor) else decoder.embed(part)
        out.append(decoder.forward(rows, [Segment(cache, start, len(part))]))
    return torch.cat(out)


def _wrong_input(receipt: Receipt, claim: HopClaim) -> Fault:
    if claim.hop == 0:
        source = "the request's tokens: it answered another prompt"
    else:
        before = receipt.hops[claim.hop - 1]
        source = f"the rows that node {before.node[:16]}… signed and that a replay confirms"
    return _fault(
        claim,
        "rows_in",
        f"hop {claim.hop} (layers {claim.layers}, node {claim.node}) signed other rows in than "
        f"{source}",
    )


def _wrong_output(claim: HopClaim, expected: list[bytes]) -> Fault:
    tags = [claim.out_tags[i : i + TAG_BYTES] for i in range(0, len(claim.out_tags), TAG_BYTES)]
    position = next(
        (i for i, h in enumerate(expected) if i >= len(tags) or tags[i] != h[:TAG_BYTES]), None
    )
    where = f"position {position}" if position is not None else "a position its tags do not show"
    return _fault(
        claim,
        "rows_out",
        f"hop {claim.hop} (layers {claim.layers}, node {claim.node}) computed other rows, first "
        f"at {where}",
        position,
    )


def _check_sampling(
    receipt: Receipt, claim: HopClaim, decoder: Decoder, rows: torch.Tensor
) -> Fault | None:
    request, answer = receipt.request, receipt.tokens
    first = len(request.prompt) - 1
    for start in range(0, len(answer), 32):
        stop = min(start + 32, len(answer))
        logits = decoder.logits(rows[first + start : first + stop])
        for i in range(start, stop):
            position = first + 1 + i
            token = choose(
                logits[i - start], request.sampling, request.prompt, answer[:i], position
            )
            if token != answer[i]:
                return _fault(
                    claim,
                    "sampling",
                    f"hop {claim.hop} (layers {claim.layers}, node {claim.node}) gave token "
                    f"{answer[i]} at position {position}, where its own rows give {token}",
                    position,
                )
    return None
