import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.numerics.drawn import lists, many, scaled, some, tensor
from unisono.numerics import scalar
from unisono.numerics.softmax import attend, attend_causal, exp2_negative

SCALE = (756388, -22)
"""log2(e) / sqrt(64): a mantissa of 20 bits."""


@many
@given(st.integers(0, 41 << 16), st.integers(1, 38))
def test_negative_powers_of_two_equal_the_specification(distance: int, bits: int) -> None:
    assert exp2_negative(tensor([distance]), bits).tolist() == [
        scalar.exp2_negative(distance, bits)
    ]


def test_negative_powers_of_two_never_rise_and_are_close_to_real_ones() -> None:
    distance = torch.arange(0, 40 << 16, 37)
    got = exp2_negative(distance, 38)
    assert bool((got.diff() <= 0).all())
    real = torch.exp2(-distance.double() * 2.0**-16)
    # interpolation (ln 2 / 1024)**2 / 8 and the roundings of the entry, the step and the shift
    bound = real * (5.8e-8 + 2.0**-37) + 2.0**-39
    assert bool(((got.double() * 2.0**-38 - real).abs() <= bound).all())


def _drawn(
    seed: int, n: int, t: int, heads: int, kv_heads: int, size: int, kind: str
) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)

    def mantissas(*shape: int) -> Tensor:
        drawn = torch.randint(-32767, 32768, shape, generator=g)
        if kind == "extreme":
            return drawn.sign() * 32767
        return drawn * (torch.rand(shape, generator=g) > 0.3)

    low, high = {"usual": (-14, -9), "extreme": (-40, 20), "wide": (-200, 100)}[kind]

    def exponents(*shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g)

    allowed = torch.rand(n, t, generator=g) > 0.4
    allowed[torch.arange(n), torch.randint(0, t, (n,), generator=g)] = True
    return (
        mantissas(n, heads, size),
        exponents(n, heads, 1),
        mantissas(t, kv_heads, size).to(torch.int16),
        exponents(t, kv_heads).to(torch.int16),
        mantissas(t, kv_heads, size).to(torch.int16),
        exponents(t, kv_heads).to(torch.int16),
        allowed,
    )


def _specified(
    q: Tensor, q_e: Tensor, k: Tensor, k_e: Tensor, v: Tensor, v_e: Tensor, allowed: Tensor
) -> list[scalar.Scaled]:
    def stored(rows: Tensor, exponents: Tensor) -> list[list[scalar.Scaled]]:
        pairs = zip(rows.tolist(), exponents.tolist(), strict=True)
        return [list(zip(heads, e, strict=True)) for heads, e in pairs]

    keys, values = stored(k, k_e), stored(v, v_e)
    out: list[scalar.Scaled] = []
    for row, queries in enumerate(stored(q, q_e.squeeze(-1))):
        seen = allowed[row].nonzero().squeeze(-1).tolist()
        out.append(
            scalar.attend(queries, [keys[i] for i in seen], [values[i] for i in seen], SCALE)
        )
    return out


@some
@given(
    st.integers(0, 1 << 32),
    st.integers(1, 4),
    st.integers(1, 7),
    st.sampled_from([(1, 1), (2, 1), (4, 2), (3, 3), (8, 2), (8, 1)]),
    st.sampled_from([1, 2, 8, 32]),
    st.sampled_from(["usual", "extreme", "wide"]),
)
def test_attention_equals_the_specification_over_the_allowed_positions(
    seed: int, n: int, t: int, heads: tuple[int, int], size: int, kind: str
) -> None:
    drawn = _drawn(seed, n, t, *heads, size, kind)
    assert lists(attend(*drawn, SCALE)) == scaled(_specified(*drawn))


@some
@given(
    st.integers(0, 1 << 32),
    st.integers(1, 5),
    st.integers(0, 6),
    st.integers(0, 4),
    st.sampled_from([(1, 1), (4, 2), (8, 1)]),
    st.sampled_from([32, 64]),
    st.sampled_from(["usual", "extreme", "wide"]),
)
def test_causal_attention_equals_the_specification_with_and_without_a_window(
    seed: int, n: int, start: int, window: int, heads: tuple[int, int], size: int, kind: str
) -> None:
    q, q_e, *stored, _ = _drawn(seed, n, start + n, *heads, size, kind)
    first = max(0, start - window + 1) if window else 0
    at, seen = torch.arange(start, start + n)[:, None], torch.arange(start + n)
    allowed = (seen <= at) & ((at - seen < window) if window else True)
    k, k_e, v, v_e = (x[first:] for x in stored)
    got = attend_causal((q, q_e), (k, k_e), (v, v_e), start, first, window, SCALE)
    assert lists(got) == scaled(_specified(q, q_e, *stored, allowed))


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256, 512])
def test_the_largest_scores_of_every_head_size_equal_the_specification(size: int) -> None:
    for seed in range(3):
        q, q_e, k, k_e, v, v_e, _ = _drawn(seed, 3, 4, 2, 1, size, "extreme")
        q, k[0] = q.abs(), 32767  # one key reaches the largest product there is
        q_e, k_e = q_e * 0 - 20, k_e * 0 - 25
        got = attend_causal((q, q_e), (k, k_e), (v, v_e), 1, 0, 0, SCALE)
        allowed = torch.arange(4) <= torch.arange(1, 4)[:, None]
        assert lists(got) == scaled(_specified(q, q_e, k, k_e, v, v_e, allowed))


