"""The judge's step `boundary` alone: made-up games about rows of any width."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from eth_hash.auto import keccak
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.settlement.conftest import Compiled
from tests.settlement.courtroom import call_gas
from tests.settlement.evm import Contract, Evm, Reverted, account
from unisono import merkle
from unisono.models.rows import row_hashes
from unisono.settlement.advocates import PROVE, State
from unisono.settlement.artifacts import artifact
from unisono.types import EvmAddress
from unisono.verification.fraud.parameters import KINDS, ROW_BEFORE
from unisono.verification.fraud.tree import Tree, depth_of, empty_root, tensor_tree
from unisono.wire.mountain_range import DOMAIN
from unisono.wire.rows import VALUE_LIMIT

Row = NDArray[np.int64]

ANYBODY = account(1)
NOBODY = EvmAddress("0x" + "00" * 20)
WIDTHS = (1, 7, 31, 32, 33, 64, 100, 640, 2048, 4096, 8192)
MOST_GAS = 120_000
"""Of a call of the judge, with the court here."""


def words(*numbers: int | bytes) -> bytes:
    return b"".join(
        x if isinstance(x, bytes) else (x % (1 << 256)).to_bytes(32, "big") for x in numbers
    )


def path_of(tree: Tree, place: int) -> list[bytes]:
    return [tree.node(tree.depth - k, (place >> k) ^ 1) for k in range(tree.depth)]


@dataclass
class Hearing:
    """One call of the judge about a row at the exit (`out`) or the entry of a hop."""

    state: State
    facts: tuple[Any, ...]
    tensor: tuple[Any, ...]
    parameters: tuple[int, ...]
    data: bytes
    end: int
    """Where in the data the row's path ends and the signed hash begins."""

    def arguments(self, **changes: Any) -> tuple[Any, ...]:
        said = {"state": self.state, "parameters": self.parameters, "data": self.data, **changes}
        return said["state"], self.facts, self.tensor, (), said["parameters"], said["data"]


def hearing(
    row: Row,
    signed: bytes,
    made: random.Random,
    out: bool,
    asserted: int = 1,
) -> Hearing:
    """A game in which `row` is what the hop committed to, and `signed` the hash in its claim."""
    layers, positions, tensors = (made.randint(1, n) for n in (9, 40, 30))
    position = made.randrange(positions)
    root = tensor_tree(row, "i8").root
    if out:
        stage, place = layers + 1, ROW_BEFORE
        kept = Tree([*(made.randbytes(32) for _ in range(4)), root])
        cells = [made.randbytes(32) for _ in range(positions)]
        cells[position] = kept.root
        below = Tree(cells)
        stages = [made.randbytes(32) for _ in range(layers + 2)]
        stages[layers] = below.root
        top = Tree(stages, empty_root(depth_of(positions)))
        path = path_of(kept, ROW_BEFORE) + path_of(below, position) + path_of(top, layers)
        grid, trace = top.root, made.randbytes(32)
    else:
        stage, place = 0, made.randrange(tensors)
        roots = [made.randbytes(32) for _ in range(tensors)]
        roots[place] = root
        tree = Tree(roots)
        path, grid, trace = path_of(tree, place), made.randbytes(32), tree.root
    hashes = [made.randbytes(32) for _ in range(positions)]
    hashes[position] = signed
    rows = merkle.Tree(b"".join(map(merkle.leaf_hash, hashes)))
    sides = [made.randbytes(32), merkle.seal(DOMAIN, positions, rows.top())]
    rows_in, rows_out = sides if out else reversed(sides)
    program, sequence, sampling = (made.randbytes(32) for _ in range(3))
    span, hidden = (0, layers, layers, 1, positions), len(row)
    facts = (program, rows_in, rows_out, sequence, sampling, *span, hidden, 1, 2, 50)
    parameters = (place, int(out), int(out))
    tensor = (1, 0, 0, 1, 0, 8, KINDS["boundary"], 0, 0, 0, bytes(32), 0)
    state = State(
        **dict.fromkeys(State._fields, 0)
        | {"challenger_lost": False}
        | {name: bytes(32) for name in ("claim", "node", "kept", "parts")}
        | {"challenger": NOBODY, "defender": ANYBODY, "total": (0,) * 5}
        | {"phase": PROVE, "facts": keccak(words(*facts)), "grid": grid, "trace": trace}
        | {"stage": stage, "position": position, "tensors": tensors, "asserted": asserted}
        | {"tensor": keccak(words(*tensor, *parameters)), "kind": KINDS["boundary"]}  # type: ignore[arg-type]
    )
    shown = b"".join((root, *path))
    data = shown + signed + rows.path(position)
    return Hearing(state, facts, tensor, parameters, data, len(shown))


@dataclass
class Bench:
    """A judge, and the court that hears it."""

    evm: Evm
    judge: Contract
    court: Contract

    def rules(self, *arguments: Any) -> bool:
        """What the judge says; Reverted: nothing."""
        kept = self.evm.snapshot()
        try:
            self.judge.send(ANYBODY, "prove_boundary", *arguments)
            assert self.court.view("ruled")
            return self.court.view("right")
        finally:
            self.evm.restore(kept)

    def gas(self, *arguments: Any) -> int:
        """Of the whole transaction."""
        kept = self.evm.snapshot()
        data = self.judge.encoded("prove_boundary", *arguments)
        self.evm.call(ANYBODY, self.judge.address, data)
        spent = call_gas(data, self.evm.done)
        self.evm.restore(kept)
        return spent


