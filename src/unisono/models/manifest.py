"""The manifest: what a model id commits to (`models.fields`), down to the tiles of weights."""

from __future__ import annotations

from typing import Literal

import msgspec

from unisono.errors import CorruptModel, UnsupportedModel
from unisono.merkle import HASH_BYTES, seal
from unisono.models.config import DecoderConfig, tensor_shapes
from unisono.models.fields import DOMAIN, field_tree, table_roots
from unisono.types import ModelId, is_hex

NUMERICS_VERSION = 1
"""Changes whenever the meaning of any canonical operator changes."""
MANIFEST_VERSION = 2
"""Changes whenever the form of the manifest or of the hashes in it changes."""


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor: how to read its bytes, and the root of its tiles (`models.tiles`)."""

    kind: Literal["matrix", "norm", "bias"]
    shape: tuple[int, ...]
    exponent: int
    root: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Architecture, numerics version, roots of the tables, and every tensor in `tensor_shapes`
    order."""

    version: int
    numerics: int
    tables: dict[str, str]
    config: DecoderConfig
    tensors: dict[str, TensorEntry]

    @property
    def model_id(self) -> ModelId:
        """64 hex digits, the root over all fields: two manifests with the same id compute the
        same tokens.

        Raises:
            CorruptModel: a hash or a number in it is none.
        """
        hashes = [*self.tables.values(), *(entry.root for entry in self.tensors.values())]
        if not all(is_hex(root, HASH_BYTES) for root in hashes):
            raise CorruptModel("a root in the manifest is not 64 hex digits")
        if not all(len(entry.shape) in (1, 2) for entry in self.tensors.values()):
            raise CorruptModel("a tensor in the manifest is neither a matrix nor a vector")
        try:
            tree = field_tree(self)
        except (OverflowError, ValueError, UnsupportedModel) as error:
            raise CorruptModel(f"a field of the manifest is out of range: {error}") from error
        return ModelId(seal(DOMAIN, len(tree), tree.top()).hex())

    def check(self) -> None:
        """Whether this program can run the model exactly.

        Raises:
            CorruptModel: another form or numerics version, other tables, or tensors that do not
                fit the configuration.
        """
        if (self.version, self.numerics) != (MANIFEST_VERSION, NUMERICS_VERSION):
            raise CorruptModel(
                f"the manifest has version {self.version} and numerics version {self.numerics}; "
                f"this program has {MANIFEST_VERSION} and {NUMERICS_VERSION}: convert the model "
                "again"
            )
        if self.tables != table_roots():
            raise CorruptModel(
                "the manifest commits to other tables than this program's: convert the model again"
            )
        expected = tensor_shapes(self.config)
        if list(self.tensors) != list(expected):
            odd = sorted(set(self.tensors) ^ set(expected)) or ["their order"]
            raise CorruptModel(f"the manifest's tensors do not fit its configuration: {odd[0]}")
        for name, entry in self.tensors.items():
            if entry.shape != expected[name]:
                raise CorruptModel(
                    f"tensor '{name}' has shape {entry.shape}; the configuration expects "
                    f"{expected[name]}"
                )
            if entry.kind != tensor_kind(name):
                raise CorruptModel(f"tensor '{name}' is stored as a {entry.kind}")
            if not -256 <= entry.exponent <= 256:
                raise CorruptModel(f"tensor '{name}' has exponent {entry.exponent}")


def tensor_kind(name: str) -> Literal["matrix", "norm", "bias"]:
    """What a canonical tensor name holds."""
    if name.endswith("_norm"):
        return "norm"
    return "bias" if name.endswith("_bias") else "matrix"


def part_of(name: str) -> str:
    """The stored file that holds a tensor: `embedding`, `layers.I`, or `head`."""
    if name.startswith("layers."):
        return ".".join(name.split(".")[:2])
    return "embedding" if name == "embedding" else "head"
