import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import pytest
import torch

from unisono.numerics import tables

CASES: list[tuple[Callable[[], Sequence[int]], int, Callable[[int], Any]]] = [
    (tables.exp2_values, 38, lambda k: mpmath.power(2, -mpmath.mpf(k) / 1024)),
    (tables.gate_values, 24, lambda k: 1 / (1 + mpmath.exp(-mpmath.mpf(k) / 256))),
    (tables.cosine_values, 22, lambda k: mpmath.cos(2 * mpmath.pi * k / 4096)),
    (tables.log2_values, 38, lambda k: mpmath.log(1 + mpmath.mpf(k) / 4096, 2)),
]


@pytest.mark.parametrize(("values", "bits", "real"), CASES, ids=["exp2", "gate", "cosine", "log2"])
def test_every_entry_is_the_correctly_rounded_value(
    values: Callable[[], Sequence[int]], bits: int, real: Callable[[int], Any]
) -> None:
    with mpmath.workprec(200):
        for k, entry in enumerate(values()):
            exact = real(k) * 2**bits
            assert abs(exact - entry) <= mpmath.mpf(1) / 2, k


def test_tables_have_the_documented_sizes() -> None:
    sizes = [len(values()) for values, _, _ in CASES]
    assert sizes == [1025, 4097, 4097, 4097]


def test_tables_rise_or_fall_as_their_functions_do() -> None:
    for name, sign in (("exp2", -1), ("gate", 1), ("log2", 1)):
        steps = tables.table(name).diff() * sign
        assert bool((steps >= 0).all()), name
    cosines = tables.table("cosine")
    assert bool((cosines[:2049].diff() <= 0).all())
    assert torch.equal(cosines, cosines.flip(0))
    assert torch.equal(cosines[:2049], -cosines[2048:])


def test_constants_are_correctly_rounded() -> None:
    from unisono.numerics import activation, sampling

    with mpmath.workprec(250):
        exact = {
            activation.LOG2_E: mpmath.log(mpmath.e, 2) * 2**16,
            activation.GELU_LINEAR: 2 * mpmath.sqrt(2 / mpmath.pi) * 2**30,
            activation.GELU_CUBIC: 2 * mpmath.sqrt(2 / mpmath.pi) * mpmath.mpf("0.044715") * 2**30,
            sampling.LN_2: mpmath.log(2) * 2**16,
        }
        for rounded, real in exact.items():
            assert abs(rounded - real) <= mpmath.mpf(1) / 2
        for fixed, real in ((tables.pi(), mpmath.pi), (tables.ln2(), mpmath.log(2))):
            assert abs(fixed - real * 2**160) < 2**10


def test_the_digest_names_the_entries() -> None:
    assert len(tables.digest()) == 64
    state = hashlib.sha256()
    for name in ("cosine", "exp2", "gate", "log2"):
        state.update(name.encode() + b"\0")
        for value in tables.table(name).tolist():
            state.update(value.to_bytes(8, "little", signed=True))
    assert tables.digest() == state.hexdigest()


def test_the_tables_and_the_specification_load_without_torch() -> None:
    program = (
        "import sys, unisono.numerics.scalar, unisono.numerics.tables as t; t.digest();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
