"""Answers that are paid for as they come: real engines, links and vouchers in one process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import PROMPT, TinyNetwork, TinyNode, request_for
from tests.settlement.payments.counter import Counter
from unisono.errors import InsufficientFunds, NetworkError, OfferMissing
from unisono.execution.worker import Worker
from unisono.models.store import StoredModel
from unisono.routing.swarm import Swarm
from unisono.settlement.payments.account import Account, Tariff
from unisono.settlement.payments.books import Books
from unisono.settlement.payments.purse import Purse
from unisono.settlement.payments.till import Till
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress, LayerRange, NodeId, SessionId, request_hash
from unisono.wire.messages import Close, Open, Opened, Refused
from unisono.wire.payment_messages import Agreed, Pay
from unisono.wire.records import NodeRecord

IN, OUT = 2_000_000, 6_000_000
"""Two units per token read and six per token written, through all layers."""
WINDOW = 4
MODEL_LAYERS = 4


@pytest.fixture
def model(tiny_models: TinyModels) -> StoredModel:
    return tiny_models.llama


class PaidWorker(Worker):
    """A node's worker whose record has terms."""

    till: Till

    def record(self) -> NodeRecord:
        plain = super().record()
        price_in, price_out = self.till.prices
        record = msgspec.structs.replace(
            plain, price_in=price_in, price_out=price_out, terms=self.till.terms
        )
        return record.signed_by(self._identity)


class Market:
    """A tiny network in which nodes are paid."""

    def __init__(self, model: StoredModel) -> None:
        self.network = TinyNetwork(model)
        self.counter = Counter()
        self.payer = SettlementKey.generate()
        self.counter.coins[self.payer.address] = 10_000_000
        self.purse = Purse(
            self.payer,
            self.counter.at(self.payer.address),
            Books(None),
            self.network.clock,
            deposit=100_000,
        )
        network = self.network
        network.swarm = Swarm(
            network.transport,
            network.gateway.node_id,
            network.members,
            {model.id: model.layer_count},
            network.clock,
            purse=self.purse,
        )
        self.tills: list[Till] = []
        self.payees: list[SettlementKey] = []

    async def add(self, start: int, stop: int, **options: Any) -> TinyNode:
        key = SettlementKey.generate()
        desk = self.counter.at(key.address)
        till = Till(
            key.address,
            desk,
            Books(None),
            self.network.clock,
            self.network.model.layer_count,
            window=WINDOW,
        )
        till.ask(IN, OUT)
        self.tills.append(till)
        self.payees.append(key)

        class Kind(PaidWorker):
            def __init__(self, *arguments: Any, **more: Any) -> None:
                super().__init__(*arguments, till=till, **more)
                self.till = till

        return await self.network.add(LayerRange(start, stop), worker=Kind, **options)

    def accounts(self, index: int) -> tuple[Account, Account]:
        """One channel's account as the payer and as the payee have it."""
        payee = self.payees[index].address
        known = self.tills[index]._payers[self.network.gateway.node_id]
        return self.purse._payees[payee].account, known.account

    async def settled(self, index: int) -> tuple[Account, Account]:
        """The same once both sides know that no session runs."""
        for _ in range(500):
            ours, theirs = self.accounts(index)
            if not ours.stays and not theirs.stays:
                return ours, theirs
            await asyncio.sleep(0.01)
        raise AssertionError("a session did not end")


@asynccontextmanager
async def market(model: StoredModel, *blocks: tuple[int, int]) -> AsyncIterator[Market]:
    made = Market(model)
    await made.network.transport.bind()
    try:
        for start, stop in blocks:
            await made.add(start, stop)
        yield made
    finally:
        await made.network.close()


def price(model: StoredModel, layers: int, prompt: int, tokens: int) -> int:
    return Tariff(IN, OUT, layers, model.layer_count).amount(prompt, tokens)


