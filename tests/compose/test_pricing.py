"""A node's own price, from what it measured and what its machine costs."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compose.test_staked import record
from unisono.compose.chain_settings import FloorSettings
from unisono.compose.pricing import machine_of, price_at, speed_of
from unisono.errors import ConfigurationError
from unisono.wire.records import NodeRecord

DAY, NIGHT = 12 * 3600.0, 23 * 3600.0
SETTINGS = FloorSettings(watts=100.0, electricity=0.36, off_peak=("22:00-06:00=0.12",), margin=0.0)


def measured(step_us: int = 10_000, row_us: int = 1_000) -> NodeRecord:
    return msgspec.structs.replace(record(0), step_us=step_us, row_us=row_us)


def test_the_price_is_the_cost_of_a_second_over_what_it_yields() -> None:
    machine = machine_of(SETTINGS)
    price = price_at(machine, measured(), 1, 2, DAY)
    assert price is not None
    # 0.1 kW at 0.36 is 0.036 per hour: a hundred-thousandth of the coin per second
    assert price.per_input == pytest.approx(1e-5 / 1000 * 1e12, abs=1)
    assert price.per_output == pytest.approx(1e-5 / 100 * 1e12, abs=1)


def test_off_peak_hours_are_cheaper_and_a_block_asks_for_the_whole_model() -> None:
    machine = machine_of(SETTINGS)
    day, night = (price_at(machine, measured(), 4, 2, at) for at in (DAY, NIGHT))
    assert day is not None
    assert night is not None
    assert day.per_output == pytest.approx(3 * night.per_output, abs=3)
    half = price_at(machine, measured(), 4, 4, DAY)
    assert half is not None
    assert half.per_output == pytest.approx(2 * day.per_output, abs=2)


def test_a_node_that_has_not_measured_itself_has_no_price() -> None:
    assert price_at(machine_of(SETTINGS), measured(0, 0), 4, 2, DAY) is None


@given(step=st.integers(1, 10**7), row=st.integers(1, 10**6), sessions=st.integers(1, 64))
def test_more_sessions_side_by_side_never_make_tokens_dearer(
    step: int, row: int, sessions: int
) -> None:
    slow = speed_of(measured(max(step, row), row), sessions)
    fast = speed_of(measured(max(step, row), row), sessions + 1)
    assert slow is not None
    assert fast is not None
    assert fast.decodes >= slow.decodes * (1 - 1e-12)


@pytest.mark.parametrize(
    "changes", [{"watts": 0.0}, {"off_peak": ("x",)}, {"sessions": 0}, {"margin": -2.0}]
)
def test_a_machine_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        machine_of(msgspec.structs.replace(SETTINGS, **changes))
