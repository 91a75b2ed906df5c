from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.merkle import (
    EMPTY,
    Accumulator,
    Tree,
    leaf_hash,
    node_hash,
    pair_hashes,
    path_length,
    seal,
    top_of,
)
from unisono.types import digest


def leaf(number: int) -> bytes:
    return leaf_hash(number.to_bytes(4, "little"))


def naive_top(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    return node_hash(naive_top(leaves[:half]), naive_top(leaves[half:]))


def naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return []
    half = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < half:
        return [*naive_path(index, leaves[:half]), naive_top(leaves[half:])]
    return [*naive_path(index - half, leaves[half:]), naive_top(leaves[:half])]


def test_leaves_nodes_and_roots_are_hashed_under_different_prefixes() -> None:
    assert leaf_hash(b"abc") == hashlib.sha256(b"\0abc").digest()
    a, b = leaf(1), leaf(2)
    assert node_hash(a, b) == hashlib.sha256(b"\1" + a + b).digest()
    assert pair_hashes(a + b + b + a) == node_hash(a, b) + node_hash(b, a)
    assert seal("x/1", 3, a) == digest("x/1", bytes([3, 0, 0, 0, 0, 0, 0, 0]), a)
    assert len({seal("x/1", 3, a), seal("x/1", 4, a), seal("x/2", 3, a)}) == 3


def test_every_tree_of_few_leaves_is_the_published_one() -> None:
    leaves = [leaf(i) for i in range(70)]
    tree = Tree(b"".join(leaves))
    for count in range(71):
        assert tree.top(count) == naive_top(leaves[:count])
        for index in range(count):
            path = tree.path(index, count)
            assert path == b"".join(naive_path(index, leaves[:count]))
            assert len(path) == 32 * path_length(index, count)
            assert top_of(leaves[index], index, count, path) == tree.top(count)


@given(st.lists(st.integers(-12, 40), max_size=12), st.data())
def test_a_tree_that_grew_and_shrank_is_the_tree_of_what_is_left(
    changes: list[int], data: st.DataObject
) -> None:
    tree, leaves, number = Tree(), list[bytes](), 0
    for change in changes:
        if change < 0:
            del leaves[max(0, len(leaves) + change) :]
            tree.truncate(len(leaves))
            continue
        added = [leaf(number + i) for i in range(change)]
        number += change
        leaves += added
        if data.draw(st.booleans()):
            tree.extend(b"".join(added))
        else:
            for one in added:
                tree.append(one)
    assert len(tree) == len(leaves)
    assert tree.top() == naive_top(leaves)
    if leaves:
        count = data.draw(st.integers(1, len(leaves)))
        index = data.draw(st.integers(0, count - 1))
        assert tree.leaf(index) == leaves[index]
        assert tree.top(count) == naive_top(leaves[:count])
        assert tree.path(index, count) == b"".join(naive_path(index, leaves[:count]))


@given(st.lists(st.integers(0, 70), max_size=8))
def test_leaves_may_come_in_pieces_of_any_size(pieces: list[int]) -> None:
    stream, leaves = Accumulator(), list[bytes]()
    for piece in pieces:
        added = [leaf(len(leaves) + i) for i in range(piece)]
        stream.extend(b"".join(added))
        leaves += added
        assert (stream.count, stream.top()) == (len(leaves), naive_top(leaves))


@given(st.integers(1, 300), st.data())
def test_a_path_proves_its_own_leaf_place_and_count_only(count: int, data: st.DataObject) -> None:
    leaves = [leaf(i) for i in range(count)]
    tree = Tree(b"".join(leaves))
    index = data.draw(st.integers(0, count - 1))
    path, root = tree.path(index), seal("x/1", count, tree.top())

    def proves(leaf: bytes, index: int, count: int, path: bytes) -> bool:
        try:
            return seal("x/1", count, top_of(leaf, index, count, path)) == root
        except ValueError:
            return False

    assert proves(leaves[index], index, count, path)
    assert not proves(leaf(count), index, count, path)
    other = data.draw(st.integers(0, count + 2))
    assert other == index or not proves(leaves[index], other, count, path)
    other = data.draw(st.integers(0, 2 * count))
    assert other == count or not proves(leaves[index], index, other, path)
    assert not proves(leaves[index], index, count, path + bytes(32))
    if path:
        assert not proves(leaves[index], index, count, path[:-32])
        at = data.draw(st.integers(0, len(path) - 1))
        flipped = path[:at] + bytes([path[at] ^ 1]) + path[at + 1 :]
        assert not proves(leaves[index], index, count, flipped)


@given(st.integers(1, 1 << 32), st.data())
def test_paths_are_at_most_one_longer_than_the_bits_of_the_count(
    count: int, data: st.DataObject
) -> None:
    assert path_length(data.draw(st.integers(0, count - 1)), count) <= count.bit_length()


@pytest.mark.parametrize(("index", "count"), [(0, 0), (1, 1), (-1, 3), (3, 3), (0, (1 << 32) + 1)])
def test_leaves_that_are_not_there_have_no_path(index: int, count: int) -> None:
    with pytest.raises(ValueError, match="there is no leaf"):
        path_length(index, count)
    with pytest.raises(ValueError, match=r"no leaf|was asked for"):
        Tree(leaf(0) * 3).path(index, count)


def test_a_tree_does_not_answer_for_leaves_that_it_lacks() -> None:
    for count in (-1, 4):
        with pytest.raises(ValueError, match=f"the tree of {count} leaves was asked for, of 3"):
            Tree(leaf(0) * 3).top(count)
