"""A case that its opener left can be ended by others, by the chain's clock or the machine's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unisono.clock import VirtualClock
from unisono.errors import TransactionRefused
from unisono.settlement.committees import REMEMBERED, CaseState, JuryHouse, Phase
from unisono.types import EvmAddress

CASE, NOW = b"\5" * 32, 1_700_000_000
SOMEBODY = EvmAddress("0x" + "11" * 20)
DRAW, REVEAL, CONTEST = 4, 50, 300


class House(JuryHouse):
    """One whose chain says this block and this second, and takes everything or nothing."""

    def __init__(self, block: int, second: int, now: int, refuses: bool = False) -> None:
        head = SimpleNamespace(number=block, timestamp=second)

        async def newest() -> Any:
            return head

        nothing: Any = None
        ledger: Any = SimpleNamespace(head=newest)
        super().__init__(ledger, nothing, nothing, VirtualClock(now))
        self.__dict__.update(refuses=refuses, sent=[])

    async def rules(self) -> Any:
        return SimpleNamespace(draw_blocks=DRAW, reveal_seconds=REVEAL, contest_seconds=CONTEST)

    async def send(self, function: str, *arguments: object, key: str = "") -> Any:
        self.__dict__["sent"].append((function, arguments))
        if self.__dict__["refuses"]:
            raise TransactionRefused("another phase")


def state(phase: Phase, block: int = 100, deadline: int = NOW) -> CaseState:
    return CaseState(
        *(b"\1" * 32, b"\2" * 32, SOMEBODY, SOMEBODY, 1, 0, 0, bytes(32), phase),
        *(3, 3, 1, 0, 0, block, 9, deadline, NOW),
    )


LATE = NOW + REVEAL + CONTEST


@pytest.mark.parametrize(
    ("phase", "block", "second", "now", "due"),
    [
        (Phase.DRAWING, 100 + DRAW + REMEMBERED, 0, 0, False),
        (Phase.DRAWING, 101 + DRAW + REMEMBERED, 0, 0, True),
        (Phase.VOTING, 10**6, LATE, LATE + 1, False),
        (Phase.VOTING, 0, LATE + 1, LATE, True),
        (Phase.VOTING, 0, NOW, LATE + 2, True),  # a quiet chain
        (Phase.ACCUSED, 10**6, 2 * LATE, 2 * LATE, False),
        (Phase.CONTESTED, 10**6, 2 * LATE, 2 * LATE, False),
        (Phase.OVER, 10**6, 2 * LATE, 2 * LATE, False),
    ],
)
async def test_a_case_lapses_once_nobody_can_go_on_with_it(
    phase: Phase, block: int, second: int, now: int, due: bool
) -> None:
    house = House(block, second, now)
    assert await house.lapse(CASE, state(phase)) == due
    assert house.__dict__["sent"] == ([("lapse", (CASE,))] if due else [])


async def test_somebody_was_faster() -> None:
    house = House(0, LATE + 1, LATE + 1, refuses=True)
    assert not await house.lapse(CASE, state(Phase.VOTING))
