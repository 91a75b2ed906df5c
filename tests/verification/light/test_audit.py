"""Honest nodes pass, whatever is drawn; what is asked is bounded, random, and asked once."""

from __future__ import annotations

import random
from functools import lru_cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny_weights import FAMILIES
from tests.verification.light.answered import (
    EVERYTHING,
    KEY,
    MODEL,
    Answered,
    answered,
)
from unisono.errors import ConfigurationError, PeerCheating, PeerRefused, ReceiptError
from unisono.models.decoder import Segment, make_decoder
from unisono.types import LayerRange, ModelId, Sampling, canonical
from unisono.verification.light.audit import LightAudit
from unisono.verification.light.draw import (
    Budget,
    cell_bytes,
    draw,
    head_bytes,
    sample_bytes,
)
from unisono.verification.light.messages import CellName, Opening, Summons, decode
from unisono.verification.light.responder import Responder
from unisono.wire.identity import Identity

PROMPT = tuple((7 * i + 3) % 50 for i in range(11))
make = lru_cache(maxsize=None)(answered)


def long(family: str) -> Answered:
    """Positions far beyond every window, and past the original context of scaled rotations."""
    return make(family, PROMPT * 4, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_sample_and_token_of_an_honest_answer_is_valid(family: str) -> None:
    honest = make(family, PROMPT, 4)
    verdict = honest.audit(honest.trace())
    assert verdict.verdict == "VALID", verdict
    assert verdict.positions == 14


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_is_what_decoders_compute_token_by_token(family: str) -> None:
    honest = make(family, PROMPT, 4)
    decoder = make_decoder(honest.config, honest.weights, threads=1, kv_bytes=64 << 20)
    tokens = [*PROMPT, *honest.tokens[:-1]]
    cache = decoder.new_cache(len(tokens))
    rows = [
        decoder.forward(decoder.embed([t]), [Segment(cache, i, 1)]) for i, t in enumerate(tokens)
    ]
    decoder.close()
    assert (np.concatenate(rows) == honest.trace().out).all()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, deadline=None)
@given(
    st.sampled_from([(0, 1), (1, 2), (0, 2)]),
    st.builds(Budget, st.integers(0, 3), st.integers(0, 6), st.integers(0, 9), st.integers(0, 2)),
    st.integers(0, 1 << 30),
)
def test_no_draw_ever_accuses_an_honest_hop(
    family: str, layers: tuple[int, int], budget: Budget, seed: int
) -> None:
    honest = long(family)
    verdict = honest.audit(honest.trace(LayerRange(*layers)), budget, seed=seed)
    assert verdict.verdict == "VALID", verdict


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.integers(1, 1000),
    st.lists(st.integers(0, 49), min_size=1, max_size=20),
    st.builds(
        Sampling,
        temperature=st.sampled_from([0, 1 << 15, 1 << 17]),
        top_k=st.sampled_from([0, 5]),
        repetition_penalty=st.sampled_from([1 << 16, 90000]),
        seed=st.integers(0, 99),
    ),
)
def test_any_weights_prompt_and_sampling_are_valid(
    family: str, seed: int, prompt: list[int], sampling: Sampling
) -> None:
    honest = answered(family, prompt, 3, seed, sampling)
    budget = Budget(columns=2, cells=2, samples=3, heads=3)
    verdict = honest.audit(honest.trace(), budget, seed=seed)
    assert verdict.verdict == "VALID", verdict


def test_openings_stay_below_their_estimates() -> None:
    for family in FAMILIES:
        honest = long(family)
        trace, config = honest.trace(), honest.config
        for p in (0, 1, 30, 48):
            name = CellName(1, p)
            cell, sample = canonical(trace.open_cell(name)), canonical(trace.open_sample(name))
            assert len(cell) <= cell_bytes(config, name)
            assert len(sample) <= sample_bytes(config)
            assert len(canonical(trace.open_head(p))) <= head_bytes(config)


