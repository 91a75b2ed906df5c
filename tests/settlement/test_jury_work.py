"""What an honest member reveals is what an honest claim says, of every hop of an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import MakeDecoder, request_for, tiny_network, wrong_weights
from unisono.compose.replays import StoreReplayer
from unisono.errors import PeerCheating
from unisono.models.store import StoredModel
from unisono.settlement.briefs import Brief
from unisono.settlement.claims import settlement_claim
from unisono.settlement.committees import result_of
from unisono.settlement.jury_work import check_task, jury_domain, task_of, vote_of, work_of
from unisono.settlement.signature import SettlementKey
from unisono.verification.fraud.descriptors import descriptors
from unisono.verification.fraud.positions import rows_before, subject_of
from unisono.verification.receipt import Receipt
from unisono.wire.rows import encode_rows

KEY, OTHER = (SettlementKey(bytes(31) + bytes((n,))) for n in (1, 2))
DOMAIN = jury_domain(7, OTHER.address)
CASE = b"\5" * 32


async def answered(model: StoredModel, make: dict[int, MakeDecoder] | None = None) -> Receipt:
    """An answer of three hops."""
    async with tiny_network(model, 3, make=make) as network:
        return (await network.answer(request_for(model))).receipt()


def brief_of(receipt: Receipt, hop: int, model: StoredModel) -> Brief:
    """What a gateway has of a hop that it accuses."""
    subject = subject_of(receipt, hop, model)
    rows = rows_before(receipt, hop, model)
    widths, encoded = (b"", []) if rows is None else encode_rows(rows)
    answer = () if subject.tokens else receipt.tokens
    claim = settlement_claim(
        subject.claim,
        subject.request,
        receipt.tokens,
        descriptors(model.manifest).root,
        model.manifest.config.vocabulary_size,
        KEY.address,
    )
    return Brief(subject, answer, widths, b"".join(encoded), claim)


def claimed(brief: Brief) -> bytes:
    assert brief.claim is not None
    return result_of(brief.claim.rows_out, brief.claim.sequence)


async def test_every_hop_of_an_honest_answer_is_voted_for(tiny_models: TinyModels) -> None:
    model = tiny_models.llama
    receipt = await answered(model)
    hidden = model.manifest.config.hidden_size
    for hop in range(3):
        brief = brief_of(receipt, hop, model)
        task, body = task_of(brief, CASE, KEY, DOMAIN)
        work = check_task(task, body, hidden, KEY.address, DOMAIN)
        assert vote_of(work, await StoreReplayer(model).recompute(work)) == claimed(brief)
        assert work.layers == receipt.hops[hop].layers
        kept = work_of(brief, hidden)
        assert (kept.tokens, kept.prompt) == (work.tokens, work.prompt)
        assert len(body) == len(work.tokens) * 4 + len(brief.rows)


@pytest.mark.parametrize("hop", [0, 2])
async def test_a_hop_that_computed_with_other_weights_is_not(
    tiny_models: TinyModels, hop: int
) -> None:
    model = tiny_models.llama
    receipt = await answered(model, {hop: wrong_weights})
    brief = brief_of(receipt, hop, model)
    work = work_of(brief, model.manifest.config.hidden_size)
    assert vote_of(work, await StoreReplayer(model).recompute(work)) != claimed(brief)


async def test_a_hop_that_gave_another_token_is_not(tiny_models: TinyModels) -> None:
    model = tiny_models.llama
    receipt = await answered(model)
    brief = brief_of(receipt, 2, model)
    work = work_of(brief, model.manifest.config.hidden_size)
    found = await StoreReplayer(model).recompute(work)
    assert vote_of(work, found) == claimed(brief)
    other = (*found.tokens[:-1], found.tokens[-1] ^ 1)
    assert vote_of(work, replace(found, tokens=other)) != claimed(brief)


async def test_tasks_of_others_and_changed_ones_are_cheating(tiny_models: TinyModels) -> None:
    model = tiny_models.llama
    receipt, hidden = await answered(model), model.manifest.config.hidden_size
    task, body = task_of(brief_of(receipt, 1, model), CASE, KEY, DOMAIN)
    changes: list[Any] = [
        (task, body, hidden, OTHER.address, DOMAIN),
        (task, body, hidden, KEY.address, jury_domain(8, OTHER.address)),
        (task, body[:-8] + bytes(8), hidden, KEY.address, DOMAIN),
        (task, body[:-1], hidden, KEY.address, DOMAIN),
        (task, body * 3, hidden, KEY.address, DOMAIN),
        (msgspec.structs.replace(task, signature=bytes(65)), body, hidden, KEY.address, DOMAIN),
    ]
    for change in changes:
        with pytest.raises(PeerCheating):
            check_task(*change)
    signed, _ = task_of(brief_of(receipt, 0, model), CASE, KEY, DOMAIN)
    for short in (b"", bytes(4)):
        again = msgspec.structs.replace(
            signed, signature=KEY.sign(DOMAIN.digest(signed.contents(short)))
        )
        with pytest.raises(PeerCheating, match="positions came with"):
            check_task(again, short, hidden, KEY.address, DOMAIN)
