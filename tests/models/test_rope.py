from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.models import tiny
from unisono.errors import UnsupportedModel
from unisono.models.config import RopeConfig
from unisono.models.rope import rope_attention_factor, rope_frequencies, yarn_attention_factor
from unisono.models.safetensors_config import decoder_config

REAL: dict[str, dict[str, Any]] = {
    "llama 3.1": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "llama 3.2": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "qwen yarn": {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
    "yarn with its own factor": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 1.25,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
    },
    "deepseek yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("head_size", [64, 128])
def test_frequencies_are_those_of_transformers(name: str, head_size: int) -> None:
    document = tiny.SHAPE | {
        "architectures": ["LlamaForCausalLM"],
        "rope_parameters": dict(REAL[name]),
        "head_dim": head_size,
        "max_position_embeddings": 131072,
    }
    rope = decoder_config(document, "config.json").rope
    config = LlamaConfig(**(tiny.SHAPE | document))
    expected, factor = ROPE_INIT_FUNCTIONS[REAL[name]["rope_type"]](config, device="cpu")
    mine = [float(value) for value in rope_frequencies(rope, head_size)]
    np.testing.assert_allclose(mine, expected.numpy(), rtol=3e-6)
    assert float(rope_attention_factor(rope)) == pytest.approx(factor, rel=1e-12)


def test_frequencies_have_fifty_exact_digits() -> None:
    """10000 ** (-1/2) and its powers are known without computing."""
    frequencies = rope_frequencies(RopeConfig(), 8)
    assert frequencies == [Decimal(1), Decimal("0.1"), Decimal("0.01"), Decimal("0.001")]
    root = rope_frequencies(RopeConfig(theta="2"), 4)[1]
    assert str(root) == "0.70710678118654752440084436210484903928483593768847"


def test_explicit_factors_divide() -> None:
    rope = RopeConfig(scaling="factors", factors=("1", "2", "4", "8"))
    assert rope_frequencies(rope, 8)[3] == Decimal("0.000125")
    with pytest.raises(UnsupportedModel, match="needs 8"):
        rope_frequencies(rope, 16)


@given(st.integers(2, 10**7), st.sampled_from([32, 64, 96, 128, 256]))
def test_frequencies_fall_from_one(theta: int, head_size: int) -> None:
    values = rope_frequencies(RopeConfig(theta=str(theta)), head_size)
    assert values[0] == 1
    assert len(values) == head_size // 2
    assert all(a > b > 0 for a, b in pairwise(values))


def test_the_default_attention_factor_of_yarn() -> None:
    assert yarn_attention_factor("4") == "1.1386294361119890619"
    assert yarn_attention_factor("0.5") == "1"


@pytest.mark.parametrize("theta", ["0", "-1", "NaN", "many"])
def test_impossible_bases_are_refused(theta: str) -> None:
    with pytest.raises(UnsupportedModel, match="rope base"):
        rope_frequencies(RopeConfig(theta=theta), 8)