def test_large_audits_come_in_several_challenges(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = make("gemma", PROMPT, 4)
    claim = honest.receipt(honest.trace()).hops[0]
    budget = Budget(columns=4, cells=3, samples=5, heads=2)

    def drawn() -> list[object]:
        return list(draw(honest.config, claim, "00" * 32, range(10, 14), budget, random.Random(1)))

    (whole,) = drawn()
    monkeypatch.setattr("unisono.verification.light.draw._ANSWER_BYTES", 50_000)
    parts = drawn()
    assert len(parts) > 3
    for field in ("cells", "samples", "heads"):
        joined = [item for part in parts for item in getattr(part, field)]
        assert tuple(joined) == getattr(whole, field)
    verdict = honest.audit(honest.trace(), budget)
    assert verdict.verdict == "VALID"


def test_a_column_covers_every_layer_and_samples_are_seen_by_its_cells() -> None:
    honest = long("gemma")
    claim = honest.receipt(honest.trace()).hops[0]
    source = random.SystemRandom()
    (one,) = draw(honest.config, claim, "00" * 32, range(43, 49), Budget(samples=2), source)
    assert [c.layer for c in one.cells] == [0, 1]
    p = one.cells[0].position
    assert len(one.samples) == sum(min(2, seen) for seen in (min(p, 2), p))
    assert all(p - 2 <= c.position < p for c in one.samples if c.layer == 0)
    assert len(one.heads) == 1
    assert one.heads[0] in range(43, 49)


def test_cells_are_drawn_anew_for_every_audit() -> None:
    honest = long("llama")
    receipt = honest.receipt(honest.trace())
    responder = Responder(receipt.hops[0], honest.trace(), KEY)
    drawn = set()
    for _ in range(8):
        audit = LightAudit(honest.secrets, receipt, 0)
        (challenge,) = audit.challenges(responder.commit())
        drawn.add(challenge.hash())
    assert len(drawn) > 4


def test_the_trace_is_fixed_before_cells_are_drawn() -> None:
    honest = make("llama", PROMPT, 4)
    receipt = honest.receipt(honest.trace())
    responder = Responder(receipt.hops[0], honest.trace(), KEY)
    audit = LightAudit(honest.secrets, receipt, 0)
    commitment = responder.commit()
    forged = msgspec.structs.replace(commitment, root="00" * 32)
    with pytest.raises(PeerCheating, match="sign"):
        audit.challenges(forged)
    with pytest.raises(PeerCheating, match="another claim"):
        audit.challenges(msgspec.structs.replace(commitment, claim="00" * 32))
    (challenge,) = audit.challenges(commitment)
    with pytest.raises(PeerCheating, match="second"):
        audit.challenges(commitment)
    with pytest.raises(ValueError, match="not one that this audit made"):
        audit.judge(msgspec.structs.replace(challenge, heads=()), b"")


def test_a_node_opens_nothing_but_cells_of_its_own_trace() -> None:
    honest = make("llama", PROMPT, 4)
    trace = honest.trace(LayerRange(0, 1))
    receipt = honest.receipt(trace)
    responder = Responder(receipt.hops[0], trace, KEY)
    audit = LightAudit(honest.secrets, receipt, 0)
    (challenge,) = audit.challenges(responder.commit())
    for change in (
        {"claim": "00" * 32},
        {"trace": "00" * 32},
        {"cells": (CellName(1, 0),)},
        {"samples": (CellName(0, 14),)},
        {"heads": (3,)},
    ):
        with pytest.raises(PeerCheating, match="challenge"):
            responder.respond(msgspec.structs.replace(challenge, **change))


@pytest.mark.parametrize("layers", [LayerRange(0, 2), LayerRange(1, 2)])
def test_a_summoned_node_regenerates_what_it_signed(layers: LayerRange) -> None:
    honest = make("gemma", PROMPT, 4)
    trace = honest.trace(layers)
    receipt = honest.receipt(trace)
    audit = LightAudit(honest.secrets, receipt, 0)
    summons = decode(canonical(audit.summons()), Summons)
    rows = honest.trace(LayerRange(0, 1)).out if layers.start else None
    held = KEY, MODEL, honest.config, honest.block(layers.start, layers.stop)
    responder = Responder.summoned(summons, *held, rows)
    assert responder.commit().root == trace.root
    (challenge,) = audit.challenges(responder.commit())
    assert audit.judge(challenge, responder.respond(challenge)).verdict == "VALID"
    stranger = Identity(b"else" * 8)
    forged = msgspec.structs.replace(receipt.hops[0], node=stranger.node_id)
    with pytest.raises(PeerCheating, match="did not sign"):
        Responder.summoned(Summons(forged, summons.tokens), stranger, *held[1:], rows)
    with pytest.raises(PeerCheating, match="did not sign"):
        Responder.summoned(summons, stranger, *held[1:], rows)
    with pytest.raises(PeerRefused, match="not here"):
        Responder.summoned(summons, *held[:3], honest.block(0, 1), rows)
    if layers.start:
        with pytest.raises(PeerRefused, match="not kept"):
            Responder.summoned(summons, *held)
        with pytest.raises(PeerCheating, match="other tokens, or rows"):
            Responder.summoned(summons, *held, honest.trace(LayerRange(0, 2)).out)
    else:
        with pytest.raises(PeerCheating, match="other tokens, or rows"):
            Responder.summoned(Summons(summons.claim, summons.tokens[::-1]), *held)
        with pytest.raises(PeerCheating, match="vocabulary"):
            Responder.summoned(Summons(summons.claim, (50, *summons.tokens[1:])), *held)


def test_answers_to_another_challenge_or_by_another_key_are_invalid() -> None:
    honest = make("qwen2", PROMPT, 4)
    trace = honest.trace()
    receipt = honest.receipt(trace)
    responder = Responder(receipt.hops[0], trace, KEY)
    audit = LightAudit(honest.secrets, receipt, 0)
    (challenge,) = audit.challenges(responder.commit())
    good = responder.respond(challenge)
    assert audit.judge(challenge, good).verdict == "VALID"
    shorter = responder.respond(msgspec.structs.replace(challenge, cells=challenge.cells[:1]))
    other = Responder(receipt.hops[0], trace, Identity(b"else" * 8)).respond(challenge)
    fewer = decode(good, Opening)
    fewer = msgspec.structs.replace(fewer, cells=fewer.cells[:1])
    fewer = msgspec.structs.replace(fewer, signature=KEY.sign(fewer.signed_bytes()))
    for answer in (shorter, other, canonical(fewer), good[:-1], good + b"\x00", b""):
        verdict = audit.judge(challenge, answer)
        assert verdict.verdict == "INVALID"
        assert verdict.fault is not None
        assert (verdict.fault.kind, verdict.fault.node) == ("malformed", KEY.node_id)


def test_receipts_that_do_not_fit_the_secrets_are_refused() -> None:
    honest = make("llama", PROMPT, 4)
    receipt = honest.receipt(honest.trace())
    claim = receipt.hops[0]

    def with_claim(**changes: object) -> object:
        changed = msgspec.structs.replace(claim, **changes)
        return msgspec.structs.replace(receipt, hops=(changed,))

    with pytest.raises(ConfigurationError, match="secrets are of model"):
        LightAudit(honest.secrets, with_claim(model=ModelId("00" * 32)), 0)  # type: ignore
    with pytest.raises(ReceiptError, match="layers"):
        LightAudit(honest.secrets, with_claim(layers=LayerRange(0, 3)), 0)  # type: ignore
    with pytest.raises(ReceiptError, match="tokens"):
        LightAudit(honest.secrets, with_claim(positions=9), 0)  # type: ignore
    outside = msgspec.structs.replace(receipt, tokens=(*receipt.tokens[:-1], 50))
    with pytest.raises(ReceiptError, match="tokens"):
        LightAudit(honest.secrets, outside, 0)
    biased = msgspec.structs.replace(honest.request, sampling=Sampling(logit_bias=((50, 1),)))
    with pytest.raises(ReceiptError, match="logit_bias"):
        LightAudit(honest.secrets, msgspec.structs.replace(receipt, request=biased), 0)
    assert claim.model == MODEL
    assert EVERYTHING.columns > claim.positions
