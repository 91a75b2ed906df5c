from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from unisono.merkle import Tree, seal
from unisono.verification.light.grid import Grid, opens


def leaves(count: int, salt: int = 0) -> bytes:
    return b"".join(hashlib.sha256(f"{salt} {i}".encode()).digest() for i in range(count))


@given(st.integers(1, 70), st.data())
def test_any_run_of_leaves_opens_under_the_root_that_single_paths_have(
    count: int, data: st.DataObject
) -> None:
    joined = leaves(count)
    grid = Grid("x", joined)
    assert grid.root == seal("x", count, Tree(joined).top())
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    part, path = joined[32 * start : 32 * stop], grid.path(start, stop)
    assert opens("x", grid.root, count, start, part, path)
    if stop == start + 1:
        assert path == Tree(joined).path(start)
    assert not opens("y", grid.root, count, start, part, path)
    assert not opens("x", grid.root, count, start, part, path + bytes(32))
    assert not opens("x", grid.root, count, start, part, path[:-32]) or not path
    assert not opens("x", grid.root, count + 1, start, part, path)
    assert not opens("x", grid.root, count, start, part[:-1], path)
    if count > 1:
        other = data.draw(st.integers(0, count - 1).filter(lambda s: s != start))
        assert not opens("x", grid.root, count, other, part, path)
    at = data.draw(st.integers(0, len(part + path) - 1))
    altered = bytearray(part + path)
    altered[at] ^= 1
    changed = bytes(altered)
    assert not opens("x", grid.root, count, start, changed[: len(part)], changed[len(part) :])


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(-3, 9), st.integers(-3, 9))
def test_arbitrary_bytes_do_not_open(part: bytes, path: bytes, count: int, start: int) -> None:
    assert not opens("x", bytes(32), count, start, part, path)
