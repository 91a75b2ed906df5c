from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import ConfigurationError
from unisono.market import cost
from unisono.market.cost import Fees, effective_cost, read_offers
from unisono.market.offers import Block, cheapest

FEES = Fees(gas_per_channel=0.1, channels=5, volume=10, locked=4, interest=0.05)
OFFER = """
[[offer]]
provider = "P"
model = "m"
input = 1.0
output = 2
checked = 2026-01-02
source = "s"
"""


def test_a_hand_computed_cost() -> None:
    fees = replace(FEES, failures=0.1, audits=0.02, speculation=0.5, period_days=73)
    made = effective_cost(2_000_000, 1_000_000, 1.0, 4.0, fees)
    assert made.price == pytest.approx(6)
    assert made.failures == pytest.approx(0.6)
    assert made.audits == pytest.approx(0.12)
    assert made.speculation == pytest.approx(2)
    paid = 6 + 0.6 + 0.12 + 2
    assert made.gas == pytest.approx(paid * 0.05)
    assert made.capital == pytest.approx(paid * 4 * 0.05 / 5 / 10)
    assert made.total == pytest.approx(paid * (1 + 0.05 + 0.004))


@pytest.mark.parametrize("change", [{"volume": 0}, {"gas_per_channel": -1}, {"interest": 1e13}])
def test_fees_that_cannot_be(change: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        effective_cost(1, 1, 1, 1, replace(FEES, **change))


def test_the_list_that_comes_along_is_dated_and_sourced() -> None:
    offers = read_offers(Path(cost.__file__).with_name("centralized.toml"))
    assert len(offers) >= 5
    assert all(each.source.startswith("https://") and each.checked.year >= 2026 for each in offers)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "one or more"),
        ("x = 1", "one or more"),
        ("[[offer]", "not a TOML"),
        (OFFER.replace('source = "s"', ""), "lacks 'source'"),
        (OFFER.replace("2026-01-02", '"today"'), "lacks 'checked'"),
        (OFFER.replace("1.0", "-1.0"), "from 0"),
        (OFFER.replace("1.0", "nan"), "from 0"),
        (OFFER + "colour = 3", "unknown key 'colour'"),
        (OFFER + "parameters = 0", "parameters"),
        ("x" * (cost.MAX_FILE + 1), "larger"),
    ],
)
def test_lists_that_are_none(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=problem):
        read_offers(path)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        read_offers(tmp_path / "none.toml")


LAYERS = 4
blocks = st.lists(
    st.builds(
        lambda ends, i, o: Block(*sorted(ends), i, o),
        st.lists(st.integers(0, LAYERS + 1), min_size=2, max_size=2),
        st.integers(0, 9),
        st.integers(0, 9),
    ),
    max_size=7,
)


@given(offered=blocks, prompt=st.integers(0, 5), tokens=st.integers(0, 5))
def test_the_cheapest_chain_is_the_cheapest_of_all(
    offered: list[Block], prompt: int, tokens: int
) -> None:
    found: list[float] = []

    def extend(chain: list[Block]) -> None:
        at = chain[-1].stop if chain else 0
        if at == LAYERS:
            shares = [(b.stop - b.start) / LAYERS for b in chain]
            found.append(
                sum(
                    s * (prompt * b.per_input + tokens * b.per_output)
                    for s, b in zip(shares, chain, strict=True)
                )
            )
        for block in offered:
            if block.start == at < block.stop <= LAYERS:
                extend([*chain, block])

    extend([])
    got = cheapest(offered, LAYERS, prompt, tokens)
    if not found:
        assert got is None
    else:
        assert got is not None
        assert prompt * got[0] + tokens * got[1] == pytest.approx(min(found))
