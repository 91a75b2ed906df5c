import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.drawn import EXPONENTS, rows, some, tensor
from unisono.numerics import scalar
from unisono.numerics.rotary import rotate, rotation

TURN = 1 << 42


@some
@given(
    st.lists(st.integers(0, (1 << 18) - 1), min_size=1, max_size=4),
    st.lists(st.integers(0, TURN), min_size=1, max_size=4),
    st.one_of(st.just(1 << 16), st.integers(1, (1 << 20) - 1)),
)
def test_a_rotation_equals_the_specification(
    positions: list[int], frequencies: list[int], factor: int
) -> None:
    cosines, sines = rotation(tensor(positions), tensor(frequencies), factor)
    expected = [scalar.rotation(p, frequencies, factor) for p in positions]
    assert cosines.tolist() == [c for c, _ in expected]
    assert sines.tolist() == [s for _, s in expected]


@some
@given(
    st.lists(rows(62, 8, 8), min_size=3, max_size=3),
    EXPONENTS,
    st.integers(0, (1 << 18) - 1),
    st.sampled_from([1 << 16, (1 << 20) - 1, 3]),
)
def test_rotating_heads_equals_the_specification(
    heads: list[list[int]], exponent: int, position: int, factor: int
) -> None:
    frequencies = [TURN // 6, TURN // 60, TURN // 601, 12345]
    turn = rotation(tensor([position]), tensor(frequencies), factor)
    got, exponents = rotate(tensor([heads]), torch.full((1, 3, 1), exponent), *turn)
    scalar_turn = scalar.rotation(position, frequencies, factor)
    expected = [scalar.rotate(head, exponent, *scalar_turn) for head in heads]
    assert got.tolist() == [[row for row, _ in expected]]
    assert exponents.tolist() == [[[e] for _, e in expected]]


def test_cosine_and_sine_are_close_to_real_arithmetic_at_any_position() -> None:
    frequencies = [round(TURN / (2 * math.pi) * 10000 ** (-i / 16)) for i in range(16)]
    positions = torch.cat([torch.arange(500), (1 << 18) - 1 - torch.arange(500)])
    cosines, sines = rotation(positions, tensor(frequencies), 1 << 16)
    phase = (positions[:, None] * tensor(frequencies)) % TURN
    angle = phase.double() * (2 * math.pi / TURN)
    # linear interpolation (2 π/4096)**2 / 8, two roundings of 2**-23, and 2**-28 of a turn
    bound = (2 * math.pi / 4096) ** 2 / 8 + 2 * 2.0**-23 + 2 * math.pi * 2.0**-28
    assert float((cosines * 2.0**-22 - angle.cos()).abs().max()) < bound
    assert float((sines * 2.0**-22 - angle.sin()).abs().max()) < bound


def test_a_whole_turn_changes_nothing() -> None:
    frequencies = tensor([TURN // 4, TURN // 8])
    now, later = (
        rotation(tensor([1]), frequencies, 1 << 16),
        rotation(tensor([9]), frequencies, 1 << 16),
    )
    assert torch.equal(now[0], later[0])
    assert torch.equal(now[1], later[1])
    assert [now[0][0, 0].item(), now[1][0, 0].item()] == [0, 1 << 22]


def test_position_zero_leaves_a_head_as_it_is() -> None:
    head = tensor([[[16384, -20000, 32767, 5]]])
    turn = rotation(tensor([0]), tensor([TURN // 7, TURN // 70]), 1 << 16)
    got, exponent = rotate(head, tensor([[[3]]]), *turn)
    assert (got.tolist(), exponent.tolist()) == (head.tolist(), [[[3]]])


def test_a_rotated_head_is_close_to_real_arithmetic() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 2, 32, generator=generator, dtype=torch.float64)
    frequencies = [round(TURN / (2 * math.pi) * 10000 ** (-i / 16)) for i in range(16)]
    positions = torch.arange(64) * 97
    mantissas = (x * 2.0**22).round().long()
    got, exponent = rotate(
        mantissas, torch.full((64, 2, 1), -22), *rotation(positions, tensor(frequencies), 1 << 16)
    )
    angle = positions[:, None].double() * tensor(frequencies) * (2 * math.pi / TURN)
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :16], x[..., 16:]
    real = torch.cat([a * c - b * s, b * c + a * s], -1)
    error = (got * 2.0 ** exponent.double() - real).abs().amax(-1)
    largest = real.abs().amax(-1)
    # half a unit in 15 bits of the largest element, and the errors of cosine, sine and input
    assert bool((error <= largest * (2.0**-15 + 4 * 6e-7 + 2.0**-22)).all())
