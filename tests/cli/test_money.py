"""What nodes and gateways are told about money, and what contradicts itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from unisono.cli.app import app
from unisono.cli.money import chain_settings, seller_settings
from unisono.compose.chain_settings import ChainSettings, SellerSettings
from unisono.errors import ConfigurationError

CHAIN = ("--chain-rpc", "http://127.0.0.1:1", "--deployment", "network.json")
KEPT = (*CHAIN, "--key", "node.key")
PRICED = (*KEPT, "--price-in", "1", "--price-out", "2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--price-in", "1"), "--price-in needs a chain"),
        (("--watts", "60"), "--watts needs a chain"),
        (("--stake", "1"), "--stake needs a chain"),
        (("--deployment", "x"), "--deployment needs a chain"),
        (("--account", "0x12"), "--account needs a chain"),
        (("--chain-rpc", "http://127.0.0.1:1"), "needs --deployment"),
        (CHAIN, "outlives this process"),
        (KEPT, "needs a price"),
        ((*KEPT, "--price-in", "1"), "needs a price"),
        ((*KEPT, "--margin", "0.3"), "--margin is for a node that finds its own price"),
        ((*PRICED, "--watts", "60"), "not both"),
        ((*PRICED, "--tier", "golden"), "--tier golden: expected one of economy"),
        ((*PRICED, "--payee", "0x12"), "'0x12' is no address"),
        ((*KEPT, "--watts", "-3"), "watts is -3"),
        ((*KEPT, "--watts", "60", "--off-peak", "noon"), "no off-peak period"),
        ((*CHAIN, "--account", "0x12", "--watts", "60", "--stake", "5"), "keep it, with --key"),
    ],
)
def test_a_node_says_what_does_not_fit(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, ["node", *arguments])
    assert done.exit_code == 1
    assert words in done.output.replace("\n", " ").replace("  ", " ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--deposit", "5"), "--deposit needs a chain"),
        (("--least-stake", "5"), "--least-stake needs a chain"),
        (("--chain-rpc", "http://127.0.0.1:1"), "needs --deployment"),
        ((*CHAIN, "--port", "0"), "outlives this process"),
    ],
)
def test_a_gateway_says_what_does_not_fit(arguments: tuple[str, ...], words: str) -> None:
    done = CliRunner().invoke(app, ["gateway", *arguments])
    assert done.exit_code == 1
    assert words in done.output.replace("\n", " ").replace("  ", " ")


def test_coins_become_units_and_names_become_numbers(tmp_path: Path) -> None:
    chain = chain_settings("http://h:1", "d.json", key="node.key", deposit=2.5)
    assert isinstance(chain, ChainSettings)
    assert (chain.deposit, chain.keystore) == (2_500_000, None)
    kept = chain_settings("http://h:1", "d.json", account="0x1", key=None)
    assert kept is not None
    assert kept.keystore is not None
    assert kept.keystore.endswith("keystore")
    seller = _seller(chain, price_in=0.02, price_out=0.08, tier="assured", stake=7.5, window=9)
    assert seller == SellerSettings(20_000, 80_000, window=9, tier=2, stake=7_500_000)


def test_watts_make_a_price_of_ones_own() -> None:
    chain = chain_settings("http://h:1", "d.json", key="node.key")
    seller = _seller(chain, watts=65.0, off_peak=["22:00-06:00=0.1"])
    assert seller is not None
    assert seller.floor is not None
    assert (seller.floor.electricity, seller.floor.margin) == (0.25, 0.2)
    assert seller.floor.off_peak == ("22:00-06:00=0.1",)


def test_without_a_chain_nothing_is_sold() -> None:
    assert chain_settings(None, None, key=None) is None
    assert _seller(None) is None
    with pytest.raises(ConfigurationError, match="--window needs a chain"):
        _seller(None, window=4)


def _seller(chain: ChainSettings | None, **given: object) -> SellerSettings | None:
    fields: dict[str, object] = {
        "price_in": None,
        "price_out": None,
        "watts": None,
        "electricity": None,
        "off_peak": None,
        "margin": None,
        "payee": None,
        "stake": 0.0,
        "bench": 0.0,
        "tier": None,
        "window": None,
        "key": "node.key",
    }
    return seller_settings(chain, **(fields | given))  # type: ignore[arg-type]
