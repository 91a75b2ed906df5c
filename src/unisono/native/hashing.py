"""SHA-256 of many messages of one size in one call; `hashlib` costs more per call than per hash."""

from __future__ import annotations

import functools
import hashlib
from ctypes import c_int, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisono.native import library

Bytes = NDArray[np.uint8]


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
    hashes = np.empty((len(messages), hashlib.sha256().digest_size), np.uint8)
    source, target = library.address(messages), library.address(hashes)
    function(prefix, source, len(messages), messages.shape[1], target)
    return hashes


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
    return np.frombuffer(joined, np.uint8).reshape(len(messages), started.digest_size)
