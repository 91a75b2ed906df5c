"""What contracts look up is what the specification looks up."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from eth_hash.auto import keccak
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.settlement.conftest import Compiled
from tests.settlement.evm import Contract, Evm, Reverted, account
from tests.settlement.referees import deploy_table, said
from unisono.merkle import leaf_hash, node_hash
from unisono.numerics import scalar
from unisono.numerics.scalar.layers import gelu_argument
from unisono.numerics.scalar.sampling import philox4x32
from unisono.numerics.tables import values
from unisono.settlement.tables import (
    CONTRACTS,
    bias_leaf,
    bias_root,
    bias_tree,
    table_code,
    table_code_hash,
)
from unisono.verification.fraud.sampling_steps import base2
from unisono.verification.fraud.tree import decode_block

FEW = settings(max_examples=40, deadline=None)
int64 = st.integers(-(1 << 63), (1 << 63) - 1)


class Functions(NamedTuple):
    contract: Contract
    tables: dict[str, str]


@pytest.fixture(scope="module")
def functions(compiled: Compiled) -> Functions:
    evm = Evm()
    tables = {table: deploy_table(evm, table) for table in CONTRACTS}
    return Functions(evm.deploy(compiled("functions_harness"), account(1)), tables)


def test_tables_are_stored_as_the_specification_has_them() -> None:
    code = table_code("exponentials")
    powers, gates = code[1:5126], code[5126:]
    assert [int.from_bytes(powers[k : k + 5], "big") for k in range(0, 5125, 5)] == [
        *values("exp2")
    ]
    assert [int.from_bytes(gates[k : k + 3], "big") for k in range(0, 12291, 3)] == [
        *values("gate")
    ]
    assert all(table_code(table)[0] == 0 for table in CONTRACTS)
    assert all(len(table_code(table)) <= 24_576 for table in CONTRACTS)


def test_contracts_insist_on_the_tables_that_are_deployed(functions: Functions) -> None:
    expected = tuple(table_code_hash(table) for table in CONTRACTS)
    assert tuple(functions.contract.view("hashes")) == expected
    evm = functions.contract.evm
    for table in CONTRACTS:
        address = functions.tables[table]
        assert keccak(evm.code(address)) == table_code_hash(table)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("steps_attention", ("cosines", "exponentials")),
        ("steps_choice", ("exponentials", "cosines")),
    ],
)
def test_a_referee_with_another_table_cannot_be_deployed(
    compiled: Compiled, functions: Functions, name: str, others: tuple[str, str]
) -> None:
    addresses = [functions.tables[table] for table in others]
    with pytest.raises(Reverted, match="not the table of"):
        functions.contract.evm.deploy(compiled(name), account(1), *addresses)


@FEW
@given(st.integers(0, 1 << 23) | int64, st.sampled_from((28, 38)))
@example(0, 28)
@example(40 << 16, 28)
@example((1 << 63) - 1, 28)
@example(-1, 28)
@example(-1, 38)
@example(-(11 << 16), 28)
def test_powers_of_two(functions: Functions, distance: int, bits: int) -> None:
    found = said(
        functions.contract.view,
        "exp2_negative",
        functions.tables["exponentials"],
        distance,
        bits,
    )
    assert found == said(scalar.exp2_negative, distance, bits)


@FEW
@given(st.integers(-(1 << 25), 1 << 25) | st.integers(-(1 << 16), 1 << 16) | int64)
@example(0)
@example(16 << 20)
@example((16 << 20) - 1)
@example(-(16 << 20))
@example((1 << 25) - 1)
@example(-(1 << 25))
def test_sigmoid(functions: Functions, x: int) -> None:
    found = said(functions.contract.view, "sigmoid", functions.tables["exponentials"], x)
    assert found == said(scalar.sigmoid, x)


@FEW
@given(st.integers(-(1 << 25), 1 << 25) | st.integers(-(1 << 21), 1 << 21) | int64)
@example((1 << 25) - 1)
@example(1 - (1 << 25))
def test_the_argument_of_gelu(functions: Functions, x: int) -> None:
    assert said(functions.contract.view, "gelu_argument", x) == said(gelu_argument, x)


@FEW
@given(st.integers(-2, 1 << 50) | st.integers(0, 50).map(lambda k: 1 << k) | int64)
@example(0)
@example(1)
@example((1 << 50) - 1)
@example(1 << 50)
@example((1 << 33) - 1)
def test_logarithms(functions: Functions, x: int) -> None:
    found = said(functions.contract.view, "log2_fixed", functions.tables["logarithms"], x)
    assert found == said(scalar.log2_fixed, x)


@FEW
@given(
    st.integers(0, (1 << 20) - 1), st.integers(0, 1 << 43) | int64, st.integers(-(1 << 20), 1 << 20)
)
@example(0, 0, 1 << 16)
@example(1, (1 << 42) - 1, 1 << 16)
@example(1, 1 << 40, 65536)
@example(3, -(1 << 41), 65536)
@example(3, 5, 1 << 20)
@example(3, 5, 1 - (1 << 20))
def test_rotations(functions: Functions, position: int, frequency: int, factor: int) -> None:
    for sine in (False, True):

        def of_python(sine: bool = sine) -> int:
            return scalar.rotation(position, [frequency], factor)[sine][0]

        table = functions.tables["cosines"]
        arguments = table, position, frequency, factor, sine
        assert said(functions.contract.view, "rotation", *arguments) == said(of_python)


@FEW
@given(st.integers(0, (1 << 20) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 63) - 1))
def test_random_words(functions: Functions, token: int, position: int, seed: int) -> None:
    found = functions.contract.view("philox", token, position, seed)
    assert found == scalar.philox(token, position, seed)


def test_random_words_are_those_of_the_publication(functions: Functions) -> None:
    """Zero counter and key, from the known answers of Random123."""
    assert philox4x32((0, 0, 0, 0), (0, 0))[0] == 0x6627E8D5
    assert functions.contract.view("philox", 0, 0, 0) == 0x6627E8D5


@FEW
@given(st.integers(-(1 << 20), 1 << 23) | int64)
@example(40 << 16)
def test_distances_in_base_two(functions: Functions, below: int) -> None:
    assert said(functions.contract.view, "base2", below) == said(base2, below)


@given(
    st.dictionaries(st.integers(0, 299), st.integers(-(1 << 31), (1 << 31) - 1), min_size=1),
    st.integers(0, 299),
)
def test_a_bias_opens_under_the_root_that_a_claim_names(some: dict[int, int], token: int) -> None:
    biases = tuple(sorted(some.items()))
    leaf, block = bias_leaf(biases, 300, token), token // 64
    assert decode_block(leaf, "i4")[token % 64] == some.get(token, 0)
    tree, node = bias_tree(biases, 300), leaf_hash(leaf)
    for depth in range(tree.depth, 0, -1):
        other = tree.node(depth, block ^ 1)
        node = node_hash(other, node) if block & 1 else node_hash(node, other)
        block //= 2
    assert node == bias_root(biases, 300)


def test_no_biases_are_no_tree_and_a_strange_token_is_refused() -> None:
    assert bias_root((), 300) == bytes(32)
    assert bias_root(((1, 0),), 300) != bytes(32)
    for token in (300, -1):
        with pytest.raises(IndexError):
            bias_root(((token, 1),), 300)
        with pytest.raises(IndexError):
            bias_leaf((), 300, token)