async def test_every_hop_is_paid_for_exactly_the_tokens_it_signed_for(
    model: StoredModel,
) -> None:
    half = model.layer_count // 2
    async with market(model, (0, half), (half, model.layer_count)) as made:
        before = made.counter.total
        free = TinyNetwork(model)
        await free.transport.bind()
        await free.add(LayerRange(0, model.layer_count))
        request = request_for(model, max_tokens=30)
        expected = (await free.answer(request)).tokens
        await free.close()
        answered = await made.network.answer(request)
        assert answered.tokens == expected
        for index, layers in enumerate((half, model.layer_count - half)):
            ours, theirs = await made.settled(index)
            assert ours == theirs
            assert ours.charged == price(model, layers, len(request.prompt), 30)
            assert ours.promised >= ours.charged
            # what is promised beyond is at most one window
            assert ours.credit <= price(model, layers, 0, 2 * WINDOW)
            await made.tills[index].redeem()
            assert made.counter.coins[made.payees[index].address] == ours.promised
        assert made.counter.total == before


async def test_many_answers_share_one_channel_and_leftover_credit_is_used(
    model: StoredModel,
) -> None:
    async with market(model, (0, model.layer_count)) as made:
        requests = [request_for(model, max_tokens=5 + i) for i in range(6)]
        await asyncio.gather(*(made.network.answer(r) for r in requests))
        for request in requests:
            await made.network.answer(request)
        ours, theirs = await made.settled(0)
        assert ours == theirs
        due = [price(model, model.layer_count, len(r.prompt), r.max_tokens) for r in requests]
        assert ours.charged == 2 * sum(due)
        assert ours.credit <= 6 * price(model, model.layer_count, 0, 2 * WINDOW)


async def test_a_gateway_that_goes_away_loses_one_window_and_the_node_nothing(
    model: StoredModel,
) -> None:
    async with market(model, (0, model.layer_count)) as made:
        request = request_for(model, max_tokens=200)
        stopped = asyncio.Event()

        def gone(count: int) -> None:
            if count == 9:
                made.network.hub.kill(made.network.gateway.node_id)
                stopped.set()

        task = asyncio.create_task(made.network.answer(request, on_token=gone))
        await stopped.wait()
        known = made.tills[0]._payers[made.network.gateway.node_id]
        for _ in range(500):
            if not known.account.stays:
                break
            await asyncio.sleep(0.01)
        task.cancel()
        account = known.account
        paid = price(model, model.layer_count, len(request.prompt), 9)
        assert account.charged >= paid
        most = price(model, model.layer_count, len(request.prompt), 9 + 3 * WINDOW)
        assert account.charged <= most
        await made.tills[0].redeem()
        assert made.counter.coins[made.payees[0].address] == account.promised


async def test_a_node_that_is_not_paid_stops_within_its_window(model: StoredModel) -> None:
    async with market(model, (0, model.layer_count)) as made:
        request = request_for(model, max_tokens=100)
        first: list[int] = []
        purse = made.purse
        honest: Callable[..., bytes] = purse.promise

        def stingy(payee: Any, session: Any, positions: int) -> bytes:
            if first:
                raise_later(positions)
                return b""
            first.append(positions)
            return honest(payee, session, positions)

        refused: list[int] = []
        raise_later = refused.append
        purse.promise = stingy  # type: ignore[method-assign]
        tokens: list[int] = []
        answer = await made.network.swarm.open(request)

        async def read() -> None:
            async for token in answer:
                tokens.append(token.token)

        reading = asyncio.create_task(read())
        await asyncio.sleep(0.5)
        assert len(request.prompt) + len(tokens) <= first[0] + 1
        assert refused, "the node asked for more"
        reading.cancel()
        await answer.cancel()


async def test_an_empty_purse_says_what_is_missing(model: StoredModel) -> None:
    async with market(model, (0, model.layer_count)) as made:
        made.counter.coins[made.payer.address] = 99_999
        with pytest.raises(InsufficientFunds, match=r"0\.099999.*0\.10"):
            await made.network.answer(request_for(model))


async def test_a_gateway_without_a_purse_does_not_ask_nodes_that_are_paid(
    model: StoredModel,
) -> None:
    async with market(model, (0, model.layer_count)) as made:
        network = made.network
        plain = Swarm(
            network.transport,
            network.gateway.node_id,
            network.members,
            {model.id: model.layer_count},
            network.clock,
        )
        with pytest.raises(OfferMissing, match="cannot pay"):
            await plain.open(request_for(model))


