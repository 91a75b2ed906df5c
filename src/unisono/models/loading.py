"""Reading a block's weights from a stored model, every tensor's hash checked."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from unisono.errors import ConfigurationError, CorruptModel
from unisono.models.manifest import part_of
from unisono.models.store import StoredModel
from unisono.models.tiles import tensor_root
from unisono.models.weights import BlockWeights, LayerWeights
from unisono.numerics.tensors import BIAS_BITS, GROUP, WEIGHT_BITS, Matrix, Vector
from unisono.types import LayerRange


def load_block(model: StoredModel, layers: LayerRange) -> BlockWeights:
    """Read a block's weights and nothing else, every tensor's hash checked.

    Raises:
        ConfigurationError: the model has no such layers.
        CorruptModel: a file is missing, or a tensor has another hash, dtype or shape.
    """
    count = model.layer_count
    if not 0 <= layers.start < layers.stop <= count:
        raise ConfigurationError(
            f"layers {layers} are not a block of '{model.name}', which has layers 0:{count}"
        )
    config = model.manifest.config
    wanted = [n for n in model.manifest.tensors if _in_block(n, layers, count)]
    if layers.stop == count and config.tied_head and "embedding" not in wanted:
        wanted.append("embedding")

    def read(name: str) -> Matrix | Vector:
        return _tensor(model, name)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        tensors = dict(zip(wanted, pool.map(read, wanted), strict=True))

    def matrix(name: str) -> Matrix | None:
        return cast("Matrix | None", tensors.get(name))

    loaded: dict[int, LayerWeights] = {}
    for i in range(layers.start, layers.stop):
        prefix = f"layers.{i}."
        parts = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
        loaded[i] = LayerWeights(**cast("dict[str, Any]", parts))
    last = layers.stop == count
    return BlockWeights(
        layers=layers,
        layer=loaded,
        embedding=matrix("embedding") if layers.start == 0 else None,
        final_norm=cast("Vector | None", tensors.get("final_norm")) if last else None,
        head=matrix("embedding" if config.tied_head else "head") if last else None,
    )


def read_parts(model: StoredModel, name: str) -> list[NDArray[Any]]:
    """A tensor as it is stored: int8 values and int16 multipliers (their bits are unsigned) of a
    matrix, or int32 values of a vector; hash checked.

    Raises:
        CorruptModel: the file is missing, or the tensor has another hash, dtype or shape.
    """
    entry = model.manifest.tensors[name]
    file = model.path / f"{part_of(name)}.safetensors"
    shapes = {name: (np.dtype(np.int32), entry.shape)}
    if entry.kind == "matrix":
        groups = (*entry.shape[:-1], entry.shape[-1] // GROUP)
        shapes = {
            f"{name}.values": (np.dtype(np.int8), entry.shape),
            f"{name}.multipliers": (np.dtype(np.int16), groups),
        }
    try:
        with safe_open(file, framework="np") as opened:  # type: ignore[no-untyped-call]
            parts: list[NDArray[Any]] = [cast(Any, opened).get_tensor(n) for n in shapes]
    except (SafetensorError, OSError) as error:
        raise CorruptModel(f"cannot read tensor '{name}' of {file}: {error}") from error
    if [(p.dtype, p.shape) for p in parts] != [*shapes.values()]:
        raise CorruptModel(f"tensor '{name}' of {file} is not stored in the canonical form")
    if tensor_root(parts) != entry.root:
        raise CorruptModel(
            f"tensor '{name}' of {file} does not have the hash that the manifest commits "
            f"to: delete {model.path} and convert the model again"
        )
    return parts


def _tensor(model: StoredModel, name: str) -> Matrix | Vector:
    entry, parts = model.manifest.tensors[name], read_parts(model, name)
    if entry.kind == "matrix":
        return Matrix(parts[0], parts[1].view(np.uint16), entry.exponent)
    limit = 1 << (WEIGHT_BITS if entry.kind == "norm" else BIAS_BITS)
    if parts[0].size and int(np.abs(parts[0]).max()) >= limit:
        raise CorruptModel(f"tensor '{name}' of {model.path} holds a value of {limit} or more")
    return Vector(parts[0].astype(np.int64), entry.exponent)


def _in_block(name: str, layers: LayerRange, count: int) -> bool:
    part = part_of(name)
    if part == "embedding":
        return layers.start == 0
    if part == "head":
        return layers.stop == count
    return layers.start <= int(part.split(".")[1]) < layers.stop
