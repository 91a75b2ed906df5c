from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import ConfigurationError
from unisono.market.pricing import (
    HOURS_PER_YEAR,
    Machine,
    OffPeak,
    Speed,
    floor_price,
    parse_off_peak,
)

PC = Machine(watts=100, electricity=0.30, margin=0.0)


def test_a_hand_computed_price() -> None:
    # 0.1 kW at 0.30 is 0.03 per hour; 1,000 tokens/s are 3.6 million per hour
    floor = floor_price(PC, Speed(reads=10_000, decodes=1_000))
    assert floor.price.per_output == math.ceil(0.03 / 3.6 * 1e6)
    assert floor.price.per_input == math.ceil(0.03 / 36 * 1e6)
    assert floor.wear == 0


@given(
    watts=st.floats(1, 1e4),
    electricity=st.floats(0.01, 2),
    purchase=st.floats(0, 1e5),
    years=st.floats(1, 10),
    use=st.floats(0.05, 1),
    margin=st.floats(0, 2),
    reads=st.floats(50, 1e5),
    decodes=st.floats(50, 1e5),
    share=st.floats(0.05, 1),
)
def test_an_hour_of_work_at_the_floor_pays_for_itself_and_the_margin(
    watts: float,
    electricity: float,
    purchase: float,
    years: float,
    use: float,
    margin: float,
    reads: float,
    decodes: float,
    share: float,
) -> None:
    machine = Machine(watts, electricity, (), purchase, 0.0, years, use, margin)
    cost = watts / 1000 * electricity + purchase / (years * HOURS_PER_YEAR * use)
    price = floor_price(machine, Speed(reads, decodes), share).price
    for rate, asked in ((reads, price.per_input), (decodes, price.per_output)):
        earned = 3600 * rate * share * asked / 1e12
        assert earned >= cost * (1 + margin) * (1 - 1e-9)
        # rounding up costs a client a millionth per million tokens at most
        assert earned <= cost * (1 + margin) * (1 + 1e-9) + 3600 * rate * share / 1e12


def test_off_peak_hours_span_midnight_and_the_first_that_holds_counts() -> None:
    night, noon = parse_off_peak("22:00-06:00=0.12"), parse_off_peak("12:00-13:30=0.2")
    machine = replace(PC, off_peak=(night, noon))
    at = {
        minute: machine.electricity_at(minute)
        for minute in (0, 359, 360, 719, 720, 809, 810, 1319, 1320, 1440)
    }
    assert at == {
        0: 0.12,
        359: 0.12,
        360: 0.30,
        719: 0.30,
        720: 0.2,
        809: 0.2,
        810: 0.30,
        1319: 0.30,
        1320: 0.12,
        1440: 0.12,
    }
    both = replace(PC, off_peak=(OffPeak(0, 720, 0.1), OffPeak(600, 720, 0.2)))
    assert both.electricity_at(650) == 0.1


@pytest.mark.parametrize("text", ["", "22-06=1", "22:00=1", "25:00-01:00=1", "1:60-2:00=1", "a"])
def test_periods_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match="off-peak period"):
        parse_off_peak(text)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"watts": 0}, "watts"),
        ({"watts": math.nan}, "watts"),
        ({"electricity": -1}, "electricity"),
        ({"years": 0}, "years"),
        ({"use": 0}, "use"),
        ({"resale": 5}, "resale"),
        ({"margin": -1}, "margin"),
        ({"off_peak": (OffPeak(0, 1, math.inf),)}, "off-peak"),
    ],
)
def test_figures_that_no_machine_has(change: dict[str, float], name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        floor_price(replace(PC, **change), Speed(1, 1))


@pytest.mark.parametrize("speed", [Speed(0, 1), Speed(1, math.nan), Speed(1, -2)])
def test_speeds_that_nothing_has(speed: Speed) -> None:
    with pytest.raises(ConfigurationError, match="positive"):
        floor_price(PC, speed)


def test_a_share_is_above_none_and_at_most_all() -> None:
    for share in (0.0, 1.01, math.nan):
        with pytest.raises(ConfigurationError, match="share"):
            floor_price(PC, Speed(1, 1), share)
