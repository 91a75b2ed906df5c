"""What a client keeps of a model to check its matrix products: secret sums, a few KB a matrix.

Made once from verified weights, a layer at a time (`making`). The secret vectors themselves follow
from a seed; only their products with the matrices are stored. Whoever learns the seed can forge
products, so the file is readable by its owner alone and never leaves the client.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from unisono.errors import ConfigurationError
from unisono.merkle import HASH_BYTES
from unisono.models.config import DecoderConfig, tensor_shapes
from unisono.models.constants import Constants, constants
from unisono.models.manifest import tensor_kind
from unisono.numerics import linear
from unisono.types import ModelId, is_hex
from unisono.verification.light.field import (
    PRIME,
    SEED_BYTES,
    Elements,
    Limbs,
    input_product,
    limbs,
    output_product,
    secret_vector,
)
from unisono.verification.light.steps import PRODUCTS, PlainLayer

VERSION = 1
MAX_BYTES = 256 << 20
"""Of a file: far above what any supported model needs."""
_RESIDENT = 8
"""Sets of secret vectors that are kept expanded: those of a cell are one."""
_MAGIC = b"unisono light secrets\n"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    model: ModelId
    config: DecoderConfig
    seed: bytes
    embedding_root: bytes
    sums: dict[str, bytes]
    """Matrix → its sums, 8 bytes each; with the embedding as `head` where it is that, too."""
    vectors: dict[str, bytes]
    """Norm weight or bias → its values, 4 bytes each."""
    exponents: dict[str, int]


class Claimed(NamedTuple):
    """A claimed product of a matrix with one row."""

    matrix: str
    """Canonical name; `head` for the output matrix."""
    inputs: NDArray[np.int64]
    """[inputs], below 2**15."""
    outputs: NDArray[np.int64]
    """[outputs], below 2**53."""


_Names = tuple[tuple[str, int], ...]


@dataclass(slots=True)
class Secrets:
    """The secrets of one model. Its text form shows no secret."""

    model: ModelId
    config: DecoderConfig
    seed: bytes = field(repr=False)
    embedding_root: bytes
    """Root of the embedding's tiles (`models.tiles`), by which a token's row is opened."""
    sums: dict[str, Elements] = field(repr=False)
    vectors: dict[str, NDArray[np.int64]] = field(repr=False)
    exponents: dict[str, int] = field(repr=False)
    _expanded: OrderedDict[_Names, tuple[Limbs, Limbs]] = field(
        default_factory=OrderedDict[_Names, tuple[Limbs, Limbs]], repr=False
    )

    def constants(self) -> Constants:
        return constants(self.config)

    def plain_layer(self, index: int) -> PlainLayer:
        """Norms, biases and exponents of a layer."""
        prefix = f"layers.{index}."
        vectors = {n.removeprefix(prefix): n for n in self.vectors if n.startswith(prefix)}
        return PlainLayer(
            {short: self.vector(name) for short, name in vectors.items()},
            {name: self.exponents[prefix + name] for name in PRODUCTS},
        )

    def vector(self, name: str) -> linear.Vector:
        """A norm weight or bias by its canonical name."""
        return linear.Vector(linear.from_numpy(self.vectors[name]), self.exponents[name])

    def wrong_product(self, claimed: Sequence[Claimed]) -> int | None:
        """The first of some products of single rows that is wrong, or None.

        All are checked as one, by the sum of both sides over the matrices, whose vectors are
        independent; only if that fails, one by one. If any is wrong, the sum agrees with
        probability at most 2**-60 over the choice of the seed.
        """
        if self._agree(claimed):
            return None
        return next((i for i, one in enumerate(claimed) if not self._agree([one])), None)

    def _agree(self, claimed: Sequence[Claimed]) -> bool:
        vectors, sums = self._pair(tuple((c.matrix, c.outputs.shape[0]) for c in claimed))
        outputs = np.concatenate([c.outputs for c in claimed])
        inputs = np.concatenate([c.inputs for c in claimed])
        return output_product(vectors, outputs) == input_product(sums, inputs)

    def _pair(self, names: tuple[tuple[str, int], ...]) -> tuple[Limbs, Limbs]:
        """The secret vectors and the sums of some matrices, one after another, expanded."""
        pair = self._expanded.pop(names, None)
        if pair is None:
            vectors = [secret_vector(self.seed, name, count) for name, count in names]
            sums = [self.sums[name] for name, _ in names]
            pair = limbs(np.concatenate(vectors)), limbs(np.concatenate(sums))
        self._expanded[names] = pair
        if len(self._expanded) > _RESIDENT:
            self._expanded.popitem(last=False)
        return pair

    def problem(self) -> str | None:
        """Why these are not the secrets of a whole model, or None."""
        return _problem(self._file())

    def _file(self) -> _File:
        return _File(
            VERSION,
            self.model,
            self.config,
            self.seed,
            self.embedding_root,
            {name: sums.astype("<u8").tobytes() for name, sums in self.sums.items()},
            {name: v.astype("<i4").tobytes() for name, v in self.vectors.items()},
            self.exponents,
        )

    def save(self, path: Path) -> None:
        """Write the file, readable by its owner alone; it appears whole or not at all."""
        data = msgspec.msgpack.encode(self._file())
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(data).digest() + data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, model: ModelId | None = None) -> Secrets:
        """Read a file that `save` wrote.

        Raises:
            ConfigurationError: it cannot be read, others may read it, it is damaged, or it was
                made for another model than `model`.
        """
        file = _read(path)
        if model is not None and file.model != model:
            raise ConfigurationError(
                f"the secrets in {path} are of model {file.model[:12]}…, not of {model[:12]}…: "
                "make them again from that model's weights"
            )
        problem = _problem(file)
        if problem is not None:
            raise ConfigurationError(f"{path} holds no usable secrets: {problem}; make them again")
        return cls(
            file.model,
            file.config,
            file.seed,
            file.embedding_root,
            {n: np.frombuffer(s, "<u8").astype(np.uint64) for n, s in file.sums.items()},
            {n: np.frombuffer(v, "<i4").astype(np.int64) for n, v in file.vectors.items()},
            file.exponents,
        )


def _read(path: Path) -> _File:
    try:
        with path.open("rb") as opened:
            if os.name == "posix" and os.fstat(opened.fileno()).st_mode & 0o077:
                raise ConfigurationError(
                    f"other users may read the secrets in {path}: run `chmod 600 {path}`, or "
                    "make them again if someone may have seen them"
                )
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    head = len(_MAGIC) + HASH_BYTES
    body = data[head:]
    whole = len(data) <= MAX_BYTES and data.startswith(_MAGIC)
    if not whole or hashlib.sha256(body).digest() != data[len(_MAGIC) : head]:
        raise ConfigurationError(f"{path} is damaged or holds no secrets: make them again")
    try:
        file = msgspec.msgpack.decode(body, type=_File)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path} holds no secrets: {error}; make them again") from error
    if file.version != VERSION:
        raise ConfigurationError(
            f"the secrets in {path} have version {file.version}; this program reads version "
            f"{VERSION}: make them again"
        )
    return file


def _problem(file: _File) -> str | None:
    """Why the secrets do not fit their own configuration, or None."""
    shapes: dict[str, Any] = dict(tensor_shapes(file.config))
    embedding = shapes.pop("embedding")
    shapes["head"] = embedding
    sums = {n: 8 * s[1] for n, s in shapes.items() if tensor_kind(n) == "matrix"}
    vectors = {n: 4 * s[0] for n, s in shapes.items() if tensor_kind(n) != "matrix"}
    if not is_hex(file.model, 32):
        return "the model id is malformed"
    if len(file.seed) != SEED_BYTES or len(file.embedding_root) != HASH_BYTES:
        return "the seed or the embedding's root is missing"
    if {n: len(s) for n, s in file.sums.items()} != sums:
        return "the matrices' sums do not fit the configuration"
    if {n: len(v) for n, v in file.vectors.items()} != vectors:
        return "the norms and biases do not fit the configuration"
    if file.exponents.keys() != shapes.keys() | {"embedding"}:
        return "the exponents do not fit the configuration"
    if not all(-256 <= e <= 256 for e in file.exponents.values()):
        return "an exponent is outside ±256"
    if any((np.frombuffer(s, "<u8") >= PRIME).any() for s in file.sums.values()):
        return "a sum is not reduced"
    return None
