"""The trees over weights, tokens and row hashes that a dispute opens against.

A matrix is cut into leaves of 128 columns of one row: the int8 values, then the multipliers of
their groups (16 bits, big-endian); leaves go row by row. A vector's leaves hold 64 integers of
32 bits. The root of each tensor is part of what names the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from unisono.models.config import tensor_shapes
from unisono.models.weights import BlockWeights
from unisono.numerics.tensors import GROUP, Matrix, Vector
from unisono.types import ModelId
from unisono.verification.fraud.program import ModelFacts
from unisono.verification.fraud.referee import TILE, WeightRoots
from unisono.verification.fraud.tree import Tree, blocks, leaf_hash

_ROWS = 4096
"""Rows of a matrix whose leaves are made at once."""


def tile(matrix: Matrix, index: int) -> bytes:
    """The bytes of a leaf of a matrix."""
    tiles = -(-matrix.inputs // TILE)
    row, at = index // tiles, (index % tiles) * TILE
    values = matrix.values[row, at : at + TILE]
    multipliers = matrix.multipliers[row, at // GROUP : (at + TILE) // GROUP]
    return values.tobytes() + multipliers.astype(">u2").tobytes()


def _matrix_leaves(matrix: Matrix) -> list[bytes]:
    out: list[bytes] = []
    columns = range(0, matrix.inputs, TILE)
    for start in range(0, matrix.outputs, _ROWS):
        values = np.ascontiguousarray(matrix.values[start : start + _ROWS]).view(np.uint8)
        scales = matrix.multipliers[start : start + _ROWS].astype(">u2")
        parts = [
            np.concatenate(
                [
                    values[:, at : at + TILE],
                    np.ascontiguousarray(scales[:, at // GROUP : (at + TILE) // GROUP]).view(
                        np.uint8
                    ),
                ],
                axis=1,
            )
            for at in columns
        ]
        for row in range(len(values)):
            out += [leaf_hash(part[row].tobytes()) for part in parts]
    return out


def weight_tree(tensor: Matrix | Vector) -> Tree:
    """The tree over a tensor's leaves. A matrix of 168 million weights takes some seconds."""
    if isinstance(tensor, Matrix):
        return Tree(_matrix_leaves(tensor))
    return Tree([leaf_hash(b) for b in blocks(tensor.values, "i4")])


def weight_leaf(tensor: Matrix | Vector, index: int) -> bytes:
    """The bytes of a leaf of a tensor."""
    return tile(tensor, index) if isinstance(tensor, Matrix) else blocks(tensor.values, "i4")[index]


def tensor_of(weights: BlockWeights, name: str) -> Matrix | Vector | None:
    """A tensor of a block by its canonical name; None where the block does not hold it."""
    if name.startswith("layers."):
        _, i, part = name.split(".")
        layer = weights.layer.get(int(i))
        return None if layer is None else getattr(layer, part)
    found: Matrix | Vector | None = getattr(weights, name)
    return weights.head if found is None and name == "embedding" else found


class WeightTrees:
    """The trees of a block's tensors, each made when it is first asked for."""

    def __init__(self, weights: BlockWeights) -> None:
        self.weights = weights
        self._trees: dict[str, Tree] = {}

    def tree(self, name: str) -> Tree:
        """A tensor's tree.

        Raises:
            KeyError: the block does not hold the tensor.
        """
        if name not in self._trees:
            tensor = tensor_of(self.weights, name)
            if tensor is None:
                raise KeyError(name)
            self._trees[name] = weight_tree(tensor)
        return self._trees[name]

    def leaf(self, name: str, index: int) -> bytes:
        """The bytes of a leaf.

        Raises:
            KeyError: the block does not hold the tensor.
        """
        tensor = tensor_of(self.weights, name)
        if tensor is None:
            raise KeyError(name)
        return weight_leaf(tensor, index)


def facts_of(
    model: ModelId, config: object, weights: BlockWeights, trees: WeightTrees
) -> tuple[ModelFacts, WeightRoots]:
    """Configuration, exponents and roots of a whole model that is in memory."""
    from unisono.models.config import DecoderConfig

    assert isinstance(config, DecoderConfig)
    exponents: dict[str, int] = {}
    for name in tensor_shapes(config):
        tensor = tensor_of(weights, name)
        assert tensor is not None
        exponents[name] = tensor.exponent
    roots = {name: trees.tree(name).root for name in exponents}
    return ModelFacts(model, config, exponents), WeightRoots(roots)


def token_blocks(tokens: Sequence[int]) -> list[bytes]:
    """The leaves of the tree over prompt and answer."""
    return blocks(np.array(tokens, dtype=np.int64), "i4")


def token_tree(tokens: Sequence[int]) -> Tree:
    """The tree over prompt and answer."""
    return Tree([leaf_hash(b) for b in token_blocks(tokens)])


def row_leaves(rows: NDArray[np.int64], digest: Callable[[list[int]], list[int]]) -> list[bytes]:
    """Per row its hash, 32 bytes: the leaves of the trees of rows in and rows out."""
    return [
        b"".join(part.to_bytes(4, "big") for part in digest([int(x) for x in row.tolist()]))
        for row in rows
    ]


def row_tree(leaves: Sequence[bytes]) -> Tree:
    """The tree over the hashes of rows."""
    return Tree([leaf_hash(leaf) for leaf in leaves])