async def test_a_price_that_went_up_is_honoured_for_those_who_saw_the_old_one(
    model: StoredModel,
) -> None:
    async with market(model, (0, model.layer_count)) as made:
        made.tills[0].ask(IN + 1, OUT + 1)
        request = request_for(model)
        await made.network.answer(request)  # the record that the gateway knows has the old price
        ours, theirs = await made.settled(0)
        assert ours == theirs
        due = price(model, model.layer_count, len(request.prompt), request.max_tokens)
        assert ours.charged == due


async def test_a_gateway_that_forgot_its_promises_is_shown_them(model: StoredModel) -> None:
    async with market(model, (0, model.layer_count)) as made:
        request = request_for(model)
        await made.network.answer(request)
        ours, theirs = await made.settled(0)
        promised = theirs.promised
        known = made.purse._payees[made.payees[0].address]
        known.account = Account()
        known.voucher = b""
        answered = await made.network.answer(request)
        assert len(answered.tokens) == request.max_tokens
        ours, theirs = await made.settled(0)
        assert ours.promised == theirs.promised > promised


async def test_nobody_spends_the_credit_of_a_payer_that_is_not_theirs(model: StoredModel) -> None:
    async with market(model, (0, model.layer_count)) as made:
        await made.network.answer(request_for(model, max_tokens=5))
        ours, _ = await made.settled(0)
        ours_promised, till = ours.promised, made.tills[0]
        known = till._payers[made.network.gateway.node_id]
        account, voucher = known.account, known.voucher
        account.promised += 10_000  # credit that somebody could want
        thief = await made.network.connect()
        line = await thief.link(made.network.nodes[0])
        for stolen in (b"", bytes(148), voucher[:-1] + bytes([voucher[-1] ^ 1])):
            opened = _open(made, thief.node_id)
            await line.send(opened, _tokens())
            assert isinstance(await line.message(), Opened)
            await line.send(Pay(opened.session, 24, stolen))
            answer = await line.message()
            assert isinstance(answer, Refused), answer
            assert answer.code in ("unpaid", "voucher_malformed", "voucher_reordered")
            await line.send(Close(opened.session))
        assert known.owner == made.network.gateway.node_id
        account.promised = ours_promised
        till._narrow(known)
        await made.network.answer(request_for(model, max_tokens=5))
        await line.close()


def _open(made: Market, gateway: NodeId) -> Open:
    request = request_for(made.network.model)
    return Open(
        session=SessionId(secrets.token_hex(16)),
        request_hash=request_hash(request),
        gateway=gateway,
        model=made.network.model.id,
        layers=LayerRange(0, made.network.model.layer_count),
        hop=0,
        hops=1,
        previous=None,
        next=None,
        resume=len(request.prompt),
        sampling=request.sampling,
        prompt=len(request.prompt),
        positions=len(request.prompt) + request.max_tokens,
        start=len(request.prompt),
        max_tokens=request.max_tokens,
        stop_tokens=(),
        top_logprobs=-1,
        draft=False,
        agreed=Agreed(IN, OUT, made.payer.address),
    )


def _tokens() -> bytes:
    return np.array(PROMPT, dtype="<u4").tobytes()


async def test_a_node_that_cannot_be_paid_is_left_out_and_said(model: StoredModel) -> None:
    async with market(model, (0, model.layer_count), (0, model.layer_count)) as made:
        first = made.tills[0]
        first.terms = msgspec.structs.replace(first.terms, payee=BROKEN)
        made.network.nodes[0].announce()
        made.network.burden(made.network.nodes[1])  # the broken one looks better
        answered = await made.network.answer(request_for(model, max_tokens=5))
        assert answered.claims[0].node == made.network.nodes[1].identity.node_id
        made.counter.away = True
        made.purse._payees.clear()
        with pytest.raises(NetworkError, match="does not answer"):
            await made.network.answer(request_for(model, max_tokens=5))


BROKEN = EvmAddress("0x5FbDB2315678afecb367f032d93F642f64180aa4")
"""Its checksum is wrong."""
