"""Deployment files are read strictly; plans find constructors' arguments by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from unisono.errors import ConfigurationError, LedgerUnreachable
from unisono.settlement.artifacts import Artifact, artifact, contract_address
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.deploy import TERMS, Plan
from unisono.settlement.ledger.deployment import Deployed, Deployment, load_deployment
from unisono.settlement.ledger.ledger import Log, TxHash
from unisono.settlement.signature import SettlementKey

ME = SettlementKey(b"\x71" * 32).address
GOOD = Deployment(5, 10, 2, {"registry": Deployed(ME, "ab" * 32)})


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"chain_id": 0},
        {"chain_id": "5"},
        {"confirmations": -1},
        {"block": None},
        {"extra": 1},
        {"contracts": {"registry": {"address": "0x12", "code_hash": "ab" * 32}}},
        {"contracts": {"registry": {"address": ME, "code_hash": "AB" * 32}}},
        {"contracts": {"registry": {"address": ME.swapcase(), "code_hash": "ab" * 32}}},
        {"contracts": []},
    ],
)
def test_a_file_of_another_form_is_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "network.json"
    path.write_bytes(GOOD.encode())
    assert load_deployment(path) == GOOD
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(GOOD), **change}))
    with pytest.raises(ConfigurationError, match=r"network\.json"):
        load_deployment(path)
    path.write_bytes(b"no JSON")
    with pytest.raises(ConfigurationError, match="not a deployment file"):
        load_deployment(path)
    with pytest.raises(ConfigurationError, match="cannot read"):
        load_deployment(tmp_path / "nothing")


def test_a_contract_that_is_missing_is_named() -> None:
    assert GOOD.address("registry") == ME
    with pytest.raises(ConfigurationError, match="no 'court', only registry"):
        GOOD.address("court")


def made_up(name: str, inputs: list[dict[str, Any]]) -> Artifact:
    constructor = {"type": "constructor", "inputs": inputs}
    return Artifact(name, "0", "prague", 1, [constructor], "fe")


def test_contracts_know_each_other_before_they_exist() -> None:
    rules = [{"name": "bond", "type": "uint256"}, {"name": "games", "type": "uint256"}]
    artifacts = {
        "stablecoin": artifact("stablecoin"),
        "registry": artifact("registry"),
        "court": made_up(
            "court",
            [
                {"name": "of_registry", "type": "address"},
                {"name": "of_rules", "type": "tuple", "components": rules},
            ],
        ),
    }
    plan = Plan(ME, 7, artifacts=artifacts)
    assert plan.names[0] == "stablecoin"
    assert plan.names.index("registry") < plan.names.index("court")
    for index, name in enumerate(plan.names):
        assert plan.addresses[name] == contract_address(ME, 7 + index)
    court = plan.addresses["court"][2:].lower()
    assert plan.creation("registry").hex().endswith(court)  # the only judge
    words = plan.creation("court")[1:]
    assert words.hex()[24:64] == plan.addresses["registry"][2:].lower()
    assert int.from_bytes(words[32:64]) == TERMS["bond"]
    assert int.from_bytes(words[64:96]) == TERMS["games"]
    own = Plan(ME, 7, artifacts=artifacts, coin=ME)
    assert "stablecoin" not in own.names
    assert ME[2:].lower() in own.creation("registry").hex()


def test_an_argument_that_nobody_knows_is_named() -> None:
    strange = made_up("strange", [{"name": "of_colour", "type": "uint256"}])
    plan = Plan(ME, 0, artifacts={"strange": strange})
    with pytest.raises(ConfigurationError, match="'colour', which the constructor of strange"):
        plan.creation("strange")


def test_a_call_that_does_not_fit_is_refused_and_an_answer_that_does_not_is_strange() -> None:
    coin = Contract(ME, artifact("stablecoin").abi)
    assert coin.encode("balanceOf", ME)[:4].hex() == "70a08231"
    with pytest.raises(ConfigurationError, match="no function 'steal'"):
        coin.encode("steal")
    with pytest.raises(ConfigurationError, match=r"takes \(address\)"):
        coin.encode("balanceOf")
    with pytest.raises(ConfigurationError, match=r"takes \(address\)"):
        coin.encode("balanceOf", 5)
    with pytest.raises(LedgerUnreachable, match="not its type"):
        coin.decode("balanceOf", b"\x01")
    with pytest.raises(ConfigurationError, match="no event 'Stolen'"):
        coin.topic("Stolen")


def test_events_of_others_are_passed_over_and_malformed_ones_are_strange() -> None:
    coin = Contract(ME, artifact("stablecoin").abi)
    other = SettlementKey(b"\x72" * 32).address
    topics = (coin.topic("Transfer"), bytes(32), bytes(32))

    def log(address: str, topics: tuple[bytes, ...], data: bytes) -> Log:
        return Log(type(ME)(address), topics, data, 1, TxHash("0x"), 0)

    assert coin.event(log(other, topics, bytes(32))) is None
    assert coin.event(log(ME, (), bytes(32))) is None
    assert coin.event(log(ME, (bytes(32),), bytes(32))) is None
    found = coin.event(log(ME, topics, (9).to_bytes(32)))
    assert found is not None
    assert found[1]["value"] == 9
    for broken in (log(ME, topics[:2], bytes(32)), log(ME, topics, b""), log(ME, topics, b"\1")):
        with pytest.raises(LedgerUnreachable, match="form of its type"):
            coin.event(broken)
