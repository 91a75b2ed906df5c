"""The main path with the default model, as a newcomer runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.program import answered, unisono


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_any_number_of_nodes_gives_the_same_tokens_and_a_receipt_that_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("UNISONO_CACHE")  # the default model is converted once per user
    one, three = (
        answered("run", "The sea is", "--nodes", nodes, "--max-tokens", "8") for nodes in "13"
    )
    assert one["token_ids"] == three["token_ids"]
    assert one["text"] == three["text"]
    assert len(three["receipt"]["hops"]) == 3
    assert one["verdict"] == three["verdict"] == "VALID"
    assert unisono("verify", three["receipt_path"]).returncode == 0
    receipt = three["receipt"]
    receipt["tokens"][0] += 1
    altered = tmp_path / "altered.json"
    altered.write_text(json.dumps(receipt))
    refused = unisono("verify", altered)
    assert refused.returncode == 1
    assert refused.stdout.startswith("INVALID")
    assert receipt["hops"][-1]["node"][:16] in refused.stdout
