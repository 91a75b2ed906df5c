"""Frequencies of rotary position embeddings as exact decimals.

A canonical table of angles must be the same on every machine, and floating-point powers are not.
Python's decimal arithmetic is: `ln`, `exp` and the four operations are correctly rounded at a
stated precision.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, localcontext

from unisono.errors import UnsupportedModel
from unisono.models.config import RopeConfig

PRECISION = 50
"""Significant digits of every result."""

_WORKING = Context(prec=PRECISION + 14, rounding=ROUND_HALF_EVEN)
_RESULT = Context(prec=PRECISION, rounding=ROUND_HALF_EVEN)
_ONE = Decimal(1)
_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620900")


def rope_frequencies(rope: RopeConfig, head_size: int) -> list[Decimal]:
    """Radians per position of each of the `head_size / 2` rotated pairs, fastest first.

    Each has 50 significant digits. Published methods: Su et al. 2021 (the plain form), Llama 3.1
    (`llama3`), YaRN (Peng et al. 2023) with the rounded ramp bounds of its authors' code.

    Raises:
        UnsupportedModel: a parameter out of its range, or a wrong number of explicit factors.
    """
    with localcontext(_WORKING):
        theta = _positive(rope.theta, "rope base")
        plain = [(-theta.ln() * (2 * i) / head_size).exp() for i in range(head_size // 2)]
        if rope.scaling == "linear":
            factor = _positive(rope.factor, "rope factor")
            scaled = [value / factor for value in plain]
        elif rope.scaling == "llama3":
            scaled = [_llama3(rope, value) for value in plain]
        elif rope.scaling == "yarn":
            scaled = _yarn(rope, theta, plain, head_size)
        elif rope.scaling == "factors":
            if len(rope.factors) != len(plain):
                raise UnsupportedModel(
                    f"{len(rope.factors)} rope factors; a head of {head_size} needs {len(plain)}"
                )
            divisors = [_positive(value, "rope factor") for value in rope.factors]
            scaled = [value / by for value, by in zip(plain, divisors, strict=True)]
        else:
            scaled = plain
    return [_RESULT.plus(value) for value in scaled]


def rope_attention_factor(rope: RopeConfig) -> Decimal:
    """What cosine and sine are multiplied by: YaRN's attention factor, else 1.

    Raises:
        UnsupportedModel: not a positive number.
    """
    return _positive(rope.attention_factor, "rope attention factor")


def yarn_attention_factor(
    factor: str, mscale: str | None = None, mscale_all: str | None = None
) -> str:
    """YaRN's default attention factor, 0.1 ln(factor) + 1, as 20 significant digits.

    `mscale` and `mscale_all` (DeepSeek's variant) weigh the logarithm above and below a fraction
    bar; both or none count.

    Raises:
        UnsupportedModel: `factor` is not a positive number.
    """
    with localcontext(_WORKING):
        scale = _positive(factor, "rope factor")

        def weighted(weight: Decimal) -> Decimal:
            return _ONE if scale <= 1 else weight * scale.ln() / 10 + 1

        if mscale is not None and mscale_all is not None:
            value = weighted(Decimal(mscale)) / weighted(Decimal(mscale_all))
        else:
            value = weighted(_ONE)
        return format(Context(prec=20).plus(value).normalize(), "f")


def _positive(text: str, what: str) -> Decimal:
    try:
        value = Decimal(text)
    except ArithmeticError as error:
        raise UnsupportedModel(f"{what} is '{text}': a decimal number was expected") from error
    if not value.is_finite() or value <= 0:
        raise UnsupportedModel(f"{what} is '{text}': a positive number was expected")
    return value


def _llama3(rope: RopeConfig, frequency: Decimal) -> Decimal:
    factor = _positive(rope.factor, "rope factor")
    low = _positive(rope.low_frequency_factor, "low frequency factor")
    high = _positive(rope.high_frequency_factor, "high frequency factor")
    turns = rope.original_context * frequency / (2 * _PI)  # rotations within the old context
    if turns < low:
        return frequency / factor
    if turns > high or high <= low:
        return frequency
    smooth = (turns - low) / (high - low)
    return (_ONE - smooth) * frequency / factor + smooth * frequency


def _yarn(rope: RopeConfig, theta: Decimal, plain: list[Decimal], size: int) -> list[Decimal]:
    factor = _positive(rope.factor, "rope factor")
    if rope.original_context < 1:
        raise UnsupportedModel("yarn rope scaling needs the original context length")

    def bound(rotations: str) -> Decimal:
        turns = _positive(rotations, "yarn beta") * 2 * _PI
        return size * (rope.original_context / turns).ln() / (2 * theta.ln())

    low = max(bound(rope.beta_fast).to_integral_value(ROUND_FLOOR), Decimal(0))
    high = min(bound(rope.beta_slow).to_integral_value(ROUND_CEILING), Decimal(size - 1))
    width = high - low if high != low else Decimal("0.001")
    scaled: list[Decimal] = []
    for i, frequency in enumerate(plain):
        ramp = min(max((i - low) / width, Decimal(0)), _ONE)
        scaled.append(frequency / factor * ramp + frequency * (_ONE - ramp))
    return scaled
