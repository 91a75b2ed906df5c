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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from filelock import FileLock

from unisono.errors import CorruptModel
from unisono.models.catalog import open_source, source_fingerprint
from unisono.models.manifest import MANIFEST_VERSION, NUMERICS_VERSION, Manifest
from unisono.numerics import tables
from unisono.types import ModelId, is_hex

CONVERSION_VERSION = 2
"""Changes whenever `models.quantise` makes other integers of the same weights: a source is then
converted again. Models of other versions are as good as before, under their own ids."""

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
        self.manifest = _read_manifest(path / "manifest.json")
        self.details = read_struct(path / "details.json", Details)
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
            return self.get(read_struct(entry, _SourceEntry).model)
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
                from unisono.models.conversion import convert  # only here

                stored = StoredModel(convert(open_source(model), self.root, progress))
                entry = self._entry(source_fingerprint(model))
                entry.parent.mkdir(parents=True, exist_ok=True)
                write_file(entry, msgspec.json.encode(_SourceEntry(stored.id)))
        return stored

    def _entry(self, fingerprint: str) -> Path:
        versions = f"{MANIFEST_VERSION}/{NUMERICS_VERSION}/{CONVERSION_VERSION}"
        key = hashlib.sha256(f"{versions}/{tables.digest()}/{fingerprint}".encode()).hexdigest()
        return self.root / "sources" / f"{key}.json"


class _Version(msgspec.Struct, frozen=True):
    """What every version of a manifest has, the first excepted."""

    version: int = 1


def _read_manifest(path: Path) -> Manifest:
    try:
        return read_struct(path, Manifest)
    except CorruptModel:
        found = read_struct(path, _Version).version
        if found == MANIFEST_VERSION:
            raise
        raise CorruptModel(
            f"cannot read {path}: it has version {found} and this program reads version "
            f"{MANIFEST_VERSION}; delete {path.parent} and convert the model again from its "
            "source, e.g. with 'unisono models add FILE_OR_FOLDER_OR_HUB_ID'"
        ) from None


def read_struct(path: Path, kind: type[_T]) -> _T:
    """A JSON file as a struct.

    Raises:
        CorruptModel: missing, or not of this form.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise CorruptModel(f"cannot read {path}: {error}") from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(data)
    temporary.replace(path)
