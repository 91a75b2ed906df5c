import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.drawn import EXPONENTS, integers, matrices, rows, some, tensor, torch_matrix
from unisono.numerics import residual, scalar

LIMIT = (1 << 43) - 1


@some
@given(st.data(), integers(18).map(abs), st.integers(-40, 10))
def test_embedding_equals_the_specification(
    data: st.DataObject, mantissa: int, exponent: int
) -> None:
    matrix = data.draw(matrices(6, 64))
    ids = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4))
    got = residual.embed(tensor(ids), torch_matrix(matrix), (mantissa, exponent))
    assert got.tolist() == [scalar.embed(i, matrix, (mantissa, exponent)) for i in ids]


def test_embedding_reads_multipliers_as_unsigned_numbers() -> None:
    matrix = torch_matrix(scalar.Matrix([[1] * 32], [[65535]], -20))
    assert residual.embed(tensor([0]), matrix, (1, 0)).tolist() == [[65535] * 32]


@some
@given(rows(43, 6, 6), rows(62, 6, 6), EXPONENTS)
def test_the_residual_sum_equals_the_specification(
    stream: list[int], x: list[int], exponent: int
) -> None:
    got = residual.add(tensor([stream]), tensor([x]), tensor([[exponent]]))
    assert got.tolist() == [scalar.add(stream, x, exponent)]


def test_the_residual_stream_saturates_and_never_wraps() -> None:
    stream, x = tensor([[LIMIT, -LIMIT, 0, 0]]), tensor([[1, -1, 1 << 61, -(1 << 61)]])
    got = residual.add(stream, x, tensor([[-20]]))
    assert got.tolist() == [[LIMIT, -LIMIT, LIMIT, -LIMIT]]


@some
@given(st.data(), EXPONENTS)
def test_logits_equal_the_specification(data: st.DataObject, exponent: int) -> None:
    head = data.draw(matrices(7, 32))
    x = data.draw(rows(53, 32, 32))
    got = residual.logits(tensor([x]), torch.full((1, 1), exponent), torch_matrix(head))
    assert got.tolist() == [scalar.logits(x, exponent, head)]