def test_the_largest_sums_of_a_long_context_equal_the_specification() -> None:
    t = 4096
    for v in (32767, -32767):
        drawn = (
            torch.full((1, 1, 1), 32767),
            torch.full((1, 1, 1), -30),
            torch.full((t, 1, 1), 32767, dtype=torch.int16),
            torch.full((t, 1), -15, dtype=torch.int16),
            torch.full((t, 1, 1), v, dtype=torch.int16),
            torch.full((t, 1), -9, dtype=torch.int16),
            torch.ones(1, t, dtype=torch.bool),
        )
        got, exponent = attend(*drawn, SCALE)
        assert lists((got, exponent)) == scaled(_specified(*drawn))
        assert got.item() * 2.0 ** exponent.item() == pytest.approx(v * 2.0**-9, rel=1e-6)


def test_masked_positions_do_not_change_a_byte() -> None:
    q, q_e, k, k_e, v, v_e, _ = _drawn(3, 2, 9, 4, 2, 32, "usual")
    seen = torch.zeros(2, 9, dtype=torch.bool)
    seen[:, 2:6] = True
    k_e[8], v_e[7], v[8] = 90, 90, 32767
    all_of_them = attend(q, q_e, k, k_e, v, v_e, seen, SCALE)
    part = slice(2, 6)
    only = attend(q, q_e, k[part], k_e[part], v[part], v_e[part], seen[:, part], SCALE)
    assert lists(all_of_them) == lists(only)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    q, q_e, *stored, allowed = _drawn(4, 5, 11, 4, 1, 16, "usual")
    together = attend(q, q_e, *stored, allowed, SCALE)
    for i in range(5):
        alone = attend(q[i : i + 1], q_e[i : i + 1], *stored, allowed[i : i + 1], SCALE)
        assert alone[0].tolist() == together[0][i : i + 1].tolist()
        assert alone[1].tolist() == together[1][i : i + 1].tolist()


def test_a_single_position_passes_its_value_through() -> None:
    q, q_e, k, k_e, v, v_e, _ = _drawn(5, 1, 1, 2, 1, 16, "usual")
    row, exponent = attend(q, q_e, k, k_e, v, v_e, torch.ones(1, 1, dtype=torch.bool), SCALE)
    want = torch.cat([v[0, 0], v[0, 0]]).double() * 2.0 ** v_e.item()
    assert torch.equal(row[0] * 2.0 ** exponent.double()[0], want)


@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
def test_attention_is_close_to_real_arithmetic(spread: float) -> None:
    n, t, heads, kv_heads, size = 6, 200, 4, 2, 64
    g = torch.Generator().manual_seed(9)

    def stored(*shape: int, by: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        real = torch.randn(*shape, generator=g, dtype=torch.float64) * by
        exponent = torch.frexp(real.abs().amax(-1, keepdim=True))[1].long() - 15
        row = (real * 2.0 ** -exponent.double()).round().clamp(-32767, 32767).long()
        return row, exponent, row * 2.0 ** exponent.double()

    q, q_e, q_real = stored(n, heads, size, by=spread)
    k, k_e, k_real = stored(t, kv_heads, size)
    v, v_e, v_real = stored(t, kv_heads, size)
    allowed = torch.rand(n, t, generator=g) > 0.2
    got, exponent = attend(q, q_e, k, k_e.squeeze(-1), v, v_e.squeeze(-1), allowed, SCALE)

    k_all, v_all = k_real.repeat_interleave(2, 1), v_real.repeat_interleave(2, 1)
    scores = torch.einsum("nhd,thd->hnt", q_real, k_all) / math.sqrt(size)
    p = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    real = torch.einsum("hnt,thd->nhd", p, v_all).reshape(n, -1)
    # relative error of a probability: scores of 2**-17 twice, the scale's 20 bits times the
    # score, and the table; absolute 2**-29 each; the divisor keeps 19 bits or more
    score = float(scores.abs().max()) / math.log(2)
    relative = math.log(2) * (2.0**-16 + 2 * score * 2.0**-20) + 6e-8
    bound = float(v_real.abs().max()) * (2 * relative + t * 2.0**-27 + 2.0**-18)
    assert float((got * 2.0 ** exponent.double() - real).abs().max()) <= bound
