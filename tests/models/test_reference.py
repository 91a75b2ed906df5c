from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.models import tiny
from tests.models.conftest import Checkpoint
from unisono.errors import RequestError
from unisono.models.reference import reference_hidden, reference_logits, reference_nll
from unisono.models.safetensors import SafetensorsSource


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_reference_logits_are_those_of_transformers(
    checkpoint: Callable[[str], Checkpoint], family: str
) -> None:
    model, folder = checkpoint(family)
    logits = np.stack(list(reference_logits(SafetensorsSource(folder), tiny.IDS)))
    expected = tiny.expected_logits(model).numpy()
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "qwen2-windows"])
def test_windows_hide_distant_tokens(checkpoint: Callable[[str], Checkpoint], family: str) -> None:
    """Guards the comparison above: without windows the same weights give other logits."""
    _, folder = checkpoint(family)
    source = SafetensorsSource(folder)
    assert 0 < max(source.config.windows) < len(tiny.IDS)
    changed = [(tiny.IDS[0] + 1) % 320, *tiny.IDS[1:]]
    one, two = (np.stack(list(reference_logits(source, ids))) for ids in (tiny.IDS, changed))
    reaches_everywhere = 0 in source.config.windows
    assert (not np.allclose(one[-1], two[-1], atol=1e-6)) == reaches_everywhere


def test_losses_are_cross_entropy_without_all_logits_at_once(
    checkpoint: Callable[[str], Checkpoint],
) -> None:
    model, folder = checkpoint("smollm")
    ids = (tiny.IDS * 4)[:100]  # more than one chunk of rows
    losses = reference_nll(SafetensorsSource(folder), ids)
    expected = torch.nn.functional.cross_entropy(
        tiny.expected_logits(model, ids)[:-1], torch.tensor(ids[1:]), reduction="none"
    )
    assert len(losses) == 99
    np.testing.assert_allclose(losses, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_hidden_states_have_one_row_per_token(checkpoint: Callable[[str], Checkpoint]) -> None:
    _, folder = checkpoint("qwen3")
    assert reference_hidden(SafetensorsSource(folder), tiny.IDS[:5]).shape == (5, 64)


@pytest.mark.parametrize("ids", [[], [320], [-1]])
def test_ids_outside_the_vocabulary_are_refused(
    checkpoint: Callable[[str], Checkpoint], ids: list[int]
) -> None:
    _, folder = checkpoint("smollm")
    with pytest.raises(RequestError, match="0 to 319"):
        next(reference_logits(SafetensorsSource(folder), ids))
