"""Integers that follow from a configuration alone, from rational arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from unisono.errors import UnsupportedModel
from unisono.models.config import DecoderConfig, RopeConfig
from unisono.models.rope import rope_attention_factor, rope_frequencies
from unisono.numerics.tables import ln2, pi
from unisono.numerics.tensors import EPSILON_BITS, FACTOR_BITS, TURN_BITS


@dataclass(frozen=True, slots=True)
class Constants:
    """Mantissas and exponents; frequencies are turns per position with 42 fraction bits."""

    epsilon: tuple[int, int]
    embedding_scale: tuple[int, int]
    score_scale: tuple[int, int]
    frequencies: tuple[int, ...]
    factor: int
    local_frequencies: tuple[int, ...]
    local_factor: int


def constants(config: DecoderConfig) -> Constants:
    """Derive the constants exactly (rational arithmetic, rounded once).

    Raises:
        UnsupportedModel: a frequency or a factor is outside the proven range.
    """
    log2_e = Fraction(1 << 160, ln2())
    embedding = square_root(config.hidden_size) if config.scale_embedding else Fraction(1)
    return Constants(
        epsilon=fraction_to_fixed(Fraction(config.norm_epsilon), EPSILON_BITS),
        embedding_scale=fraction_to_fixed(embedding, 17),
        score_scale=fraction_to_fixed(log2_e * inverse_square_root(config.query_scalar), 20),
        frequencies=_turns(config.rope, config.head_size),
        factor=_factor(config.rope),
        local_frequencies=_turns(config.local_rope, config.head_size),
        local_factor=_factor(config.local_rope),
    )


def _turns(rope: RopeConfig, head_size: int) -> tuple[int, ...]:
    per_turn = Fraction(1 << 160, 2 * pi())
    exact = [Fraction(f) * per_turn * (1 << TURN_BITS) for f in rope_frequencies(rope, head_size)]
    if any(not 0 <= f <= 1 << TURN_BITS for f in exact):
        raise UnsupportedModel("a rotary frequency exceeds one turn per position")
    return tuple(round(f) for f in exact)


def _factor(rope: RopeConfig) -> int:
    exact = Fraction(rope_attention_factor(rope))
    if not 0 < exact < 16:
        raise UnsupportedModel(f"a rotary factor of {float(exact):g}: below 16 is expected")
    return round(exact * (1 << FACTOR_BITS))


def fraction_to_fixed(value: Fraction, bits: int) -> tuple[int, int]:
    """The (mantissa, exponent) nearest to a positive number, mantissa of exactly `bits` bits.

    Raises:
        UnsupportedModel: the number is not positive.
    """
    if value <= 0:
        raise UnsupportedModel(f"a constant of the model is {value}: a positive one was expected")
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - bits
    while value / Fraction(2) ** exponent >= 1 << bits:
        exponent += 1
    while value / Fraction(2) ** exponent < 1 << (bits - 1):
        exponent -= 1
    scaled = value / Fraction(2) ** exponent
    mantissa = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    if mantissa == 1 << bits:
        return mantissa >> 1, exponent + 1
    return mantissa, exponent


def inverse_square_root(value: int, bits: int = 80) -> Fraction:
    """`1 / sqrt(value)` of a positive integer to `bits` fraction bits, from integer square roots.

    Raises:
        UnsupportedModel: the integer is not positive.
    """
    if value <= 0:
        raise UnsupportedModel(f"{value} has no inverse square root: expected a positive integer")
    return Fraction(math.isqrt((1 << (2 * bits)) // value), 1 << bits)


def square_root(value: int, bits: int = 80) -> Fraction:
    """`sqrt(value)` to `bits` fraction bits, from integer square roots."""
    return Fraction(math.isqrt(value << (2 * bits)), 1 << bits)
