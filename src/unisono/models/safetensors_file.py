"""The safetensors container: rows read one range at a time, files written as a stream.

The library checks headers, but it hands out whole files to a writer only, and bfloat16 to no
one without a tensor library. Layout: 8 bytes little-endian length of the header, the header
(JSON: name → dtype, shape and byte range), the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Types that `read_floats` reads, and how numpy sees their bytes."""

_SIZES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1}
_LENGTH_BYTES = 8


class StoredTensor(NamedTuple):
    """Where a tensor lies: `start` is the file's byte where it begins."""

    dtype: str
    shape: tuple[int, ...]
    start: int


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """What a file holds, by name.

    Raises:
        SafetensorError: the header is malformed, or does not fit the file's size.
        OSError: the file cannot be opened.
    """
    with cast("Any", safe_open)(file, framework="np"):
        pass  # the library refuses ranges that overlap, leave holes or end outside the file
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        header = cast("dict[str, dict[str, Any]]", json.loads(opened.read(length)))
    header.pop("__metadata__", None)
    data = _LENGTH_BYTES + length
    return {
        name: StoredTensor(entry["dtype"], tuple(entry["shape"]), data + entry["data_offsets"][0])
        for name, entry in header.items()
    }


def read_floats(file: Path, tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Rows `start:stop` of a tensor in one of `FLOATS`: float32 [stop - start, ...], exact.

    The file is read, not mapped: what was read and dropped takes no memory.

    Raises:
        OSError: the file cannot be read, or ends too early.
    """
    kind = np.dtype(FLOATS[tensor.dtype])
    row = math.prod(tensor.shape[1:])
    count = (stop - start) * row
    offset = tensor.start + start * row * kind.itemsize
    raw = np.fromfile(file, kind, count, offset=offset)
    if len(raw) != count:
        raise OSError("it ends inside the tensor")
    if tensor.dtype == "BF16":  # the upper half of a float32
        raw = np.left_shift(raw, 16, dtype=np.uint32).view(np.float32)
    return raw.astype(np.float32, copy=False).reshape(stop - start, *tensor.shape[1:])


class TensorWriter:
    """A safetensors file whose tensors are written piece by piece, in any order of tensors.

    `tensors` gives name → dtype (`F32 I32 F16 BF16 I16 I8`) and shape. Tensors of wider types
    come first, so that each begins at a multiple of its element size. Use it in a `with` block.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        header: dict[str, dict[str, Any]] = {}
        at = 0
        for name in sorted(tensors, key=lambda name: (-_SIZES[tensors[name][0]], name)):
            dtype, shape = tensors[name]
            end = at + _SIZES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, end)}
            at = end
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        data = _LENGTH_BYTES + len(text)
        self._path = path
        self._left = {
            name: range(*(data + edge for edge in entry["data_offsets"]))
            for name, entry in header.items()
        }
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)

    def write(self, name: str, piece: NDArray[Any]) -> None:
        """Append contiguous elements to a tensor, after the pieces that it has already.

        Raises:
            ValueError: the piece does not fit into what is left of the tensor.
            OSError: the file cannot be written.
        """
        left = self._left[name]
        if piece.nbytes > len(left):
            raise ValueError(f"{self._path}: {piece.nbytes} bytes for '{name}', room {len(left)}")
        self._file.seek(left.start)
        self._file.write(cast("Any", piece))
        self._left[name] = left[piece.nbytes :]

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        missing = [name for name, left in self._left.items() if left]
        if kind is None and missing:
            raise ValueError(f"{self._path}: tensor '{missing[0]}' was not written to its end")
