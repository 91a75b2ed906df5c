"""The GGUF container: typed metadata and tensors, read strictly and within bounds.

The header is parsed here because `gguf.GGUFReader` makes several numpy arrays per string: it
takes 18 s for a vocabulary of 262,144 tokens, this parser 0.4 s. Tensor formats are the
library's (`gguf.quants`). Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import gguf.quants
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from unisono.errors import ConfigurationError, CorruptModel, UnsupportedModel

MetadataValue = int | float | bool | str | list[int] | list[float] | list[bool] | list[str]

MAX_TENSORS = 1 << 17
MAX_KEYS = 1 << 16
MAX_NAME_BYTES = 1 << 12
MAX_STRING_BYTES = 1 << 24
MAX_ARRAY_ITEMS = 1 << 23
MAX_DIMENSIONS = 4
_SLICE_ELEMENTS = 1 << 20
_GROUP_ELEMENTS = 1 << 13

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: ("B", 1),
    1: ("b", 1),
    2: ("H", 2),
    3: ("h", 2),
    4: ("I", 4),
    5: ("i", 4),
    6: ("f", 4),
    7: ("?", 1),
    10: ("Q", 8),
    11: ("q", 8),
    12: ("d", 8),
}

_dequantize = cast(
    "Callable[[NDArray[np.uint8], GGMLQuantizationType], NDArray[np.float32]]",
    gguf.quants.dequantize,
)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies in the file. `shape` is in numpy order: the last axis is contiguous."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


class GgufFile:
    """One open GGUF file, memory-mapped.

    Raises:
        ConfigurationError: the file cannot be opened.
        CorruptModel: not GGUF, truncated, or a count, length or offset beyond its bound.
        UnsupportedModel: a format version other than 2 and 3, or an unknown tensor format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < 24:
                    raise self._corrupt("it is shorter than a header")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ConfigurationError(f"cannot open {path}: {error.strerror}") from error
        self._end = len(self._map)
        self._at = 0
        self.metadata: dict[str, MetadataValue] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            self._parse()
        except struct.error as error:
            raise self._corrupt(f"the header ends in the middle, at byte {self._at}") from error

    def _corrupt(self, what: str) -> CorruptModel:
        return CorruptModel(
            f"{self.path} is not a usable GGUF file: {what}; download or convert it again"
        )

    def _parse(self) -> None:
        if self._map[:4] != b"GGUF":
            raise self._corrupt(f"it starts with {self._map[:4]!r} instead of b'GGUF'")
        self._at = 4
        version = self._unsigned("<I")
        if version not in (2, 3):
            raise UnsupportedModel(
                f"{self.path}: GGUF version {version}; versions 2 and 3 are supported"
                " (a big-endian file shows a huge number here)"
            )
        tensor_count = self._bounded("<Q", MAX_TENSORS, "number of tensors")
        key_count = self._bounded("<Q", MAX_KEYS, "number of metadata keys")
        for _ in range(key_count):
            key = self._string(MAX_NAME_BYTES, "a metadata key")
            if key in self.metadata:
                raise self._corrupt(f"metadata key '{key}' occurs twice")
            self.metadata[key] = self._value(key)
        places = [self._tensor_place() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise self._corrupt(f"general.alignment is {alignment}")
        start = -(-self._at // alignment) * alignment
        for name, shape, kind, offset in places:
            self._place(name, shape, kind, offset, start, alignment)

    def _unsigned(self, layout: str) -> int:
        (value,) = struct.unpack_from(layout, self._map, self._at)
        self._at += struct.calcsize(layout)
        return cast("int", value)

    def _bounded(self, layout: str, bound: int, what: str) -> int:
        value = self._unsigned(layout)
        if value > bound:
            raise self._corrupt(f"{what} is {value}, above the bound of {bound}")
        return value

    def _string(self, bound: int, what: str) -> str:
        size = self._bounded("<Q", bound, f"length of {what}")
        start, self._at = self._at, self._at + size
        if self._at > self._end:
            raise self._corrupt(f"it ends inside {what}")
        try:
            return self._map[start : self._at].decode()
        except UnicodeDecodeError as error:
            raise self._corrupt(f"{what} is not UTF-8") from error

    def _value(self, key: str) -> MetadataValue:
        kind = self._unsigned("<I")
        if kind == _STRING:
            return self._string(MAX_STRING_BYTES, f"the value of '{key}'")
        if kind != _ARRAY:
            layout, size = self._scalar(kind, key)
            (value,) = struct.unpack_from(f"<{layout}", self._map, self._at)
            self._at += size
            return cast("MetadataValue", value)
        item = self._unsigned("<I")
        count = self._bounded("<Q", MAX_ARRAY_ITEMS, f"length of the array '{key}'")
        if item == _STRING:
            return self._strings(count, key)
        layout, size = self._scalar(item, key)
        if self._at + count * size > self._end:
            raise self._corrupt(f"it ends inside the array '{key}'")
        values = struct.unpack_from(f"<{count}{layout}", self._map, self._at)
        self._at += count * size
        return cast("MetadataValue", list(values))

    def _scalar(self, kind: int, key: str) -> tuple[str, int]:
        if kind not in _SCALARS:
            raise self._corrupt(f"metadata key '{key}' has the unknown type {kind}")
        return _SCALARS[kind]

    def _strings(self, count: int, key: str) -> list[str]:
        # The hot loop: a vocabulary has some 10^5 strings, so nothing here calls a method of ours.
        length = struct.Struct("<Q").unpack_from
        data, at, end = self._map, self._at, self._end
        values: list[str] = []
        try:
            for _ in range(count):
                (size,) = length(data, at)
                start = at + 8
                at = start + size
                if at > end:
                    raise self._corrupt(f"it ends inside the array '{key}'")
                values.append(data[start:at].decode())
        except UnicodeDecodeError as error:
            raise self._corrupt(f"item {len(values)} of '{key}' is not UTF-8") from error
        self._at = at
        return values

    def _tensor_place(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string(MAX_NAME_BYTES, "a tensor name")
        dimensions = self._bounded("<I", MAX_DIMENSIONS, f"dimensions of tensor '{name}'")
        # GGUF writes the contiguous axis first.
        shape = tuple(
            self._bounded("<Q", 1 << 40, f"a side of tensor '{name}'") for _ in range(dimensions)
        )[::-1]
        return name, shape, self._unsigned("<I"), self._unsigned("<Q")

    def _place(
        self,
        name: str,
        shape: tuple[int, ...],
        number: int,
        offset: int,
        start: int,
        alignment: int,
    ) -> None:
        if name in self.tensors:
            raise self._corrupt(f"tensor '{name}' occurs twice")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise UnsupportedModel(
                f"{self.path}: tensor '{name}' has the unknown format {number}; requantize the"
                " model to a common format such as Q8_0 or Q4_K_M"
            ) from error
        block, block_size = GGML_QUANT_SIZES[kind]
        if not shape or 0 in shape or shape[-1] % block:
            raise self._corrupt(f"tensor '{name}' has shape {shape} in {kind.name}")
        size = math.prod(shape) // block * block_size
        if offset % alignment or start + offset + size > self._end:
            raise self._corrupt(
                f"tensor '{name}' needs bytes {start + offset} to {start + offset + size} of"
                f" {self._end} (alignment {alignment}): the file is truncated"
            )
        self.tensors[name] = GgufTensor(name, shape, kind, start + offset, size)

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32 in `shape`; a fresh array that the caller owns.

        The arithmetic is single float32 multiplications and additions per element, never a sum
        over elements, so every machine gets the same bits.

        Raises:
            CorruptModel: no such tensor.
            UnsupportedModel: a format that cannot be dequantized.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CorruptModel(
                f"{self.path} lacks tensor '{name}'; it is incomplete: download or convert it again"
            )
        raw = np.frombuffer(self._map, np.uint8, tensor.size, tensor.offset)
        count = math.prod(tensor.shape)
        result = np.empty(count, np.float32)
        block, block_size = GGML_QUANT_SIZES[tensor.kind]
        step = max(_SLICE_ELEMENTS // block, 1) * block

        def convert(first: int) -> None:
            last = min(first + step, count)
            data = raw[first // block * block_size : last // block * block_size]
            # The library works in groups of 16 rows, so the length of a row sets its number of
            # Python steps and the size of its temporaries. All of Gemma 3 270M on two cores:
            # rows of 1,024 elements 3.9 s, 4,096 2.4 s, 8,192 2.1 s, 32,768 3.1 s.
            rows = (last - first) // _GROUP_ELEMENTS
            exact = rows and rows * _GROUP_ELEMENTS == last - first and _GROUP_ELEMENTS % block == 0
            shaped = data.reshape(rows if exact else 1, -1)
            result[first:last] = _dequantize(shaped, tensor.kind).reshape(-1)

        try:
            if count <= step:
                convert(0)
            else:
                with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                    list(pool.map(convert, range(0, count, step)))
        except NotImplementedError as error:
            raise UnsupportedModel(
                f"{self.path}: tensor '{name}' is in {tensor.kind.name}, which cannot be read;"
                " requantize the model to a common format such as Q8_0 or Q4_K_M"
            ) from error
        return result.reshape(tensor.shape)
