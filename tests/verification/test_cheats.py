"""Every kind of cheat is named: the hop, its layers, its node id, and the position."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import (
    PROMPT,
    SAMPLINGS,
    AlteredRow,
    OtherPrompt,
    SkippedLayer,
    WrongToken,
    cheat,
    request_for,
    tokens_body,
    wrong_weights,
)
from tests.verification.answers import Made, make
from unisono.execution.engine import Engine, StepResult
from unisono.execution.worker import Worker
from unisono.models.store import ModelStore, StoredModel
from unisono.types import LayerRange
from unisono.verification.form import check_form
from unisono.verification.replay import verify
from unisono.verification.verdict import Fault
from unisono.wire.link import Link
from unisono.wire.messages import Open
from unisono.wire.rows import encode_rows


def fault_of(made: Made, store: ModelStore) -> Fault:
    verdict = verify(made.receipt, store)
    assert verdict.verdict == "INVALID"
    assert verdict.fault is not None
    return verdict.fault


def names(fault: Fault, made: Made, hop: int, layers: LayerRange, position: int | None) -> bool:
    """Whether a fault accuses one hop, in its fields and in its message."""
    node = made.receipt.hops[hop].node
    said = f"hop {hop} (layers {layers}, node {node})" in fault.message
    return said and (fault.hop, fault.node, fault.layers, fault.position) == (
        hop,
        node,
        layers,
        position,
    )


@pytest.mark.parametrize("name", ["gemma", "llama"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("nodes", [1, 3])
def test_an_honest_answer_is_valid(
    tiny_models: TinyModels, name: str, sampling: str, nodes: int
) -> None:
    model: StoredModel = getattr(tiny_models, name)
    made = make(model, nodes, request_for(model, sampling=SAMPLINGS[sampling]))
    seen: list[tuple[int, int]] = []
    verdict = verify(made.receipt, tiny_models.store, lambda *progress: seen.append(progress))
    assert verdict.verdict == "VALID", verdict
    assert seen == [(i + 1, nodes) for i in range(len(seen))]


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_short_and_long_answers_are_valid(tiny_models: TinyModels, tokens: int) -> None:
    request = request_for(tiny_models.gemma, max_tokens=tokens, prompt=PROMPT[:1])
    made = make(tiny_models.gemma, 2, request)
    assert verify(made.receipt, tiny_models.store).verdict == "VALID"


def test_a_prompt_of_several_chunks_is_valid(tiny_models: TinyModels) -> None:
    prompt = (PROMPT * 15)[:290]  # more rows than one step of the nodes, or of the replay
    made = make(tiny_models.gemma, 3, request_for(tiny_models.gemma, prompt=prompt, max_tokens=3))
    assert verify(made.receipt, tiny_models.store).verdict == "VALID"


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("what", ["weights", "layer"])
def test_wrong_weights_and_a_skipped_layer_are_named(
    tiny_models: TinyModels, hop: int, what: str
) -> None:
    cheats = {"weights": wrong_weights, "layer": cheat(SkippedLayer)}
    made = make(tiny_models.gemma, 3, make={hop: cheats[what]})
    fault = fault_of(made, tiny_models.store)
    assert fault.kind == "rows_out"
    assert names(fault, made, hop, LayerRange(2 * hop, 2 * hop + 2), 0)


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("position", [0, 9, 19, 25, 30])
def test_one_altered_value_in_one_row_is_named_with_its_position(
    tiny_models: TinyModels, hop: int, position: int
) -> None:
    kind = type("Altered", (AlteredRow,), {"position": position})
    made = make(tiny_models.gemma, 3, make={hop: cheat(kind)})
    fault = fault_of(made, tiny_models.store)
    assert fault.kind == "rows_out"
    assert names(fault, made, hop, LayerRange(2 * hop, 2 * hop + 2), position)


def test_computing_another_prompt_is_named_where_the_prompts_part(tiny_models: TinyModels) -> None:
    made = make(tiny_models.gemma, 3, make={0: cheat(OtherPrompt)})
    fault = fault_of(made, tiny_models.store)
    assert fault.kind == "rows_out"
    assert names(fault, made, 0, LayerRange(0, 2), 1)


class Deaf(Worker):
    """A first hop that takes another prompt for the given one, and signs that it did."""

    def _admit(self, link: Link, opened: Open, body: bytes) -> Any:
        return super()._admit(link, opened, tokens_body(7) + body[4:])


def test_signing_for_another_prompt_is_named(tiny_models: TinyModels) -> None:
    made = make(tiny_models.gemma, 3, workers={0: Deaf})
    fault = fault_of(made, tiny_models.store)
    assert fault.kind == "rows_in"
    assert names(fault, made, 0, LayerRange(0, 2), None)
    assert "it answered another prompt" in fault.message


@pytest.mark.parametrize("sampling", ["greedy", "seeded"])
@pytest.mark.parametrize("nodes", [1, 3])
def test_a_token_that_the_rows_do_not_give_is_named(
    tiny_models: TinyModels, sampling: str, nodes: int
) -> None:
    request = request_for(tiny_models.gemma, sampling=SAMPLINGS[sampling])
    made = make(tiny_models.gemma, nodes, request, make={nodes - 1: cheat(WrongToken)})
    fault = fault_of(made, tiny_models.store)
    assert fault.kind == "sampling"
    assert names(fault, made, nodes - 1, LayerRange(6 - 6 // nodes, 6), len(PROMPT))
    assert f"gave token {made.receipt.tokens[0]}" in fault.message


def test_of_two_cheats_the_first_is_named(tiny_models: TinyModels) -> None:
    made = make(tiny_models.gemma, 3, make={1: cheat(AlteredRow), 2: cheat(WrongToken)})
    assert names(fault_of(made, tiny_models.store), made, 1, LayerRange(2, 4), 9)


class TwoFaced(Engine):
    """Sends other rows to the next hop than it signs."""

    async def step(self, *args: Any, **more: Any) -> StepResult:
        honest = await super().step(*args, **more)
        rows = np.ones((len(honest.hashes), 64), dtype=np.int64)
        widths, encoded = encode_rows(rows)
        return replace(honest, widths=widths, encoded=tuple(bytes(row) for row in encoded))


def test_rows_that_changed_between_two_hops_name_both(tiny_models: TinyModels) -> None:
    """Nobody but the two can tell which of them lied, so that both are suspects."""
    made = make(tiny_models.gemma, 3, engines={1: TwoFaced})
    before, after = made.receipt.hops[1:]
    at_once = check_form(made.receipt)
    replayed = fault_of(made, tiny_models.store)
    for fault in (at_once, replayed):
        assert fault is not None
        assert fault.kind == "rows_disagree"
        assert fault.suspects == (before.node, after.node)
        assert fault.node is None
        assert fault.layers == LayerRange(2, 6)
        assert before.node in fault.message
        assert after.node in fault.message
    assert "a replay confirms" in replayed.message


def test_of_two_hops_that_disagree_the_weights_show_a_first_one_that_computed_other_rows(
    tiny_models: TinyModels,
) -> None:
    """What it sent was right, what it signed was not."""
    honest = make(tiny_models.gemma, 3)
    claims = list(honest.receipt.hops)
    claims[1] = msgspec.structs.replace(claims[1], rows_out="00" * 32)
    made = replace(honest, receipt=honest.with_claims(claims))
    at_once = check_form(made.receipt)
    assert at_once is not None
    assert at_once.suspects == (claims[1].node, claims[2].node)
    fault = fault_of(made, tiny_models.store)
    assert fault.kind == "rows_out"
    assert names(fault, made, 1, LayerRange(2, 4), None)


def test_another_prompt_is_seen_without_the_weights(tiny_models: TinyModels) -> None:
    fault = check_form(make(tiny_models.gemma, 3, workers={0: Deaf}).receipt)
    assert fault is not None
    assert fault.kind == "rows_in"
    assert fault.hop == 0


def test_weights_that_are_damaged_here_accuse_nobody(
    tiny_models: TinyModels, tmp_path: Path
) -> None:
    made = make(tiny_models.llama, 2)
    shutil.copytree(tiny_models.store.root, tmp_path / "store")
    file = tmp_path / "store" / "models" / tiny_models.llama.id / "layers.1.safetensors"
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    verdict = verify(made.receipt, ModelStore(tmp_path / "store"))
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.fault is None
    assert verdict.message.startswith("damaged model: ")
    assert "layers.1.safetensors" in verdict.message
