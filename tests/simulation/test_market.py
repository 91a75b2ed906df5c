"""The economy: prices follow costs and scarcity, break-even is where the formula puts it, tricks do
not pay, and the same seed gives the same report."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from unisono.cli.app import app
from unisono.errors import ConfigurationError
from unisono.simulation.market import manipulation
from unisono.simulation.market.cheating import (
    SHARE,
    Strategy,
    Terms,
    cheat,
    curve,
    measured_break_even,
)
from unisono.simulation.market.currency import exchange
from unisono.simulation.market.manipulation import Trick, gain
from unisono.simulation.market.operators import make_operators
from unisono.simulation.market.report import MarketSettings, simulate_market
from unisono.simulation.market.trading import Trade, trade
from unisono.simulation.market.wealth import grow
from unisono.verification.policy import Exposure, detection, loss_per_answer


def traded(load: float, electricity: float = 0.22) -> Trade:
    rng = np.random.default_rng(3)
    return trade(make_operators(200, rng, electricity=electricity), rng, days=9, load=load)


def test_prices_follow_electricity_while_capacity_is_idle_and_buyers_when_it_is_scarce() -> None:
    idle, dear, scarce = traded(0.2), traded(0.2, 0.44), traded(1.2)
    assert 1.0 <= idle.price / idle.electricity < 2.0
    assert dear.price / idle.price == pytest.approx(2, rel=0.1)
    assert scarce.price > 3 * idle.price
    assert idle.served > 0.95 > scarce.served
    assert scarce.idle < idle.idle


@pytest.mark.parametrize("strategy", [s for s in Strategy if s is not Strategy.HONEST])
def test_cheating_breaks_even_where_the_formula_says(strategy: Strategy) -> None:
    terms = Terms()
    answers = round(4_000_000 / SHARE[strategy])
    outcomes = curve(terms, strategy, answers, np.random.default_rng(5))
    measured, error = measured_break_even(outcomes)
    assert abs(measured - terms.break_even(strategy)) < 4 * error
    assert outcomes[0].extra > 0 > outcomes[-1].extra


@pytest.mark.parametrize("friends", [0.1, 0.3])
def test_the_formula_is_that_of_the_policy(friends: float) -> None:
    terms = replace(Terms(), friends=friends, seats=5)
    strategy = Strategy.COLLUDING
    assert terms.detection(strategy) == pytest.approx(detection(5, friends))
    million = 1_000_000
    exposure = Exposure(
        gain=round(terms.gain(strategy) * million),
        stake=round(terms.stake * million),
        escrow=round(terms.escrow * million),
    )
    rate = terms.break_even(strategy)
    lost = loss_per_answer(exposure, round(rate * million), detection(5, friends))
    assert lost == pytest.approx(exposure.gain, rel=0.05)


def test_an_honest_operator_is_never_convicted() -> None:
    outcome = cheat(Terms(), Strategy.HONEST, 1.0, 10_000, np.random.default_rng(1))
    assert (outcome.extra, outcome.convictions) == (0.0, 0)


def test_stakes_concentrate_no_more_when_work_is_paid_than_when_stake_is() -> None:
    rng = np.random.default_rng(2)
    operators = make_operators(300, rng)
    work, stake = grow(operators, rng), grow(operators, rng, by_stake=True)
    assert work.gini[0] == stake.gini[0]
    assert work.gini[-1] < stake.gini[-1]


def test_a_volatile_coin_needs_a_margin_and_a_stable_one_does_not() -> None:
    rng = np.random.default_rng(4)
    stable, wild = exchange(0.0, rng), exchange(0.9, rng)
    assert (stable.losing, stable.margin) == (0.0, 0.0)
    assert wild.margin > 0.1
    assert exchange(0.3, rng).margin < wild.margin


@pytest.mark.slow
@pytest.mark.parametrize("trick", [Trick.CROWD, Trick.BOAST, Trick.DEAR_CROWD])
def test_tricks_do_not_raise_pay(trick: Trick) -> None:
    found = gain(trick, 3, sessions=500)
    assert found.ratio < 1 + max(0.1, 3 * found.error)


def test_a_run_depends_on_its_seed_alone() -> None:
    one = manipulation.run(Trick.NONE, 7, machines=6, sessions=40)
    assert one == manipulation.run(Trick.NONE, 7, machines=6, sessions=40)
    assert one.earned + one.others > 0


def small() -> MarketSettings:
    return MarketSettings(operators=60, days=3, answers=100_000, runs=2)


@pytest.mark.parametrize("bad", ["operators", "days", "answers", "runs"])
def test_bad_settings_are_named(bad: str) -> None:
    with pytest.raises(ConfigurationError, match=f"--{bad} 1"):
        MarketSettings(**{bad: 1}).checked()


def test_the_whole_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    honest = manipulation.run
    monkeypatch.setattr(
        manipulation, "run", lambda trick, seed, **_: honest(trick, seed, machines=5, sessions=20)
    )
    monkeypatch.setattr(
        "unisono.simulation.market.report.MarketSettings.checked", lambda _: small()
    )
    target, tables = tmp_path / "market.json", tmp_path / "tables"
    arguments = ["simulate", "--market", "--json", str(target), "--csv", str(tables)]
    picture = tmp_path / "market.png"
    result = CliRunner().invoke(app, [*arguments, "--plot", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.stat().st_size > 10_000
    report = json.loads(target.read_text())
    assert report == json.loads(CliRunner().invoke(app, [*arguments[:3], "-"]).stdout)
    for name in ("prices", "cheating", "break-even", "wealth", "currency", "tricks"):
        rows = list(csv.DictReader(io.StringIO((tables / f"{name}.csv").read_text())))
        assert rows, name
    for word in ("over electricity", "break-even", "Gini", "volatility", "trick"):
        assert word in result.stdout
    assert simulate_market(small()).break_even


def test_tables_without_a_market_are_refused() -> None:
    result = CliRunner().invoke(app, ["simulate", "--csv", "x"])
    assert result.exit_code == 2
