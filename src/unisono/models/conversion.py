"""From a loader's float tensors to a stored canonical model."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

import msgspec
import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from unisono.models.config import tensor_shapes
from unisono.models.manifest import (
    NUMERICS_VERSION,
    Manifest,
    TensorEntry,
    part_of,
    tensor_kind,
)
from unisono.models.quantise import quantise_bias, quantise_matrix, quantise_norm
from unisono.models.source import ModelSource
from unisono.models.store import Details, Progress, write_file
from unisono.numerics import tables


def convert(source: ModelSource, root: Path, progress: Progress | None = None) -> Path:
    """Quantise a source tensor by tensor and store it; returns its folder.

    Raises:
        ModelError: the source cannot be used.
    """
    names = list(tensor_shapes(source.config))
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=root))
    try:
        entries: dict[str, TensorEntry] = {}
        pending: dict[str, Tensor] = {}
        for done, name in enumerate(names):
            if progress is not None:
                progress(done, len(names), name)
            kind = tensor_kind(name)
            values = source.read(name)
            if kind == "matrix":
                matrix = quantise_matrix(name, values)
                parts = [matrix.values, matrix.multipliers.view(torch.int16)]
                pending |= {f"{name}.values": parts[0], f"{name}.multipliers": parts[1]}
                exponent = matrix.exponent
            else:
                make = quantise_norm if kind == "norm" else quantise_bias
                vector = make(name, values)
                parts = [vector.values.to(torch.int32)]
                pending[name] = parts[0]
                exponent = vector.exponent
            entries[name] = TensorEntry(kind, tuple(values.shape), exponent, hash_parts(parts))
            if done + 1 == len(names) or part_of(names[done + 1]) != part_of(name):
                cast(Any, safetensors_torch).save_file(
                    pending, folder / f"{part_of(name)}.safetensors"
                )
                pending = {}
        manifest = Manifest(NUMERICS_VERSION, tables.digest(), source.config, entries)
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


def _same_files(made: Path, stored: Path) -> bool:
    """Whether `stored` holds the manifest of `made` and a file of each name and size."""
    if not stored.exists():
        return False
    sizes = {f.name: f.stat().st_size for f in made.iterdir()}
    known = {f.name: f.stat().st_size for f in stored.iterdir()}
    manifest = "manifest.json"
    return sizes == known and ((made / manifest).read_bytes() == (stored / manifest).read_bytes())


def hash_parts(parts: list[Tensor]) -> str:
    """SHA-256 of tensors' bytes, one after another; see `TensorEntry`."""
    state = hashlib.sha256()
    for part in parts:
        state.update(memoryview(cast(Any, part.contiguous().numpy())).cast("B"))
    return state.hexdigest()
