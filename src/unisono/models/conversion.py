"""From a loader's float tensors to a stored canonical model, a few rows at a time.

A matrix is read twice: for its largest magnitude, from which its exponent follows, and to be
quantised. Rows are worked on in pieces by some threads and go to their file at once, so that
the memory needed depends neither on the model's size nor on that of its largest matrix.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from unisono.models.config import tensor_shapes
from unisono.models.fields import table_roots
from unisono.models.manifest import (
    MANIFEST_VERSION,
    NUMERICS_VERSION,
    Manifest,
    TensorEntry,
    part_of,
    tensor_kind,
)
from unisono.models.quantise import (
    largest_magnitude,
    matrix_exponent,
    quantise_bias,
    quantise_norm,
    quantise_rows,
    search_of,
)
from unisono.models.safetensors_file import TensorWriter
from unisono.models.source import ModelSource
from unisono.models.store import Details, Progress, write_file
from unisono.models.tiles import matrix_leaves, root_of_leaves, tensor_root
from unisono.numerics.tensors import GROUP

PIECE = 1 << 20
"""Weights that a thread works on at a time: 4 MiB as float32."""
MAX_THREADS = 8

_Shape = tuple[int, ...]
_Rows = Callable[[range], NDArray[np.float32]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@runtime_checkable
class RowSource(Protocol):
    """A `ModelSource` that reads parts of matrices, from several threads."""

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start:stop` (not none) of the matrix `ModelSource.read(name)`, float32
        [stop - start, inputs]; raises as it does."""
        ...


def convert(source: ModelSource, root: Path, progress: Progress | None = None) -> Path:
    """Quantise a source and store it; returns its folder.

    At a time, `MAX_THREADS` pieces of `PIECE` weights are held as floats at most; of a source
    that is no `RowSource`, one tensor.

    Raises:
        ModelError: the source cannot be used.
    """
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=root))
    try:
        entries = _store_tensors(source, folder, progress)
        manifest = Manifest(
            MANIFEST_VERSION, NUMERICS_VERSION, table_roots(), source.config, entries
        )
        files = source.tokenizer_files()
        for file, data in files.items():
            write_file(folder / file, data)
        hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
        write_file(folder / "details.json", msgspec.json.encode(Details(source.name, hashes)))
        write_file(folder / "manifest.json", msgspec.json.encode(manifest))
        target = root / "models" / manifest.model_id
        target.parent.mkdir(parents=True, exist_ok=True)
        if _same_files(folder, target):  # from another source of equal weights, maybe in use
            return target
        if target.exists():  # damaged
            shutil.rmtree(target)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _store_tensors(
    source: ModelSource, folder: Path, progress: Progress | None
) -> dict[str, TensorEntry]:
    shapes = tensor_shapes(source.config)
    entries: dict[str, TensorEntry] = {}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for part, names in groupby(shapes, part_of):
            wanted = list(names)
            stored = _stored_shapes({name: shapes[name] for name in wanted})
            with TensorWriter(folder / f"{part}.safetensors", stored) as file:
                for name in wanted:
                    if progress is not None:
                        progress(len(entries), len(shapes), name)
                    if tensor_kind(name) == "matrix":
                        entries[name] = _store_matrix(source, name, shapes[name], file, pool)
                    else:
                        entries[name] = _store_vector(source, name, file)
    return entries


def _stored_shapes(shapes: dict[str, _Shape]) -> dict[str, tuple[str, _Shape]]:
    """Stored name → dtype and shape of the parts of some canonical tensors."""
    stored: dict[str, tuple[str, _Shape]] = {}
    for name, shape in shapes.items():
        if tensor_kind(name) == "matrix":
            # uint16 under the name of int16: torch reads that in every version
            stored[f"{name}.multipliers"] = ("I16", (shape[0], shape[1] // GROUP))
            stored[f"{name}.values"] = ("I8", shape)
        else:
            stored[name] = ("I32", shape)
    return stored


def _store_vector(source: ModelSource, name: str, file: TensorWriter) -> TensorEntry:
    kind = tensor_kind(name)
    vector = (quantise_norm if kind == "norm" else quantise_bias)(name, source.read(name))
    values = vector.values.astype(np.int32)
    file.write(name, values)
    return TensorEntry(kind, values.shape, vector.exponent, tensor_root([values]))


def _store_matrix(
    source: ModelSource, name: str, shape: _Shape, file: TensorWriter, pool: ThreadPoolExecutor
) -> TensorEntry:
    read = _row_reader(source, name)
    # A power of two: GGUF tensors are unpacked much faster in multiples of 8,192 weights.
    step = 1 << max(0, (PIECE // shape[1]).bit_length() - 1)
    pieces = [range(i, min(i + step, shape[0])) for i in range(0, shape[0], step)]
    magnitudes = _in_order(pool, lambda rows: largest_magnitude(name, read(rows)), pieces)
    search = search_of(name)
    exponent = matrix_exponent(max(magnitudes), search)

    def stored(rows: range) -> tuple[NDArray[np.int8], NDArray[np.uint16], bytes]:
        values, multipliers = quantise_rows(read(rows), exponent, search)
        return values, multipliers, matrix_leaves(values, multipliers)

    def written() -> Iterator[bytes]:
        for values, multipliers, leaves in _in_order(pool, stored, pieces):
            file.write(f"{name}.values", values)
            file.write(f"{name}.multipliers", multipliers)
            yield leaves

    return TensorEntry("matrix", shape, exponent, root_of_leaves(written()))


def _row_reader(source: ModelSource, name: str) -> _Rows:
    if isinstance(source, RowSource):
        return lambda rows: source.read_rows(name, rows.start, rows.stop)
    whole = source.read(name)
    return lambda rows: whole[rows.start : rows.stop]


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """`pool.map`, but never more than a few results ahead of whoever takes them."""
    pending: deque[Future[_Result]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) > 2 * MAX_THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _same_files(made: Path, stored: Path) -> bool:
    """Whether `stored` holds the manifest of `made` and a file of each name and size."""
    if not stored.exists():
        return False
    sizes = {f.name: f.stat().st_size for f in made.iterdir()}
    known = {f.name: f.stat().st_size for f in stored.iterdir()}
    manifest = "manifest.json"
    return sizes == known and ((made / manifest).read_bytes() == (stored / manifest).read_bytes())
