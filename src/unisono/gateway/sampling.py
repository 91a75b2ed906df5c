"""From OpenAI's decimal numbers to the integers that are part of the request's hash."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from fractions import Fraction

from unisono.errors import RequestError
from unisono.types import Q16, Sampling, digest

SEED_BITS = 63
MAX_BIASES = 1024


def fixed(value: float, name: str, low: float, high: float) -> int:
    """`value` with 16 fraction bits, rounded half up.

    Raises:
        RequestError: `value` is not a number from `low` to `high`; names the field `name`.
    """
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(
            f"'{name}' is {value:g}: expected a number from {low:g} to {high:g}", param=name
        )
    # Through a fraction, because adding a half to a float may itself round up.
    return math.floor(Fraction(value) * Q16 + Fraction(1, 2))


def whole(value: int, name: str, low: int, high: int) -> int:
    """`value` as it is.

    Raises:
        RequestError: `value` is not from `low` to `high`; names the field `name`.
    """
    if not low <= value <= high:
        raise RequestError(
            f"'{name}' is {value}: expected a whole number from {low} to {high}", param=name
        )
    return value


def to_sampling(
    *,
    vocabulary_size: int,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    frequency_penalty: float | None = None,
    logit_bias: Mapping[str, float] | None = None,
    seed: int | None = None,
) -> Sampling:
    """The canonical sampling rule. What is absent has OpenAI's default; an absent seed is drawn.

    Raises:
        RequestError: a number is out of its range; names the field.
    """
    if top_k is None or top_k == -1:  # -1 is how other servers write "off"
        top_k = 0
    return Sampling(
        temperature=fixed(1.0 if temperature is None else temperature, "temperature", 0, 2),
        top_k=min(whole(top_k, "top_k", 0, 1 << 31), vocabulary_size),
        top_p=fixed(1.0 if top_p is None else top_p, "top_p", 0, 1),
        min_p=fixed(min_p or 0, "min_p", 0, 1),
        repetition_penalty=fixed(
            1.0 if repetition_penalty is None else repetition_penalty,
            "repetition_penalty",
            0.01,
            10,
        ),
        presence_penalty=fixed(presence_penalty or 0, "presence_penalty", -2, 2),
        frequency_penalty=fixed(frequency_penalty or 0, "frequency_penalty", -2, 2),
        logit_bias=_biases(logit_bias or {}, vocabulary_size),
        seed=(
            secrets.randbits(SEED_BITS)
            if seed is None
            else whole(seed, "seed", 0, (1 << SEED_BITS) - 1)
        ),
    )


def seed_of_sample(seed: int, sample: int) -> int:
    """The seed of the `sample`-th of `n` choices: 63 bits. The first choice keeps `seed`."""
    if sample == 0:
        return seed
    hashed = digest("sample/1", seed.to_bytes(8, "little"), sample.to_bytes(4, "little"))
    return int.from_bytes(hashed[:8], "little") >> (64 - SEED_BITS)


def _biases(biases: Mapping[str, float], vocabulary_size: int) -> tuple[tuple[int, int], ...]:
    if len(biases) > MAX_BIASES:
        raise RequestError(
            f"'logit_bias' has {len(biases)} entries: expected at most {MAX_BIASES}",
            param="logit_bias",
        )
    by_token: dict[int, int] = {}
    for key, bias in biases.items():
        # `isdecimal` admits digits of other scripts, and `int` admits spaces and underscores.
        if not (key.isascii() and key.isdecimal()) or len(key) > 12:
            raise RequestError(
                f"'logit_bias' has the key '{key[:40]}': expected a token id", param="logit_bias"
            )
        token = whole(int(key), "logit_bias", 0, vocabulary_size - 1)
        by_token[token] = fixed(bias, "logit_bias", -100, 100)
    return tuple(sorted(by_token.items()))
