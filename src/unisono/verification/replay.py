"""Replay: recompute an answer alone, in one prefill pass, and compare hashes.

Because every honest node computes the same bytes, the first difference names a hop, a layer
range, a position, and the key that signed it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from msgspec import UNSET

from unisono.errors import CorruptModel
from unisono.models.decoder import Decoder, Draw, Rows, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.models.rows import row_hashes
from unisono.models.store import ModelStore, StoredModel
from unisono.types import Distribution, LayerRange
from unisono.verification.ensemble import check_choices, check_distributions, parts
from unisono.verification.form import check_form
from unisono.verification.receipt import Receipt
from unisono.verification.verdict import Fault, Verdict, fault_of
from unisono.wire.claims import TAG_BYTES, HopClaim, rows_root

_ROWS = 256
"""Rows of one step of the replay."""
_DRAWS = 32
"""Tokens that are drawn again at once."""

Progress = Callable[[int, int], None]
"""Called with (hops replayed, hops in all)."""


def verify(receipt: Receipt, store: ModelStore, progress: Progress | None = None) -> Verdict:
    """Check a receipt's signatures and consistency, then replay it from the weights.

    INCONCLUSIVE: the model is not in the store, or damaged there.
    """
    started = time.perf_counter()
    each = parts(receipt)
    try:
        models = [store.get(part.request.model) for part in each]
    except CorruptModel as error:
        fault = check_form(receipt)
        if fault is not None:
            return Verdict("INVALID", fault, fault.message)
        return Verdict("INCONCLUSIVE", message=f"unknown model: {error}")
    try:
        fault = check_form(receipt, models[0])
        if fault is None or fault.kind == "rows_disagree":
            # of two hops that disagree, the weights may show that the first computed something else
            fault = _replay_all(receipt, models, progress) or fault
    except CorruptModel as error:
        return Verdict("INCONCLUSIVE", message=f"damaged model: {error}")
    seconds = time.perf_counter() - started
    positions = (len(receipt.request.prompt) + len(receipt.tokens) - 1) * len(each)
    if fault is not None:
        return Verdict("INVALID", fault, fault.message, positions, seconds)
    message = "every hop computed what it signed"
    if receipt.quorum is not UNSET:
        message += f"; {receipt.quorum.summary}"
    if receipt.ensemble is not UNSET:
        message += f", and the tokens are what {len(each)} models chose together"
    return Verdict("VALID", None, message, positions, seconds)


def _replay_all(
    receipt: Receipt, models: Sequence[StoredModel], progress: Progress | None
) -> Fault | None:
    """Replay every part of a receipt, and then the choices of an ensemble."""
    each = parts(receipt)
    count, before = sum(len(part.hops) for part in each), 0
    said: list[list[Distribution]] = []
    for part, model in zip(each, models, strict=True):
        told: list[Distribution] = []

        def report(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, count)

        fault = _replay(part, model, report, told)
        if fault is not None:
            return fault
        said.append(told)
        before += len(part.hops)
    return None if receipt.ensemble is UNSET else check_choices(receipt, said)


def _replay(
    receipt: Receipt, model: StoredModel, progress: Progress, told: list[Distribution]
) -> Fault | None:
    """The first fault; what the model of an ensemble says of the tokens is added to `told`."""
    request, answer = receipt.request, receipt.tokens
    if model.layer_count != receipt.hops[-1].layers.stop:
        return fault_of(
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
    confirmed: HopClaim | None = None
    rows: Rows | None = None
    for claim in receipt.hops:
        decoder = make_decoder(model.manifest.config, load_block(model, claim.layers))
        try:
            rows = _forward(decoder, tokens if rows is None else rows)
            outgoing = row_hashes(rows)
            if confirmed is not None and claim.rows_in != confirmed.rows_out:
                return _wrong_input(confirmed, claim)
            if claim.rows_out != rows_root(outgoing) or claim.out_tags != b"".join(
                h[:TAG_BYTES] for h in outgoing
            ):
                return _wrong_output(claim, outgoing)
            confirmed = claim
            if claim is receipt.hops[-1]:
                progress(claim.hop + 1, len(receipt.hops))
                if receipt.request.ensemble is not UNSET:
                    told += _distributions(receipt, decoder, rows)
                    return check_distributions(receipt, told)
                return _check_sampling(receipt, claim, decoder, rows)
        finally:
            decoder.close()
        progress(claim.hop + 1, len(receipt.hops))
    return None


def _forward(decoder: Decoder, source: Sequence[int] | Rows) -> Rows:
    cache = decoder.new_cache(len(source))
    out: list[Rows] = []
    for start in range(0, len(source), _ROWS):
        part = source[start : start + _ROWS]
        rows = part if isinstance(part, np.ndarray) else decoder.embed(part)
        out.append(decoder.forward(rows, [Segment(cache, start, len(part))]))
    return np.concatenate(out)


def _wrong_input(before: HopClaim, after: HopClaim) -> Fault:
    return Fault(
        "rows_disagree",
        f"hop {after.hop} (layers {after.layers}, node {after.node}) signed other rows in than "
        f"node {before.node} signed and a replay confirms: either that node sent other rows than "
        "it signed, or this one signed others than it received",
        layers=LayerRange(before.layers.start, after.layers.stop),
        suspects=(before.node, after.node),
    )


def _wrong_output(claim: HopClaim, expected: list[bytes]) -> Fault:
    tags = [claim.out_tags[i : i + TAG_BYTES] for i in range(0, len(claim.out_tags), TAG_BYTES)]
    position = next(
        (i for i, h in enumerate(expected) if i >= len(tags) or tags[i] != h[:TAG_BYTES]), None
    )
    where = f"position {position}" if position is not None else "a position its tags do not show"
    return fault_of(
        claim,
        "rows_out",
        f"hop {claim.hop} (layers {claim.layers}, node {claim.node}) computed other rows, first "
        f"at {where}",
        position,
    )


def _distributions(receipt: Receipt, decoder: Decoder, rows: Rows) -> list[Distribution]:
    """What a model says of every token of the answer, from its last rows."""
    request, first = receipt.request, len(receipt.request.prompt)
    known = np.array([*request.prompt, *receipt.tokens], dtype=np.int32)
    draws = [
        (at - 1, at, Draw(request.sampling, known[:at], first, weigh=True))
        for at in range(first, len(known))
    ]
    found = [choice.distribution for choice in decoder.choose(rows, draws)]
    return [each for each in found if each is not None]


def _check_sampling(
    receipt: Receipt, claim: HopClaim, decoder: Decoder, rows: Rows
) -> Fault | None:
    request, answer = receipt.request, receipt.tokens
    first = len(request.prompt) - 1
    known = np.array([*request.prompt, *answer], dtype=np.int32)
    for start in range(0, len(answer), _DRAWS):
        stop = min(start + _DRAWS, len(answer))
        draws = [
            (first + i, first + 1 + i, Draw(request.sampling, known[: first + 1 + i], first + 1))
            for i in range(start, stop)
        ]
        for i, choice in zip(range(start, stop), decoder.choose(rows, draws), strict=True):
            if choice.token != answer[i]:
                return fault_of(
                    claim,
                    "sampling",
                    f"hop {claim.hop} (layers {claim.layers}, node {claim.node}) gave token "
                    f"{answer[i]} at position {first + 1 + i}, where its own rows give "
                    f"{choice.token}",
                    first + 1 + i,
                )
    return None
