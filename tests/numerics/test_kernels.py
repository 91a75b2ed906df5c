import pytest
import torch

from unisono.errors import UnisonoError
from unisono.numerics import kernels


def _drawn(m: int, n: int, groups: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-32767, 32768, (m, 32 * groups), generator=generator)
    values = torch.randint(-127, 128, (n, 32 * groups), generator=generator, dtype=torch.int8)
    multipliers = torch.randint(0, 65536, (n, groups), generator=generator, dtype=torch.int32)
    return x, values, multipliers


def _plain(x: torch.Tensor, values: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    """The integer product by elementwise multiplication and one int64 sum."""
    weights = values.long() * multipliers.long().repeat_interleave(32, -1)
    return torch.stack([(row * weights).sum(-1) for row in x])


SHAPES = [(1, 1, 1), (1, 3, 2), (2, 1, 5), (3, 17, 3), (7, 64, 2), (33, 5, 4), (1, 640, 20)]


@pytest.mark.parametrize(("m", "n", "groups"), SHAPES)
def test_the_row_kernel_equals_the_plain_integer_product(m: int, n: int, groups: int) -> None:
    x, values, multipliers = _drawn(m, n, groups, seed=m * n * groups)
    got = kernels.row_product(x, values, multipliers.to(torch.uint16))
    assert torch.equal(got, _plain(x, values, multipliers))


def test_the_row_kernel_is_exact_at_the_extremes_of_every_input() -> None:
    for x_edge in (32767, -32767):
        for value in (127, -127, -128):
            for multiplier in (0, 1, 32768, 65535):
                x = torch.full((2, 4096), x_edge)
                values = torch.full((3, 4096), value, dtype=torch.int8)
                multipliers = torch.full((3, 128), multiplier, dtype=torch.int32)
                got = kernels.row_product(x, values, multipliers.to(torch.uint16))
                assert bool((got == x_edge * value * multiplier * 4096).all())


def test_the_parallel_kernel_gives_the_same_product(monkeypatch: pytest.MonkeyPatch) -> None:
    x, values, multipliers = _drawn(6, 130, 4, seed=3)
    narrow = multipliers.to(torch.uint16)
    monkeypatch.setattr(kernels.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(kernels, "_PARALLEL_FROM", 1)
    parallel = kernels.row_product(x, values, narrow)
    monkeypatch.setattr(kernels, "_PARALLEL_FROM", 1 << 60)
    assert torch.equal(parallel, kernels.row_product(x, values, narrow))
    assert torch.equal(parallel, _plain(x, values, multipliers))


def test_rows_that_are_not_contiguous_are_multiplied_as_they_read() -> None:
    x, values, multipliers = _drawn(4, 9, 2, seed=5)
    turned = x.t().contiguous().t()
    got = kernels.row_product(turned, values, multipliers.to(torch.uint16))
    assert torch.equal(got, _plain(x, values, multipliers))


def test_the_self_test_passes_here() -> None:
    kernels.self_test()


def test_the_self_test_refuses_a_machine_whose_products_are_not_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = kernels.row_product
    monkeypatch.setattr(kernels, "row_product", lambda *a: exact(*a) + 1)
    with pytest.raises(UnisonoError, match="row kernel is not exact"):
        kernels.self_test()
