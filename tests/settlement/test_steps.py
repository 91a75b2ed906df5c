"""What contracts and Python call the same by number."""

from __future__ import annotations

import re

from tests.settlement.referees import KEPT, Place
from tests.verification.fraud.dispute import answer_of
from unisono.settlement.build import SOURCES
from unisono.verification.fraud.parameters import (
    KINDS,
    MAX_INPUTS,
    MAX_PARAMETERS,
    ROW_BEFORE,
)

STEPS = (SOURCES / "steps.vy").read_text()


def test_contracts_number_step_types_as_descriptors_do() -> None:
    numbers = re.findall(
        r"^([A-Z_]+): constant\(uint256\) = (\d+)$", STEPS.split("# Kinds")[1], re.M
    )
    assert {name.lower(): int(number) for name, number in numbers} == dict(KINDS)


def test_contracts_take_what_descriptors_hold() -> None:
    bounds = dict(re.findall(r"^(MAX_\w+): constant\(uint256\) = (\d+)", STEPS, re.M))
    assert int(bounds["MAX_PARAMS"]) == MAX_PARAMETERS
    assert int(bounds["MAX_FIXED"]) == MAX_INPUTS


def test_a_context_has_the_fields_of_the_contract() -> None:
    struct = STEPS.split("struct Context:")[1].split("\n\n")[0]
    fields = re.findall(r"^    (\w+): ", struct, re.M)
    assert len(fields) == len(Place(1, 1).context())
    assert fields[:5] == ["stage", "position", "prompt", "positions", "seen_start"]


def test_layers_keep_tensors_in_the_order_that_referees_know() -> None:
    hop = answer_of("llama").hop
    assert tuple(tensor.name for tensor in hop.kept(1)) == KEPT
    assert KEPT[ROW_BEFORE] == "row"
