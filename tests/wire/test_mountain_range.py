from __future__ import annotations

import hashlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import PeerCheating
from unisono.merkle import leaf_hash, seal
from unisono.wire.bounds import MAX_POSITIONS
from unisono.wire.mountain_range import MAX_PROOF_BYTES, MountainRange, RowProof, rows_root


def rows(count: int) -> list[bytes]:
    return [hashlib.sha256(b"row %d" % i).digest() for i in range(count)]


def test_the_root_of_one_row_is_what_the_protocol_says() -> None:
    (row,) = rows(1)
    assert rows_root([row]) == seal("rows/3", 1, leaf_hash(row)).hex()
    assert rows_root([]) == seal("rows/3", 0, bytes(32)).hex()


@given(st.integers(0, 200), st.data())
def test_the_root_of_any_first_rows_is_the_root_of_a_range_of_just_these(
    count: int, data: st.DataObject
) -> None:
    hashes = rows(count)
    grown = MountainRange()
    for row in hashes:
        grown.append(row)
    first = data.draw(st.integers(0, count))
    assert grown.root() == rows_root(hashes)
    assert grown.root(first) == rows_root(hashes[:first]) == MountainRange(hashes[:first]).root()
    grown.truncate(first)
    assert len(grown) == first
    grown.extend(hashes[first:])
    assert grown.root() == rows_root(hashes)


@given(st.integers(1, 300), st.data())
def test_a_proof_holds_for_its_row_and_survives_its_bytes(count: int, data: st.DataObject) -> None:
    hashes = rows(count + 1)
    made = MountainRange(hashes[:count])
    positions = data.draw(st.integers(1, count))
    position = data.draw(st.integers(0, positions - 1))
    proof = made.prove(position, positions)
    root = made.root(positions)
    assert proof.holds(root, hashes[position])
    assert not proof.holds(root, hashes[count])
    assert positions == count or not proof.holds(made.root(), hashes[position])
    data_ = proof.to_bytes()
    assert len(data_) <= MAX_PROOF_BYTES
    assert RowProof.from_bytes(data_) == proof


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_proof_of_nothing_or_refused(data: bytes) -> None:
    try:
        proof = RowProof.from_bytes(data)
    except PeerCheating:
        return
    assert not proof.holds(rows_root(rows(3)), rows(1)[0])


@pytest.mark.parametrize(
    ("position", "count"), [(0, 0), (5, 5), (0, MAX_POSITIONS + 1), (1 << 63, (1 << 64) - 1)]
)
def test_a_proof_for_a_position_that_cannot_be_is_refused(position: int, count: int) -> None:
    data = position.to_bytes(8, "little") + count.to_bytes(8, "little")
    with pytest.raises(PeerCheating, match=f"position {position} of {count}"):
        RowProof.from_bytes(data)
    assert not RowProof(position, count, b"").holds(rows_root(rows(1)), rows(1)[0])


@pytest.mark.parametrize("change", [-1, 1, -32, 32])
def test_a_proof_of_another_length_is_refused(change: int) -> None:
    data = MountainRange(rows(9)).prove(4).to_bytes()
    wrong = data[:change] if change < 0 else data + bytes(change)
    with pytest.raises(PeerCheating, match=f"has {len(data)} bytes; got {len(wrong)}"):
        RowProof.from_bytes(wrong)


@pytest.mark.parametrize("root", ["", "00", "zz" * 32, "AB" * 32, "00" * 33])
def test_no_proof_holds_under_a_malformed_root_or_hash(root: str) -> None:
    made = MountainRange(rows(3))
    assert not made.prove(1).holds(root, rows(3)[1])
    assert not made.prove(1).holds(made.root(), rows(3)[1][:-1])


def test_hashing_a_row_costs_a_tiny_part_of_a_tokens_time() -> None:
    """2 us on the machine of the figures; a token of the default model takes 12,000."""
    hashes = rows(4096)
    started = time.perf_counter()
    grown = MountainRange()
    for row in hashes:
        grown.append(row)
    assert (time.perf_counter() - started) / len(hashes) < 60e-6
    started = time.perf_counter()
    assert rows_root(hashes) == grown.root()
    assert time.perf_counter() - started < 0.2