@pytest.fixture(scope="module")
def bench(compiled: Compiled) -> Bench:
    evm = Evm()
    court = evm.deploy(compiled("ruling_stub"), ANYBODY)
    judge = evm.deploy(artifact("judge"), ANYBODY, *(court.address,) * 4)
    return Bench(evm, judge, court)


def row_of(width: int, seed: int, wide: bool) -> Row:
    limit = VALUE_LIMIT if wide else 1 << 31
    return np.random.default_rng(seed).integers(1 - limit, limit, width)


def hash_of(row: Row) -> bytes:
    return row_hashes(row[None])[0]


widths = st.sampled_from(WIDTHS) | st.integers(1, 300)
rows = st.builds(row_of, widths, st.integers(0, 2**32), st.booleans())
randoms = st.builds(random.Random, st.integers(0, 2**32))


@settings(max_examples=50, deadline=None)
@given(rows, randoms, st.booleans(), st.sampled_from((1, 1, 1, 0, 2, -1)))
def test_the_row_that_was_signed_is_right_if_the_hop_says_so(
    bench: Bench, row: Row, made: random.Random, out: bool, asserted: int
) -> None:
    honest = hearing(row, hash_of(row), made, out, asserted)
    assert bench.rules(*honest.arguments()) == (asserted == 1)


def others(row: Row, place: int) -> dict[str, Row]:
    """Rows that are nearly the same."""
    one = row.copy()
    one[place] += 1 if one[place] < VALUE_LIMIT - 1 else -1
    return {
        "one integer": one,
        "shifted": np.roll(row, 1),
        "blocks in another order": np.concatenate([row[32:], row[:32]]),
        "longer by a zero": np.append(row, 0),
        "longer by a block of zeros": np.append(row, np.zeros(32, dtype=np.int64)),
        "shorter": row[:-1],
        "the first block": row[:32],
        "twice": np.tile(row, 2),
    }


@pytest.mark.parametrize("what", [*others(np.zeros(1, dtype=np.int64), 0)])
@settings(max_examples=10, deadline=None)
@given(rows, randoms, st.booleans(), st.integers(0, 2**32))
def test_any_other_row_is_wrong(
    bench: Bench, what: str, row: Row, made: random.Random, out: bool, place: int
) -> None:
    other = others(row, place % len(row))[what]
    assume(len(other) and not np.array_equal(other, row))
    assert not bench.rules(*hearing(row, hash_of(other), made, out).arguments())
    assert not bench.rules(*hearing(other, hash_of(row), made, out).arguments())


@settings(max_examples=50, deadline=None)
@given(rows, randoms, st.booleans(), st.data())
def test_what_was_not_committed_to_or_not_signed_is_refused(
    bench: Bench, row: Row, made: random.Random, out: bool, data: st.DataObject
) -> None:
    honest = hearing(row, hash_of(row), made, out)
    at = data.draw(st.integers(0, len(honest.data) - 1))
    changed = bytearray(honest.data)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    said = "committed to" if at < honest.end else "signed"
    with pytest.raises(Reverted, match=f"not what was {said}"):
        bench.rules(*honest.arguments(data=bytes(changed)))
    for short in (honest.data[:-32], honest.data[:-1], b""):
        with pytest.raises(Reverted):
            bench.rules(*honest.arguments(data=short))
    for more in (bytes(32), b"\0"):
        with pytest.raises(Reverted, match="more was opened"):
            bench.rules(*honest.arguments(data=honest.data + more))
    # the first leaf below the root, and its sibling: a path that is one node too long
    tree = tensor_tree(row, "i8")
    if tree.depth:
        below = tree.node(1, 0) + tree.node(1, 1) + honest.data[32:]
        with pytest.raises(Reverted):
            bench.rules(*honest.arguments(data=below))


@settings(max_examples=50, deadline=None)
@given(rows, randoms, st.booleans(), st.data())
def test_the_row_of_another_place_is_refused(
    bench: Bench, row: Row, made: random.Random, out: bool, data: st.DataObject
) -> None:
    honest = hearing(row, hash_of(row), made, out)
    positions = honest.facts[9]
    assume(positions > 1)
    others = [p for p in range(positions) if p != honest.state.position]
    elsewhere = honest.state._replace(position=data.draw(st.sampled_from(others)))
    with pytest.raises(Reverted):
        bench.rules(*honest.arguments(state=elsewhere))
    place, *more = honest.parameters
    neighbour = honest.arguments(parameters=(place ^ 1, *more))
    with pytest.raises(Reverted, match="another tensor"):
        bench.rules(*neighbour)


def test_a_row_of_any_width_costs_the_same(bench: Bench) -> None:
    spent: dict[int, int] = {}
    for width in (1, 640, 2048, 4096, 8192, 65_536):
        row = row_of(width, width, wide=True)
        made = random.Random(5)
        spent[width] = bench.gas(*hearing(row, hash_of(row), made, True).arguments())
    assert max(spent.values()) <= MOST_GAS
    assert max(spent.values()) - min(spent.values()) < 1_000  # zero bytes cost less
