"""What the two parties of a dispute start from: subject, material and holdings, from a receipt."""

from __future__ import annotations

import numpy as np

from unisono.errors import PeerCheating, PeerRefused, ReceiptError
from unisono.models.decoder import Rows, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.models.store import StoredModel
from unisono.models.weights import BlockWeights
from unisono.verification.fraud.holdings import Holdings, WeightTrees
from unisono.verification.fraud.moves import Subject
from unisono.verification.fraud.program import HopProgram
from unisono.verification.fraud.trace import Material
from unisono.verification.receipt import Receipt
from unisono.wire.claims import rows_root, token_hash

_ROWS = 256
"""Rows that a block computes at once."""


def subject_of(receipt: Receipt, hop: int, model: StoredModel) -> Subject:
    """What a dispute about a hop of a receipt is about.

    Raises:
        ReceiptError: there is no such hop, or its claim cannot be played about.
    """
    if not 0 <= hop < len(receipt.hops):
        raise ReceiptError(
            f"the receipt has {len(receipt.hops)} hops: choose one from 0 to "
            f"{len(receipt.hops) - 1}"
        )
    claim = receipt.hops[hop]
    last = claim.layers.stop == model.layer_count
    subject = Subject(claim, receipt.request, receipt.tokens if last else (), model.manifest)
    problem = subject.problem()
    if problem is not None:
        raise ReceiptError(f"no game can be played about hop {hop}: {problem}")
    return subject


def program_of(subject: Subject) -> HopProgram:
    """The programs of a subject's cells."""
    claim, request = subject.claim, subject.request
    return HopProgram(
        subject.manifest, claim.layers, len(request.prompt), claim.positions, request.sampling
    )


def holdings_of(
    subject: Subject, weights: BlockWeights, answer: tuple[int, ...], rows: Rows | None
) -> Holdings:
    """What a party can show that computes the hop with these weights; takes seconds.

    Args:
        answer: its tokens, which the subject has only of a hop that ends the model; a hop in the
            middle does without.
        rows: what came in, int64 [positions, hidden], unless the hop begins the model.

    Raises:
        PeerRefused: what came in is not known.
        PeerCheating: a token is none of the model's, or there are too few.
    """
    hop = program_of(subject)
    tokens = (*subject.request.prompt, *(subject.tokens or answer))
    if hop.first:
        rows = None
        known = [token_hash(t) for t in tokens[: hop.positions]]
        if rows_root(known) != subject.claim.rows_in:
            raise PeerCheating("these tokens are not those that came in")
        if not all(0 <= t < hop.config.vocabulary_size for t in tokens):
            raise PeerCheating("a token outside the vocabulary")
    elif rows is None:
        raise PeerRefused("the rows that came in were not kept", "gone")
    return Holdings(Material(hop, weights, tokens, rows), WeightTrees(weights))


def rows_before(receipt: Receipt, hop: int, model: StoredModel) -> Rows | None:
    """The rows that honest hops send to this one, int64 [positions, hidden]; None for the first.

    One block of weights is in memory at a time.
    """
    rows: Rows | None = None
    for claim in receipt.hops[:hop]:
        decoder = make_decoder(model.manifest.config, load_block(model, claim.layers))
        try:
            if rows is None:
                rows = decoder.embed([*receipt.request.prompt, *receipt.tokens[:-1]])
            cache, out = decoder.new_cache(len(rows)), list[Rows]()
            for start in range(0, len(rows), _ROWS):
                part = rows[start : start + _ROWS]
                out.append(decoder.forward(part, [Segment(cache, start, len(part))]))
            rows = np.concatenate(out)
        finally:
            decoder.close()
    return rows
