"""Converted models on disk: content-addressed, written once, checked by hash at load.

ROOT/sources/FINGERPRINT.json      which source became which model
ROOT/models/MODEL_ID/manifest.json
                     details.json  name and hashes of the tokenizer's files
                     embedding.safetensors  layers.I.safetensors …  head.safetensors
                     tokenizer.json …
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unisono.errors import ConfigurationError, CorruptModel
from unisono.models.catalog import open_source, source_fingerprint
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
from unisono.models.weights import BlockWeights, LayerWeights
from unisono.numerics import tables
from unisono.numerics.linear import Matrix, Vector
from unisono.types import LayerRange, ModelId, is_hex

Progress = Callable[[int, int, str], None]
"""Called with (tensors done, tensors in all, tensor name)."""

_T = TypeVar("_T")


class Details(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored with a model but does not change what it computes."""

    name: str
    files: dict[str, str]
    """Tokenizer file name → SHA-256."""


class _SourceEntry(msgspec.Struct, frozen=True):
    model: ModelId


def default_root() -> Path:
    """`$UNISONO_CACHE`, else `unisono` in the user's cache folder."""
    if chosen := os.environ.get("UNISONO_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "unisono"


class StoredModel:
    """One converted model."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read(path / "manifest.json", Manifest)
        self.details = _read(path / "details.json", Details)
        self.id = self.manifest.model_id
        if self.id != path.name:
            raise CorruptModel(
                f"{path / 'manifest.json'} hashes to {self.id[:12]}…, not to its folder's name: "
                "delete the folder and convert the model again"
            )
        self.manifest.check()

    @property
    def name(self) -> str:
        return self.details.name

    @property
    def layer_count(self) -> int:
        return self.manifest.config.layer_count

    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files, hashes checked.

        Raises:
            CorruptModel: a file is missing or altered.
        """
        files: dict[str, bytes] = {}
        for name, expected in self.details.files.items():
            try:
                data = (self.path / name).read_bytes()
            except OSError as error:
                raise CorruptModel(f"cannot read {self.path / name}: {error.strerror}") from error
            if hashlib.sha256(data).hexdigest() != expected:
                raise CorruptModel(
                    f"{self.path / name} does not have the hash that was recorded: delete "
                    f"{self.path} and convert the model again"
                )
            files[name] = data
        return files

    def load(self, layers: LayerRange, device: str = "cpu") -> BlockWeights:
        """Read a block's weights and nothing else, every tensor's hash checked.

        Raises:
            ConfigurationError: the model has no such layers.
            CorruptModel: a file is missing, or a tensor has another hash, dtype or shape.
        """
        count = self.layer_count
        if not 0 <= layers.start < layers.stop <= count:
            raise ConfigurationError(
                f"layers {layers} are not a block of '{self.name}', which has layers 0:{count}"
            )
        config = self.manifest.config
        wanted = [n for n in self.manifest.tensors if _in_block(n, layers, count)]
        if layers.stop == count and config.tied_head and "embedding" not in wanted:
            wanted.append("embedding")
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            tensors = dict(
                zip(wanted, pool.map(lambda n: self._tensor(n, device), wanted), strict=True)
            )

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

    def _tensor(self, name: str, device: str) -> Matrix | Vector:
        entry = self.manifest.tensors[name]
        file = self.path / f"{part_of(name)}.safetensors"
        try:
            with safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
                handle = cast(Any, opened)
                if entry.kind == "matrix":
                    parts: list[Tensor] = [
                        handle.get_tensor(f"{name}.values"),
                        handle.get_tensor(f"{name}.multipliers"),
                    ]
                else:
                    parts = [handle.get_tensor(name)]
        except (SafetensorError, OSError) as error:
            raise CorruptModel(f"cannot read tensor '{name}' of {file}: {error}") from error
        if _hash(parts) != entry.sha256 or parts[0].shape != entry.shape:
            raise CorruptModel(
                f"tensor '{name}' of {file} does not have the hash that the manifest commits "
                f"to: delete {self.path} and convert the model again"
            )
        if entry.kind == "matrix":
            return Matrix(
                parts[0].to(device), parts[1].view(torch.uint16).to(device), entry.exponent
            )
        return Vector(parts[0].to(torch.int64).to(device), entry.exponent)


class ModelStore:
    """The folder of converted models."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def list(self) -> list[StoredModel]:
        """Every readable model."""
        return list(self._models())

    def _models(self) -> Iterator[StoredModel]:
        for path in sorted((self.root / "models").glob("*/manifest.json")):
            try:
                yield StoredModel(path.parent)
            except CorruptModel:
                continue

    def get(self, model: ModelId) -> StoredModel:
        """A model by its id.

        Raises:
            CorruptModel: it is not here, or damaged.
        """
        path = self.root / "models" / model
        if not is_hex(model, 32) or not (path / "manifest.json").exists():
            raise CorruptModel(
                f"model {model[:12]}… is not in {self.root}: convert it first, e.g. with "
                "'unisono models add FILE_OR_FOLDER_OR_HUB_ID'"
            )
        return StoredModel(path)

    def cached(self, model: str) -> StoredModel | None:
        """The converted form of a source, if it is here already; cheap."""
        if is_hex(model, 32):
            return self.get(ModelId(model))
        entry = self._entry(source_fingerprint(model))
        if not entry.exists():
            return None
        try:
            return self.get(_read(entry, _SourceEntry).model)
        except CorruptModel:
            return None

    def ensure(self, model: str, progress: Progress | None = None) -> StoredModel:
        """The converted form of a model named by a model id, a catalog name, a GGUF file, a
        folder or a hub id; converted now if it is not here yet.

        Raises:
            ModelError: the source cannot be used.
            ConfigurationError: nothing is found under this name.
        """
        stored = self.cached(model)
        if stored is not None:
            return stored
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "convert.lock"):  # another process may be converting it
            stored = self.cached(model)
            if stored is None:
                source = open_source(model)
                stored = self._convert(source, progress)
                entry = self._entry(source_fingerprint(model))
                entry.parent.mkdir(parents=True, exist_ok=True)
                _write(entry, msgspec.json.encode(_SourceEntry(stored.id)))
        return stored

    def _entry(self, fingerprint: str) -> Path:
        key = hashlib.sha256(
            f"{NUMERICS_VERSION}/{tables.digest()}/{fingerprint}".encode()
        ).hexdigest()
        return self.root / "sources" / f"{key}.json"

    def _convert(self, source: ModelSource, progress: Progress | None) -> StoredModel:
        names = list(tensor_shapes(source.config))
        folder = Path(tempfile.mkdtemp(prefix="convert-", dir=self.root))
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
                entries[name] = TensorEntry(kind, tuple(values.shape), exponent, _hash(parts))
                if done + 1 == len(names) or part_of(names[done + 1]) != part_of(name):
                    save_file(pending, folder / f"{part_of(name)}.safetensors")
                    pending = {}
            manifest = Manifest(NUMERICS_VERSION, tables.digest(), source.config, entries)
            files = source.tokenizer_files()
            for file, data in files.items():
                _write(folder / file, data)
            hashes = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
            _write(folder / "details.json", msgspec.json.encode(Details(source.name, hashes)))
            _write(folder / "manifest.json", msgspec.json.encode(manifest))
            target = self.root / "models" / manifest.model_id
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # damaged, or converted from another source of equal weights
                shutil.rmtree(target)
            folder.rename(target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return StoredModel(target)


def _in_block(name: str, layers: LayerRange, count: int) -> bool:
    part = part_of(name)
    if part == "embedding":
        return layers.start == 0
    if part == "head":
        return layers.stop == count
    return layers.start <= int(part.split(".")[1]) < layers.stop


def _hash(parts: list[Tensor]) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(memoryview(cast(Any, part.contiguous().numpy())).cast("B"))
    return state.hexdigest()


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise CorruptModel(f"cannot read {path}: {error}") from error


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)
