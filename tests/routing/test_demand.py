from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.routing.records import MODEL, record
from tests.routing.test_paths import LAYERS, chains, costs_of, seconds
from unisono.errors import CapacityMissing, CoverageMissing, OfferMissing
from unisono.routing.demand import Demand, price_of
from unisono.routing.paths import best_path, standbys
from unisono.wire.terms import Terms

ADDRESS = "0x" + "12" * 20
WALLETS = frozenset({(31337, ADDRESS)})


def terms(**more: Any) -> Terms:
    return Terms(payee=ADDRESS, chain=31337, channels=ADDRESS, **more)


def best(records: Any, demand: Demand, **more: Any) -> Any:
    costs = costs_of(**({"demand": demand, "wallets": WALLETS} | more))
    return best_path(records, MODEL, LAYERS, 1, costs)


def test_a_block_asks_for_its_share_of_the_layers() -> None:
    half = record(0, 0, 2, price_in=1_000_000, price_out=3_000_000)
    assert price_of((half,), 4, 100, 50) == 125
    assert price_of((half,), 5, 100, 50) == 100
    assert price_of((half,), 5, 1, 0) == 1
    assert price_of((half,), 5, 0, 0) == 0


offers = st.lists(
    st.tuples(
        st.sampled_from([(0, 2), (2, 5), (0, 5), (2, 3), (3, 5)]),
        st.integers(1000, 30_000),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=7,
)


@given(drawn=offers, most=st.integers(0, 60))
@settings(max_examples=150, deadline=None)
def test_what_is_chosen_keeps_the_limit_and_is_refused_only_if_nothing_does(
    drawn: list[tuple[tuple[int, int], int, int]], most: int
) -> None:
    records = [
        record(i, *block, step_us=step, price_out=1_000_000 * price)
        for i, (block, step, price) in enumerate(drawn)
    ]
    costs = costs_of(demand=Demand(most), tokens=1, prompt=1)
    everything = chains(records)
    if not everything:
        with pytest.raises(CoverageMissing):
            best_path(records, MODEL, LAYERS, 1, costs)
        return
    prices = [price_of(chain, LAYERS, 1, 1) for chain in everything]
    if min(prices) > most:
        with pytest.raises(OfferMissing, match="cheapest offer") as error:
            best_path(records, MODEL, LAYERS, 1, costs)
        assert f"{most / 1e6:.6f}" in str(error.value)
        return
    path = best_path(records, MODEL, LAYERS, 1, costs)
    assert price_of(path, LAYERS, 1, 1) <= most
    fastest = min(everything, key=lambda chain: seconds(chain, costs))
    if price_of(fastest, LAYERS, 1, 1) <= most:
        assert seconds(path, costs) == pytest.approx(seconds(fastest, costs))


def test_the_limit_counts_the_longest_answer() -> None:
    dear = record(0, 0, 5, price_out=1_000_000, step_us=1000)
    cheap = record(1, 0, 5, price_out=100_000, step_us=5000)
    offered = [dear, cheap]
    assert best(offered, Demand(200), tokens=20, most_tokens=200) == (dear,)
    assert best(offered, Demand(199), tokens=20, most_tokens=200) == (cheap,)
    with pytest.raises(OfferMissing, match=r"0\.000020.*0\.000019"):
        best(offered, Demand(19), tokens=20, most_tokens=200)


def test_levels_and_stakes_are_floors() -> None:
    plain = record(0, 0, 5, step_us=1000)
    safe = record(1, 0, 5, step_us=9000, terms=terms(tier=2, stake=50))
    both = [plain, safe]
    assert best(both, Demand()) == (plain,)
    assert best(both, Demand(tier=1)) == (safe,)
    assert best(both, Demand(stake=50)) == (safe,)
    with pytest.raises(OfferMissing, match="service level 'critical'"):
        best(both, Demand(tier=3))
    with pytest.raises(OfferMissing, match="stake"):
        best(both, Demand(stake=51))
    full = record(2, 0, 5, free_positions=0, terms=terms(tier=2))
    with pytest.raises(CapacityMissing):
        best([plain, full], Demand(tier=2))


def test_a_gateway_asks_only_nodes_that_it_can_pay() -> None:
    free = record(0, 0, 5, step_us=9000)
    paid = record(1, 0, 5, step_us=1000, terms=terms())
    assert best([free, paid], Demand()) == (paid,)
    elsewhere = frozenset({(1, ADDRESS)})
    for wallets in (frozenset[Any](), elsewhere):
        assert best([free, paid], Demand(), wallets=wallets) == (free,)
        with pytest.raises(OfferMissing, match="cannot pay"):
            best([paid], Demand(), wallets=wallets)


def test_whoever_stands_by_keeps_the_terms_too() -> None:
    serving = record(0, 0, 5, price_out=1_000_000)
    dear = record(1, 0, 5, step_us=1, price_out=9_000_000)
    fair = record(2, 0, 5, step_us=90_000, price_out=1_000_000)
    costs = costs_of(tokens=10, demand=Demand(10))
    assert standbys((serving,), [serving, dear, fair], 1, costs) == (fair,)
    assert standbys((serving,), [serving, dear, fair], 1, costs_of(tokens=10)) == (dear,)


def test_a_quorum_shares_the_limit() -> None:
    assert Demand(10, tier=1).shared(3) == Demand(3, tier=1)
    assert Demand(tier=1).shared(3) == Demand(tier=1)
