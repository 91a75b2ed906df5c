"""SHA-256 of many messages of one size, and of trees over their parts, in one call: `hashlib` costs
more per call than per hash."""

from __future__ import annotations

import functools
import hashlib
from ctypes import c_char_p, c_int, c_int64, c_void_p, create_string_buffer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisono.native import library

Bytes = NDArray[np.uint8]

_HASH = hashlib.sha256().digest_size


def hash_rows(prefix: int, messages: Bytes) -> Bytes:
    """SHA-256 of a first byte and each message.

    Args:
        prefix: 0 to 255.
        messages: contiguous uint8 [n, size].

    Returns:
        uint8 [n, 32].
    """
    function = compiled()
    if function is None:
        return interpreted(prefix, messages)
    hashes = np.empty((len(messages), _HASH), np.uint8)
    source, target = library.address(messages), library.address(hashes)
    function(prefix, source, len(messages), messages.shape[1], target)
    return hashes


def tree_roots(messages: Bytes, leaf: int) -> bytes:
    """Roots of trees of fixed shape (`verification.fraud.tree`), one over each message.

    Args:
        messages: contiguous uint8 [n, size], size > 0.
        leaf: bytes of a leaf; the last of a message may be shorter.

    Returns:
        The roots, 32 bytes each, joined.
    """
    function = compiled_roots()
    if function is None:
        return interpreted_roots(messages, leaf)
    count, size = messages.shape
    roots = create_string_buffer(_HASH * count)
    function(library.address(messages), count, size, leaf, roots)
    return roots.raw


@functools.cache
def compiled() -> Any | None:
    """The library's function, if it has it."""
    found = library.load()
    if found is None or not hasattr(found, "unisono_hash_rows"):  # built before there was one
        return None
    function = found.unisono_hash_rows
    function.restype = None
    function.argtypes = [c_int, c_void_p, c_int64, c_int64, c_void_p]
    return function


@functools.cache
def compiled_roots() -> Any | None:
    """The library's function that makes trees, if it has it."""
    found = library.load()
    if found is None or not hasattr(found, "unisono_tree_roots"):
        return None
    function = found.unisono_tree_roots
    function.restype = None
    function.argtypes = [c_void_p, c_int64, c_int64, c_int64, c_char_p]
    return function


def interpreted(prefix: int, messages: Bytes) -> Bytes:
    """The same by `hashlib`."""
    started = hashlib.sha256(bytes([prefix]))
    size = messages.shape[1]
    data = messages.tobytes()

    def one(start: int) -> bytes:
        state = started.copy()
        state.update(data[start : start + size])
        return state.digest()

    joined = b"".join([one(i * size) for i in range(len(messages))])
    return np.frombuffer(joined, np.uint8).reshape(len(messages), _HASH)


def interpreted_roots(messages: Bytes, leaf: int) -> bytes:
    """The same as `tree_roots` by `hashlib`."""
    return b"".join([_root(message.tobytes(), leaf) for message in messages])


def _root(data: bytes, leaf: int) -> bytes:
    sha256 = hashlib.sha256
    nodes = [sha256(b"\0" + data[i : i + leaf]).digest() for i in range(0, len(data), leaf)]
    gap = bytes(_HASH)
    while len(nodes) > 1:
        if len(nodes) % 2:
            nodes.append(gap)
        pairs = zip(nodes[::2], nodes[1::2], strict=True)
        nodes = [sha256(b"\1" + left + right).digest() for left, right in pairs]
        gap = sha256(b"\1" + gap + gap).digest()
    return nodes[0]
