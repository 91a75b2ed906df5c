"""Vouchers that are worth nothing, sent to a node over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import PROMPT, honest
from tests.settlement.payments.counter import Counter
from unisono.clock import SystemClock
from unisono.execution.engine import Engine
from unisono.execution.worker import Worker
from unisono.models.store import StoredModel
from unisono.settlement.payments.books import Books
from unisono.settlement.payments.till import Till
from unisono.settlement.signature import SettlementKey
from unisono.settlement.vouchers import Voucher, channels_domain, decode_voucher, sign_voucher
from unisono.types import EvmAddress, LayerRange, Sampling, SessionId
from unisono.wire.identity import Identity
from unisono.wire.link import Link, Links
from unisono.wire.messages import Message, Open, Opened, Refused, Tokens
from unisono.wire.payment_messages import Agreed, Held, Pay
from unisono.wire.transports import make_transport

DEPOSIT = 50_000
IN = OUT = 1_000_000
"""A unit per token."""
SESSION = SessionId("5e" * 16)


@dataclass
class Buyer:
    """A gateway's end of the link, and what came over it."""

    link: Link
    key: SettlementKey
    till: Till
    counter: Counter
    came: list[Message] = field(default_factory=list[Message])

    def voucher(self, cumulative: int, **changes: Any) -> Voucher:
        good = sign_voucher(self.key, self.counter.domain, self.till.terms.payee, 0, cumulative)
        return replace(good, **changes)

    async def pays(self, voucher: bytes, positions: int = len(PROMPT)) -> None:
        self.link.post(Pay(SESSION, positions, voucher))

    async def hears(self, kind: type[Message]) -> Any:
        for _ in range(500):
            for message in self.came:
                if isinstance(message, kind):
                    self.came.remove(message)
                    return message
            await asyncio.sleep(0.01)
        raise AssertionError(f"no {kind.__name__} came, only {self.came}")


@asynccontextmanager
async def buyer(model: StoredModel, *, deposit: int = DEPOSIT) -> AsyncIterator[Buyer]:
    """A session that is open on a paid node, over TCP, and not paid for."""
    clock, counter = SystemClock(), Counter()
    node, gateway = Identity.generate(), Identity.generate()
    payer, payee = SettlementKey.generate(), SettlementKey.generate()
    counter.coins[payer.address] = deposit
    await counter.at(payer.address).deposit(payee.address, deposit)
    till = Till(
        payee.address, counter.at(payee.address), Books(None), clock, model.layer_count, window=8
    )
    till.ask(IN, OUT)
    whole = LayerRange(0, model.layer_count)
    engine = Engine(honest(model, whole))
    serving = make_transport("tcp", node, "127.0.0.1:0", clock=clock)
    dialling = make_transport("tcp", gateway, "127.0.0.1:0", clock=clock)
    address = await serving.bind()
    await dialling.bind()
    worker = Worker(engine, model.id, node, serving, address, clock=clock, till=till)
    task = asyncio.create_task(serving.serve(worker.handle))
    came: list[Message] = []
    links = Links(dialling, clock, lambda link, message, body: came.append(message), print)
    try:
        link = await links.to(address)
        opened = Open(
            session=SESSION,
            request_hash="ab" * 32,
            gateway=gateway.node_id,
            model=model.id,
            layers=whole,
            hop=0,
            hops=1,
            previous=None,
            next=None,
            resume=len(PROMPT),
            sampling=Sampling(),
            prompt=len(PROMPT),
            positions=len(PROMPT) + 40,
            start=len(PROMPT),
            max_tokens=40,
            stop_tokens=(),
            top_logprobs=-1,
            draft=False,
            agreed=Agreed(IN, OUT, payer.address),
        )
        link.post(opened, np.array(PROMPT, dtype="<u4").tobytes())
        made = Buyer(link, payer, till, counter, came)
        await made.hears(Opened)
        yield made
    finally:
        await links.close()
        await worker.close()
        task.cancel()
        await dialling.close()
        await serving.close()
        await engine.close()


OTHER = SettlementKey.generate()
ELSEWHERE = EvmAddress("0x" + "0" * 39 + "1")
DUE = len(PROMPT)

BAD: dict[str, Callable[[Buyer], bytes]] = {
    "malformed": lambda b: b.voucher(DUE).encode()[:-1],
    "foreign_chain": lambda b: sign_voucher(
        b.key, channels_domain(1, b.counter.domain.contract), b.till.terms.payee, 0, DUE
    ).encode(),
    "foreign_contract": lambda b: sign_voucher(
        b.key, channels_domain(b.counter.domain.chain_id, ELSEWHERE), b.till.terms.payee, 0, DUE
    ).encode(),
    "foreign_payer": lambda b: sign_voucher(
        OTHER, b.counter.domain, b.till.terms.payee, 0, DUE
    ).encode(),
    "foreign_payee": lambda b: sign_voucher(
        b.key, b.counter.domain, OTHER.address, 0, DUE
    ).encode(),
    "closed_epoch": lambda b: sign_voucher(
        b.key, b.counter.domain, b.till.terms.payee, 1, DUE
    ).encode(),
    "overdrawn": lambda b: b.voucher(DEPOSIT + 1).encode(),
    "forged": lambda b: replace(b.voucher(DUE), cumulative=DUE + 1).encode(),
}


@pytest.mark.parametrize("code", BAD)
async def test_a_bad_voucher_is_refused_by_name_and_nothing_is_computed(
    tiny_models: TinyModels, code: str
) -> None:
    async with buyer(tiny_models.llama) as made:
        await made.pays(BAD[code](made))
        refused: Refused = await made.hears(Refused)
        assert refused.code == f"voucher_{code}"
        assert refused.session == SESSION
        assert not [m for m in made.came if isinstance(m, Tokens)]
        await made.pays(made.voucher(DUE).encode())  # a good one is taken all the same
        await made.hears(Tokens)


async def test_an_old_voucher_buys_nothing(tiny_models: TinyModels) -> None:
    async with buyer(tiny_models.llama) as made:
        newest = made.voucher(DUE)
        await made.pays(newest.encode())
        await made.hears(Tokens)
        await made.pays(newest.encode(), DUE + 8)  # replayed: what is lacking is said
        assert (await made.hears(Refused)).code == "unpaid"
        await made.pays(made.voucher(DUE - 5).encode(), DUE + 8)  # reordered
        held: Held = await made.hears(Held)
        assert decode_voucher(held.voucher) == newest
        for total, code in ((DUE, "replayed"), (DUE - 5, "reordered")):
            await made.pays(made.voucher(total, signature=b"\1" * 65).encode(), DUE + 8)
            assert (await made.hears(Refused)).code == f"voucher_{code}"
        (known,) = made.till._payers.values()
        assert known.account.promised == DUE
        assert known.account.stays[SESSION].paid == DUE
