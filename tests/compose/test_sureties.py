"""A staked node signs for the chain before it is audited, or has no stake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from tests.compose.test_staked import Known, Registry
from tests.conftest import TinyModels
from tests.scenarios.network import request_for, tiny_network
from unisono.clock import SystemClock
from unisono.compose.staked import StakedMembers
from unisono.compose.sureties import Sureties
from unisono.errors import PeerGone
from unisono.settlement.briefs import decode_brief
from unisono.settlement.claims import court_domain, settlement_claim
from unisono.settlement.ledger.deployment import Deployed, Deployment
from unisono.settlement.signature import SettlementKey
from unisono.types import PeerAddress
from unisono.verification.fraud.descriptors import descriptors
from unisono.verification.receipt import Receipt
from unisono.wire.audit_messages import SettlementAsked, SettlementSigned
from unisono.wire.frames import decode_frame, encode_frame
from unisono.wire.messages import Refused
from unisono.wire.terms import Terms

OPERATOR, PAYER, STRANGER = (SettlementKey.generate() for _ in range(3))
COURT = SettlementKey.generate().address
DEPLOYMENT = Deployment(7, 0, 0, {"court": Deployed(COURT, "0" * 64)})
Answer = Callable[[SettlementAsked, bytes], bytes]


class Scripted:
    """A transport to one node that answers as it is told; also the stream."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._frame = b""
        self.asked = 0

    async def dial(self, address: PeerAddress) -> Scripted:
        return self

    async def send(self, frame: bytes) -> None:
        message, body = decode_frame(frame)
        assert isinstance(message, SettlementAsked)
        self.asked += 1
        self._frame = self._answer(message, bytes(body))

    async def receive(self) -> bytes:
        if not self._frame:
            raise PeerGone("it hung up")
        return self._frame

    async def close(self) -> None:
        pass


def signing(key: SettlementKey, program: bytes, vocabulary: int) -> Answer:
    """What a node does that signs with this key."""

    def answer(message: SettlementAsked, body: bytes) -> bytes:
        brief = decode_brief(body)
        tokens = brief.subject.tokens or brief.answer
        subject = brief.subject
        claim = settlement_claim(
            subject.claim, subject.request, tokens, program, vocabulary, PAYER.address
        )
        signed = claim.signed_by(key, court_domain(7, COURT))
        return encode_frame(SettlementSigned(), signed.signature)

    return answer


@asynccontextmanager
async def audited(
    models: TinyModels, answer: Answer, stake: int = 30
) -> AsyncIterator[tuple[Sureties, StakedMembers, Receipt, Scripted]]:
    model, clock = models.llama, SystemClock()
    async with tiny_network(model, 1) as network:
        answered = await network.answer(request_for(model))
        receipt = answered.receipt()
        plain = network.nodes[0].worker.record()
        terms = Terms(PAYER.address, 7, COURT, stake, operator=OPERATOR.address)
        known = Known(msgspec.structs.replace(plain, terms=terms))
        members = StakedMembers(known, Registry(**{OPERATOR.address: stake}), clock)
        await members.read()
        transport: Any = Scripted(answer)
        sureties = Sureties(members, transport, clock, DEPLOYMENT, PAYER.address, model, None)
        yield sureties, members, receipt, transport


def of(models: TinyModels, key: SettlementKey) -> Answer:
    manifest = models.llama.manifest
    return signing(key, descriptors(manifest).root, manifest.config.vocabulary_size)


async def test_what_a_staked_node_signed_is_kept_for_the_court(tiny_models: TinyModels) -> None:
    async with audited(tiny_models, of(tiny_models, OPERATOR)) as (sureties, members, receipt, _):
        (claim,) = receipt.hops
        signed = await sureties.secure(receipt, claim)
        assert signed is not None
        domain = court_domain(7, COURT)
        assert signed.signer(domain) == OPERATOR.address
        assert signed.payer == PAYER.address
        kept = sureties.briefs.find(signed.digest(domain))
        assert kept is not None
        assert kept.claim == signed
        assert members.staked(claim.node) is not None


@pytest.mark.parametrize("how", ["refuses", "hangs up", "signs with another key"])
async def test_a_node_that_does_not_sign_has_no_stake(tiny_models: TinyModels, how: str) -> None:
    answers: dict[str, Answer] = {
        "refuses": lambda message, body: encode_frame(Refused("no_chain", "not here")),
        "hangs up": lambda message, body: b"",
        "signs with another key": of(tiny_models, STRANGER),
    }
    async with audited(tiny_models, answers[how]) as (sureties, members, receipt, transport):
        (claim,) = receipt.hops
        assert members.staked(claim.node) is not None
        assert await sureties.secure(receipt, claim) is None
        assert members.staked(claim.node) is None
        assert await sureties.secure(receipt, claim) is None
        assert transport.asked == 1


async def test_a_node_without_a_stake_is_not_asked(tiny_models: TinyModels) -> None:
    answer = of(tiny_models, OPERATOR)
    async with audited(tiny_models, answer, stake=0) as (sureties, _, receipt, transport):
        assert await sureties.secure(receipt, receipt.hops[0]) is None
        assert transport.asked == 0
