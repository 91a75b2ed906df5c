"""Receipts of answers that several models gave together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from tests.conftest import TinyModels
from tests.routing.test_ensemble import given, other_word, together
from tests.scenarios.network import SAMPLINGS, tiny_network, wrong_weights
from unisono.errors import ReceiptError
from unisono.models.store import ModelStore
from unisono.types import LayerRange, Sampling, SessionId, request_hash
from unisono.verification.evidence import Contradiction, judge
from unisono.verification.fraud.moves import Subject
from unisono.verification.packed import pack
from unisono.verification.receipt import VERSION, Receipt, from_json, to_json
from unisono.verification.replay import verify
from unisono.verification.stakes.committee import difference
from unisono.verification.verdict import Verdict
from unisono.wire.claims import HopClaim
from unisono.wire.ensemble import Ensemble, Member
from unisono.wire.identity import Identity
from unisono.wire.verification_messages import ReplayResult


class Court:
    """One answer of two models, its receipt, and the keys of those who signed it."""

    def __init__(
        self, models: TinyModels, make: dict[int, Any] | None = None, **changes: Any
    ) -> None:
        self.store = models.store
        self.models = (models.llama, models.gemma)
        self.request = together(self.models, **changes)
        self.nodes: list[Identity] = []
        self.gateway, self.receipt = asyncio.run(self._answered(make))

    async def _answered(self, make: dict[int, Any] | None) -> tuple[Identity, Receipt]:
        async with tiny_network(self.models[0], 2, others=[(self.models[1], 2)], make=make) as net:
            self.nodes = [node.identity for node in net.nodes]
            found = await given(net, self.request)
            receipt = Receipt(
                version=VERSION,
                id="0e" * 16,
                request=self.request,
                tokens=found.tokens,
                finish_reason="length",
                hops=tuple(found.of(self.models[0])),
                gateway=net.gateway.node_id,
                created=1_700_000_000,
                elapsed_us=120_000,
                first_token_us=40_000,
                attempts=1,
                ensemble=Ensemble((Member(self.models[1].id, tuple(found.of(self.models[1]))),)),
            )
            return net.gateway, receipt.signed_by(net.gateway)

    def verdict(self, **changes: Any) -> Verdict:
        """Of the receipt with other fields, signed by its gateway."""
        changed = msgspec.structs.replace(self.receipt, **changes).signed_by(self.gateway)
        return verify(changed, self.store)

    def signer(self, claim: HopClaim) -> Identity:
        return next(node for node in self.nodes if node.node_id == claim.node)


@pytest.fixture(scope="module")
def court(tiny_models: TinyModels) -> Court:
    return Court(tiny_models)


def member(court: Court) -> Member:
    assert court.receipt.ensemble is not UNSET
    return court.receipt.ensemble.members[0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_honest_answer_is_valid(tiny_models: TinyModels, sampling: str) -> None:
    court = Court(tiny_models, sampling=SAMPLINGS[sampling])
    seen: list[tuple[int, int]] = []
    receipt = from_json(to_json(court.receipt))
    assert receipt == court.receipt
    found = verify(receipt, court.store, lambda done, total: seen.append((done, total)))
    assert (found.verdict, found.fault) == ("VALID", None)
    assert "2 models chose together" in found.message
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.positions == 2 * (len(court.request.prompt) + len(receipt.tokens) - 1)


@pytest.mark.parametrize("liar", [1, 3])
def test_a_node_that_told_another_distribution_is_named(tiny_models: TinyModels, liar: int) -> None:
    court = Court(tiny_models, {liar: other_word})
    fault = court.verdict().fault
    assert fault is not None
    assert (fault.kind, fault.node) == ("distributions", court.nodes[liar].node_id)


@pytest.mark.parametrize("liar", [0, 2])
def test_a_node_that_computed_with_other_weights_is_named(
    tiny_models: TinyModels, liar: int
) -> None:
    court = Court(tiny_models, {liar: wrong_weights})
    fault = court.verdict().fault
    assert fault is not None
    assert (fault.kind, fault.node) == ("rows_out", court.nodes[liar].node_id)


def test_a_gateway_that_gave_other_tokens_than_the_models_chose_is_named(court: Court) -> None:
    """All nodes sign what they were given; with another seed the mean gives other tokens."""
    sampling = msgspec.structs.replace(court.request.sampling, seed=99)
    receipt = _asked(court, sampling)
    fault = verify(receipt, court.store).fault
    assert fault is not None
    assert (fault.kind, fault.node) == ("joint_choice", court.gateway.node_id)


def _asked(court: Court, sampling: Sampling) -> Receipt:
    """As if all nodes had signed for other sampling settings."""

    def resigned(claim: HopClaim) -> HopClaim:
        request = msgspec.structs.replace(court.request, sampling=sampling, model=claim.model)
        changed = msgspec.structs.replace(claim, request=request_hash(request))
        return changed.signed_by(court.signer(claim))

    other = member(court)
    return msgspec.structs.replace(
        court.receipt,
        request=msgspec.structs.replace(court.request, sampling=sampling),
        hops=tuple(map(resigned, court.receipt.hops)),
        ensemble=Ensemble((Member(other.model, tuple(map(resigned, other.hops))),)),
    ).signed_by(court.gateway)


ALTERED: dict[str, tuple[str, Callable[[Court], dict[str, Any]]]] = {
    "the other model's claims are left out": ("ensemble", lambda c: {"ensemble": UNSET}),
    "a model speaks twice": (
        "ensemble",
        lambda c: {"ensemble": Ensemble((member(c), member(c)))},
    ),
    "the request names no ensemble": (
        "request_altered",
        lambda c: {"request": msgspec.structs.replace(c.request, ensemble=UNSET)},
    ),
    "a claim of the other model is altered": (
        "claim_signature",
        lambda c: {
            "ensemble": Ensemble(
                (
                    Member(
                        c.models[1].id,
                        (
                            msgspec.structs.replace(member(c).hops[0], positions=7),
                            member(c).hops[1],
                        ),
                    ),
                )
            )
        },
    ),
    "the other model has no claims": (
        "claims_inconsistent",
        lambda c: {"ensemble": Ensemble((Member(c.models[1].id, ()),))},
    ),
    "the tokens are others": (
        "tokens_altered",
        lambda c: {"tokens": ((c.receipt.tokens[0] + 1) % 300, *c.receipt.tokens[1:])},
    ),
    "the last hop does not say what it told": (
        "claims_inconsistent",
        lambda c: {
            "hops": (
                c.receipt.hops[0],
                msgspec.structs.replace(c.receipt.hops[1], distributions=UNSET).signed_by(
                    c.signer(c.receipt.hops[1])
                ),
            )
        },
    ),
}


@pytest.mark.parametrize("what", ALTERED)
def test_an_altered_receipt_is_refused(court: Court, what: str) -> None:
    kind, changes = ALTERED[what]
    fault = court.verdict(**changes(court)).fault
    assert fault is not None
    assert fault.kind == kind


def test_a_model_that_is_not_here_leaves_it_open(court: Court, tmp_path: Any) -> None:
    found = verify(court.receipt, ModelStore(tmp_path / "none"))
    assert found.verdict == "INCONCLUSIVE"


def test_the_packed_form_is_for_single_models(court: Court) -> None:
    with pytest.raises(ReceiptError, match="use the JSON form"):
        pack(court.receipt)


def test_a_committee_does_not_hold_given_tokens_against_a_hop(court: Court) -> None:
    claim = court.receipt.hops[-1]
    result = ReplayResult(claim.rows_in, claim.rows_out, "00" * 32, "00" * 32)
    assert difference(result, claim) is None
    other = msgspec.structs.replace(claim, distributions=UNSET)
    assert difference(result, other) is not None
    assert claim.layers == LayerRange(2, 4)


def test_two_answers_that_were_given_convict_nobody(court: Court) -> None:
    """A gateway that opens the same ensemble twice can give a hop what it likes."""
    claim = court.receipt.hops[-1]
    other = msgspec.structs.replace(
        claim, session=SessionId("77" * 16), tokens="44" * 32, signature=b""
    ).signed_by(court.signer(claim))
    assert judge(Contradiction(1, (claim, other))).verdict == "INCONCLUSIVE"
    chosen = [
        msgspec.structs.replace(each, distributions=UNSET).signed_by(court.signer(claim))
        for each in (claim, other)
    ]
    assert judge(Contradiction(1, (chosen[0], chosen[1]))).verdict == "INVALID"


def test_no_dispute_is_played_about_tokens_that_were_given(court: Court) -> None:
    claim, manifest = court.receipt.hops[-1], court.models[0].manifest
    problem = Subject(claim, court.request, court.receipt.tokens, manifest).problem()
    assert problem is not None
    assert "an ensemble chose the tokens" in problem
    first = court.receipt.hops[0]
    assert Subject(first, court.request, (), manifest).problem() is None
