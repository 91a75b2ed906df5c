import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.numerics.drawn import EXPONENTS, integers, lists, many, rows, scaled, some, tensor
from unisono.numerics import scalar
from unisono.numerics.activation import gated, sigmoid

KINDS = ["silu", "gelu_tanh"]
LARGEST = (1 << 25) - 1


@many
@given(integers(25))
@example(LARGEST)
@example(-LARGEST)
@example((16 << 20) - 1)
@example(16 << 20)
@example(-(16 << 20))
def test_the_sigmoid_equals_the_specification(a: int) -> None:
    assert sigmoid(tensor([a])).tolist() == [scalar.sigmoid(a)]


@some
@given(
    st.sampled_from(KINDS),
    st.integers(1, 12).flatmap(
        lambda n: st.lists(st.tuples(rows(62, n, n), rows(62, n, n)), min_size=1, max_size=3)
    ),
    EXPONENTS,
    EXPONENTS,
)
def test_gated_activations_equal_the_specification(
    kind: str,
    batch: list[tuple[list[int], list[int]]],
    gate_exponent: int,
    up_exponent: int,
) -> None:
    got = gated(
        kind,
        tensor([gate for gate, _ in batch]),
        torch.full((len(batch), 1), gate_exponent),
        tensor([up for _, up in batch]),
        torch.full((len(batch), 1), up_exponent),
    )
    expected = [scalar.gated(kind, g, gate_exponent, u, up_exponent) for g, u in batch]
    assert lists(got) == scaled(expected)


@some
@given(st.sampled_from(KINDS), rows(28, 6, 6))
def test_gated_activations_equal_the_specification_at_usual_exponents(
    kind: str, gate: list[int]
) -> None:
    up = [1 << 20] * 6
    got = gated(kind, tensor([gate]), tensor([[-22]]), tensor([up]), tensor([[-20]]))
    assert lists(got) == scaled([scalar.gated(kind, gate, -22, up, -20)])


def test_the_sigmoid_is_close_to_real_arithmetic_even_deep_in_the_tail() -> None:
    a = torch.cat([torch.arange(-(1 << 25) + 1, 1 << 25, 9973), torch.arange(-3000, 3000)])
    x = a.double() * 2.0**-20
    real = torch.sigmoid(x)
    got = sigmoid(a).double() * 2.0**-38
    # relative: log2(e) is 7.1e-6 short per unit, the distance has 16 fraction bits, the two
    # tables interpolate to 6e-8 and 4e-7; absolute: the last of 38 bits
    relative = math.log(2) * (7.2e-6 * x.abs() + 2.0**-17) + 5e-7
    assert bool(((got - real).abs() <= real * relative + 2.0**-38).all())


def test_the_sigmoid_never_falls() -> None:
    a = torch.arange(-(1 << 25) + 1, 1 << 25, 4099)
    assert bool((sigmoid(a).diff() >= 0).all())


def test_opposite_arguments_have_sigmoids_that_sum_to_nearly_one() -> None:
    a = torch.arange(0, 1 << 25, 5003)
    total = (sigmoid(a) + sigmoid(-a)).double() * 2.0**-38
    assert float((total - 1).abs().max()) < 2e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gated_activations_are_close_to_real_arithmetic(kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    gate = torch.randn(8, 256, generator=generator, dtype=torch.float64) * 3
    up = torch.randn(8, 256, generator=generator, dtype=torch.float64)
    exponent = torch.full((8, 1), -30)
    row, row_exponent = gated(
        kind, (gate * 2.0**30).round().long(), exponent, (up * 2.0**30).round().long(), exponent
    )
    if kind == "silu":
        real, argument = torch.nn.functional.silu(gate), gate
    else:
        real = torch.nn.functional.gelu(gate, approximate="tanh")
        argument = 2 * math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    error = (row * 2.0 ** row_exponent.double() - real * up).abs()
    # the sigmoid's relative error (an argument has 20 fraction bits, the cubic some more), and
    # the gate's 24 bits
    relative = math.log(2) * (7.2e-6 * argument.abs() + 2.0**-17) + 5e-7 + 2.0**-15
    largest = gate.abs().amax(-1, keepdim=True) * up.abs().amax(-1, keepdim=True)
    assert bool((error <= (real * up).abs() * relative + largest * 2.0**-23).all())


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_without_any_positive_gate_keeps_its_precision(kind: str) -> None:
    gate = tensor([[-3 << 20, (-7 << 20) // 2, -4 << 20]])
    row, exponent = gated(kind, gate, tensor([[-20]]), tensor([[1, 1, 1]]), tensor([[0]]))
    real = {"silu": torch.nn.functional.silu, "gelu_tanh": _gelu}[kind](gate * 2.0**-20)
    got = row * 2.0 ** exponent.double()
    assert torch.allclose(got, real.double(), rtol=1e-4, atol=0)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x.double(), approximate="tanh")
