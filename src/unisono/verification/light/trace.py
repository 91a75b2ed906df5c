"""The node's side of a light audit: regenerate what lies between a hop's rows, and open it.

Nothing of it is kept while the hop serves. One prefill pass over the hop's input gives every inner
row, key and value again, bit by bit; a Merkle tree over them fixes the whole trace before the
client draws what to look at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unisono.models import tiles
from unisono.models.config import DecoderConfig
from unisono.models.constants import constants
from unisono.models.decoder import Rows
from unisono.models.rows import row_hashes
from unisono.models.tiles import matrix_leaves
from unisono.models.weights import BlockWeights, LayerWeights
from unisono.numerics import residual, tensors
from unisono.numerics.fixed import reduce_rows
from unisono.numerics.linear import Matrix, Vector, from_numpy, product
from unisono.numerics.norm import rms_norm
from unisono.numerics.tensors import INPUT_BITS
from unisono.verification.light.grid import Grid
from unisono.verification.light.leaves import TRACE, leaf, memory_hashes
from unisono.verification.light.messages import (
    CellName,
    CellOpening,
    Challenge,
    EmbeddingRow,
    HeadOpening,
    Memory,
    RowIn,
    RowOut,
    SampleOpening,
    pack,
)
from unisono.verification.light.steps import PRODUCTS, KeysValues, PlainLayer, Steps, residual_row
from unisono.wire.claims import token_hash
from unisono.wire.mountain_range import MountainRange

_CHUNK = 256
"""Positions that are regenerated at once."""
_STORED = ("stored_key", "stored_value")


class Trace:
    """Every cell of a hop's block for one session, regenerated from what came in."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: BlockWeights,
        source: Sequence[int] | Rows,
        steps: type[Steps] = Steps,
    ) -> None:
        """`source`: the token ids of positions 0, 1, … for a block that begins the model, else
        the rows that came in, int64 [n, hidden]."""
        torch.set_grad_enabled(False)
        self.config, self.weights, self.layers = config, weights, weights.layers
        self.positions = len(source)
        self._fixed = constants(config)
        self._embedding: Grid | None = None
        self._tokens: tuple[int, ...] | None = None
        if isinstance(source, np.ndarray):
            rows = from_numpy(np.ascontiguousarray(source, dtype=np.int64))
        else:
            self._tokens = tuple(source)
            rows = self._embedded(self._tokens)
        self._in = MountainRange(incoming_hashes(source))
        self._rows = [rows]
        self._held: list[KeysValues] = []
        self._steps: list[Steps] = []
        self._matrices: list[dict[str, Matrix]] = []
        for i in range(self.layers.start, self.layers.stop):
            plain, matrices = _taken_apart(weights.layer[i])
            self._matrices.append(matrices)
            self._steps.append(steps(config, self._fixed, i, plain))
            self._regenerate(len(self._steps) - 1)
        self._hashes = [row_hashes(_numpy(rows)) for rows in self._rows]
        self._memory = [memory_hashes(held) for held in self._held]
        self._out = MountainRange(self._hashes[-1])
        leaves = [
            leaf(row, memory)
            for rows, memories in zip(self._hashes, self._memory, strict=False)
            for row, memory in zip(rows, memories, strict=True)
        ]
        self._grid = Grid(TRACE, b"".join(leaves))

    @property
    def root(self) -> str:
        """64 hex digits that commit to every cell."""
        return self._grid.root.hex()

    @property
    def rows_in(self) -> str:
        """The root that an honest claim has for what came in."""
        return self._in.root()

    @property
    def rows_out(self) -> str:
        """The root that an honest claim has for what went out."""
        return self._out.root()

    @property
    def out(self) -> Rows:
        """The rows that leave the block, int64 [n, hidden]."""
        return _numpy(self._rows[-1])

    def holds(self, challenge: Challenge) -> bool:
        """Whether everything that a challenge asks for is in this trace."""
        cells = (*challenge.cells, *challenge.samples)
        inside = self.layers.start, self.layers.stop
        return (
            all(inside[0] <= c.layer < inside[1] and c.position < self.positions for c in cells)
            and (not challenge.heads or self.weights.head is not None)
            and all(p < self.positions for p in challenge.heads)
        )

    def open_cell(self, name: CellName) -> CellOpening:
        """Everything of one cell."""
        at, p = name.layer - self.layers.start, name.position
        steps, held = self._steps[at], self._held[at]
        first = steps.first_seen(p)
        products: dict[str, bytes] = {}
        results: dict[str, tuple[bytes, bytes]] = {}
        steps.run(
            self._rows[at][p : p + 1],
            p,
            self._recorded(at, products),
            _recorder(results),
            lambda _: (first, held.part(first, p + 1)),
        )
        for kept in (*_STORED, "mlp_sum"):
            del results[kept]
        return CellOpening(
            self._row_in(at, p),
            products,
            results,
            _memory(held.part(first, p + 1)),
            b"".join(self._hashes[at][first:p]),
            self._path(at, first, p + 1),
            self._row_out(at, p),
        )

    def open_sample(self, name: CellName) -> SampleOpening:
        """What one cell leaves to later positions."""
        at, p = name.layer - self.layers.start, name.position
        products: dict[str, bytes] = {}
        results: dict[str, tuple[bytes, bytes]] = {}
        rows = self._rows[at][p : p + 1]
        self._steps[at].stored(rows, p, self._recorded(at, products), _recorder(results))
        for kept in _STORED:
            del results[kept]
        return SampleOpening(
            self._row_in(at, p),
            products,
            results,
            _memory(self._held[at].part(p, p + 1)),
            self._path(at, p, p + 1),
        )

    def open_head(self, position: int) -> HeadOpening:
        """The logits after a position, of a block that ends the model."""
        head, norm = self.weights.head, self.weights.final_norm
        assert head is not None
        assert norm is not None
        rows = residual_row(self._rows[-1][position : position + 1])
        weight = Vector.on("cpu", norm)
        normal = rms_norm(*rows, weight.values, weight.exponent, self._fixed.epsilon)
        h, exponent = reduce_rows(*normal, INPUT_BITS)
        out = product(h, Matrix.on("cpu", head))
        last = len(self._steps) - 1
        return HeadOpening(
            self._row_out(last, position), (_packed(h), _packed(exponent)), _packed(out)
        )

    def _embedded(self, tokens: Sequence[int]) -> Tensor:
        assert self.weights.embedding is not None
        embedding = Matrix.on("cpu", self.weights.embedding)
        return residual.embed(torch.tensor(tokens), embedding, self._fixed.embedding_scale)

    def _regenerate(self, at: int) -> None:
        """Add the rows after layer `at`, and its keys and values."""
        steps, multiply = self._steps[at], self._multiply(at)
        out: list[Tensor] = []
        parts: list[KeysValues] = []
        for start in range(0, self.positions, _CHUNK):

            def seen(own: KeysValues, start: int = start) -> tuple[int, KeysValues]:
                parts.append(own)
                first = steps.first_seen(start)
                return first, _joined(parts).part(first, start + len(own.keys))

            rows = self._rows[at][start : start + _CHUNK]
            out.append(steps.run(rows, start, multiply, _ignore, seen))
        self._rows.append(torch.cat(out))
        self._held.append(_joined(parts))

    def _multiply(self, at: int) -> Callable[[str, Tensor], Tensor]:
        matrices = self._matrices[at]
        return lambda name, x: product(x, matrices[name])

    def _recorded(self, at: int, found: dict[str, bytes]) -> Callable[[str, Tensor], Tensor]:
        multiply = self._multiply(at)

        def recorded(name: str, x: Tensor) -> Tensor:
            out = multiply(name, x)
            found[name] = _packed(out)
            return out

        return recorded

    def _path(self, at: int, start: int, stop: int) -> bytes:
        base = at * self.positions
        return self._grid.path(base + start, base + stop)

    def _row_in(self, at: int, position: int) -> RowIn:
        row = _packed(self._rows[at][position])
        if at:
            return RowIn(row)
        proof = self._in.prove(position).to_bytes()
        return RowIn(row, proof, None if self._tokens is None else self._embedding_row(position))

    def _embedding_row(self, position: int) -> EmbeddingRow:
        assert self._tokens is not None
        assert self.weights.embedding is not None
        embedding, token = self.weights.embedding, self._tokens[position]
        if self._embedding is None:
            leaves = matrix_leaves(embedding.values, embedding.multipliers)
            self._embedding = Grid(tiles.DOMAIN, leaves, tiles.pairs)
        values = embedding.values[token].tobytes()
        multipliers = embedding.multipliers[token].astype("<u2").tobytes()
        count = tiles.tiles_per_row(embedding.values.shape)
        path = self._embedding.path(token * count, (token + 1) * count)
        return EmbeddingRow(values, multipliers, path)

    def _row_out(self, at: int, position: int) -> RowOut:
        row = _packed(self._rows[at + 1][position])
        if at + 1 == len(self._steps):
            return RowOut(row, self._out.prove(position).to_bytes())
        path = self._path(at + 1, position, position + 1)
        return RowOut(row, memory=self._memory[at + 1][position], path=path)


