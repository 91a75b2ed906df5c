"""The manifest: the list of hashes that a model id stands for."""

from __future__ import annotations

from typing import Literal

import msgspec

from unisono.errors import CorruptModel
from unisono.models.config import DecoderConfig, tensor_shapes
from unisono.numerics import tables
from unisono.types import ModelId, canonical, digest

NUMERICS_VERSION = 1
"""Changes whenever the meaning of any canonical operator changes."""


class TensorEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor: how to read its bytes, and their hash.

    The hash is SHA-256 over the int8 values and then the uint16 multipliers of a matrix, or
    over the int32 values of a vector, little-endian, in row order.
    """

    kind: Literal["matrix", "norm", "bias"]
    shape: tuple[int, ...]
    exponent: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Architecture, numerics version, table hash, and every tensor in `tensor_shapes` order."""

    numerics: int
    tables: str
    config: DecoderConfig
    tensors: dict[str, TensorEntry]

    @property
    def model_id(self) -> ModelId:
        """64 hex digits: two manifests with the same id compute the same tokens."""
        return ModelId(digest("model/1", canonical(self)).hex())

    def check(self) -> None:
        """Whether this program can run the model exactly.

        Raises:
            CorruptModel: other tables, another numerics version, or tensors that do not
                fit the configuration.
        """
        if self.numerics != NUMERICS_VERSION or self.tables != tables.digest():
            raise CorruptModel(
                f"the manifest is of numerics version {self.numerics} with tables "
                f"{self.tables[:12]}…; this program has version {NUMERICS_VERSION} with tables "
                f"{tables.digest()[:12]}…: convert the model again"
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
