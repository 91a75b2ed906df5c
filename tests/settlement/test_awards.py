"""Coins that verdicts award are paid out by whoever is first."""

from __future__ import annotations

from typing import Any

import pytest

from unisono.errors import TransactionRefused
from unisono.settlement import awards
from unisono.settlement.awards import Awards
from unisono.settlement.ledger.deployment import Deployed, Deployment
from unisono.settlement.ledger.intents import Intent
from unisono.types import EvmAddress

OWNER = EvmAddress("0x" + "11" * 20)


class _Head:
    number = 7


class _Ledger:
    async def head(self) -> _Head:
        return _Head()


class _Late:
    """Somebody else's transaction is always in the block before."""

    async def perform(self, intent: Intent, seconds: float) -> Any:
        raise TransactionRefused("the contract reverted in its block")


def registry() -> Deployment:
    return Deployment(1, 1, 0, {"registry": Deployed(OWNER, "00" * 32)})


@pytest.mark.parametrize(("left", "units"), [(0, 5), (5, None)])
async def test_who_is_late_finds_it_paid_out_and_nothing_else_is_forgiven(
    monkeypatch: pytest.MonkeyPatch, left: int, units: int | None
) -> None:
    credits = iter([5, left])

    async def read(*_: object) -> int:
        return next(credits)

    monkeypatch.setattr(awards, "read", read)
    made = Awards(_Ledger(), _Late(), registry())  # type: ignore[arg-type]
    if units is None:
        with pytest.raises(TransactionRefused):
            await made.collect(OWNER)
    else:
        assert await made.collect(OWNER) == (units, 0)