def incoming_hashes(source: Sequence[int] | Rows) -> list[bytes]:
    """What the claim's rows in commit to, position by position."""
    if isinstance(source, np.ndarray):
        return row_hashes(source)
    return [token_hash(t) for t in source]


def _taken_apart(layer: LayerWeights) -> tuple[PlainLayer, dict[str, Matrix]]:
    vectors: dict[str, Vector] = {}
    matrices: dict[str, Matrix] = {}
    for part in fields(layer):
        tensor = getattr(layer, part.name)
        if isinstance(tensor, tensors.Matrix):
            matrices[part.name] = Matrix.on("cpu", tensor)
        elif isinstance(tensor, tensors.Vector):
            vectors[part.name] = Vector.on("cpu", tensor)
    exponents = {name: matrices[name].exponent for name in PRODUCTS}
    return PlainLayer(vectors, exponents), matrices


def _joined(parts: list[KeysValues]) -> KeysValues:
    return KeysValues(*(torch.cat(x) for x in zip(*(p.all() for p in parts), strict=True)))


def _memory(held: KeysValues) -> Memory:
    return Memory(*(_packed(x) for x in held.all()))


def _recorder(found: dict[str, tuple[bytes, bytes]]) -> Callable[..., None]:
    def record(name: str, mantissas: Tensor, exponents: Tensor | None) -> None:
        found[name] = _packed(mantissas), b"" if exponents is None else _packed(exponents)

    return record


def _ignore(name: str, mantissas: Tensor, exponents: Tensor | None) -> None:
    """Regenerating a trace keeps no operator's result."""


def _packed(x: Tensor) -> bytes:
    return pack(_numpy(x).astype(np.int64, copy=False))


def _numpy(x: Tensor) -> NDArray[Any]:
    return cast("NDArray[Any]", cast(Any, x).numpy())
