"""Which step types judge which operator of the specification.

Every operator of `numerics.scalar` that decides what a hop signs is here; a test fails when the
decoder uses one that is not.
"""

from __future__ import annotations

from unisono.verification.fraud import attention_steps, layer_steps, sampling_steps
from unisono.verification.fraud.steps import STEPS, Step

_MODULES = attention_steps, layer_steps, sampling_steps
"""Defining their classes fills `STEPS`."""

OPERATORS: dict[str, tuple[str, ...]] = {
    "embed": ("token", "embed"),
    "rms_norm": ("shift", "norm_inverse", "norm"),
    "reduce_row": ("shift", "requantise"),
    "linear": ("shift", "requantise", "product", "exponent", "bias"),
    "rotation": ("rotation",),
    "rotate": ("shift", "turn", "requantise", "exponent"),
    "attend": (
        "score",
        "largest",
        "probability",
        "value_exponent",
        "weight",
        "divisor",
        "mixed",
        "attended",
    ),
    "add": ("add",),
    "gated": ("shift", "gate", "gated"),
    "logits": ("shift", "requantise", "logit"),
    "adjust": ("count", "adjust"),
    "choose": (
        "largest",
        "distance",
        "likelihood",
        "rank",
        "top_k",
        "mass",
        "nucleus",
        "noisy",
        "winner",
        "chosen",
    ),
}

BINDING = ("boundary", "token", "chosen")
"""Steps that compare with what was signed."""

NOT_SIGNED = ("log_probabilities", "likeliest")
"""Operators whose results no claim covers: log probabilities are reported, not vouched for."""

PARTS = (
    "align",
    "bit_length",
    "exact_sum",
    "exp2_negative",
    "in_range",
    "log2_fixed",
    "philox",
    "philox4x32",
    "product",
    "round_shift",
    "sigmoid",
    "square_root",
)
"""Building blocks: their results are inside of a step."""


def step_types() -> dict[str, type[Step]]:
    """Every step type by name."""
    return dict(STEPS)
