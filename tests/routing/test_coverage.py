from __future__ import annotations

import pytest

from tests.routing.records import MODEL, record
from unisono.routing.coverage import first_gap
from unisono.types import ModelId


@pytest.mark.parametrize(
    ("blocks", "gap"),
    [
        ([], 0),
        ([(0, 6)], None),
        ([(0, 2), (2, 4), (4, 6)], None),
        ([(4, 6), (2, 4), (0, 2)], None),
        ([(0, 2), (4, 6)], 2),
        ([(2, 6)], 0),
        ([(0, 4), (2, 6)], 4),  # every layer has a holder, and there is no chain
        ([(0, 4), (0, 2), (2, 6)], None),
        ([(0, 4), (4, 9)], 4),
    ],
)
def test_a_chain_needs_blocks_that_meet(blocks: list[tuple[int, int]], gap: int | None) -> None:
    records = [record(i, *block) for i, block in enumerate(blocks)]
    assert first_gap(records, MODEL, 6) == gap


def test_nodes_of_other_models_and_nodes_that_leave_do_not_count() -> None:
    assert first_gap([record(0, 0, 6)], ModelId("11" * 32), 6) == 0
    assert first_gap([record(0, 0, 6, leaving=True)], MODEL, 6) == 0
