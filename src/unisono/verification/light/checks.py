"""The client's side of a light audit: check what a node opened, without its weights."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from msgspec import UNSET
from numpy.typing import NDArray
from torch import Tensor

from unisono.errors import PeerCheating
from unisono.merkle import HASH_BYTES
from unisono.models import tiles
from unisono.models.config import tensor_shapes
from unisono.models.rows import row_hashes
from unisono.numerics import residual
from unisono.numerics.fixed import align, reduce_rows
from unisono.numerics.linear import Matrix, from_numpy
from unisono.numerics.norm import rms_norm
from unisono.numerics.sampling import choose
from unisono.numerics.tensors import GROUP, INPUT_BITS, LOGIT_FRACTION
from unisono.types import GenerationRequest
from unisono.verification.light.field import PRODUCT_BITS
from unisono.verification.light.grid import opens
from unisono.verification.light.leaves import TRACE, leaf, memory_hashes
from unisono.verification.light.messages import (
    CellName,
    CellOpening,
    EmbeddingRow,
    HeadOpening,
    Memory,
    RowIn,
    RowOut,
    SampleOpening,
    unpack,
)
from unisono.verification.light.secrets import Claimed, Secrets
from unisono.verification.light.steps import PRODUCTS, KeysValues, Steps, residual_row
from unisono.wire.claims import HopClaim, token_hash
from unisono.wire.mountain_range import RowProof

_RESIDUAL_BITS = residual.RESIDUAL_BITS
_EXPONENT_BITS = 15
_RESULTS = {
    "attention_norm": INPUT_BITS,
    "rotary": INPUT_BITS,
    "attention": INPUT_BITS,
    "attention_sum": _RESIDUAL_BITS,
    "mlp_norm": INPUT_BITS,
    "activation": INPUT_BITS,
}
"""What a cell opens besides products, and its magnitude bits."""
_PLAIN = ("attention_sum",)
"""Of these, what has no exponents."""

Integers = NDArray[np.int64]


class Difference(Exception):
    """What an opening says is not what an honest node computes."""

    def __init__(self, operator: str, message: str) -> None:
        super().__init__(message)
        self.operator = operator


class _Products:
    """A cell's claimed products: used as they come, checked together at the end."""

    def __init__(
        self,
        secrets: Secrets,
        shapes: dict[str, tuple[int, ...]],
        layer: int,
        opened: dict[str, bytes],
    ) -> None:
        self._secrets, self._shapes, self._opened = secrets, shapes, opened
        self._prefix = f"layers.{layer}."
        self._claimed: list[Claimed] = []

    def claimed(self, name: str, x: Tensor) -> Tensor:
        """A product as the node claims it."""
        full = self._prefix + name
        out = unpack(self._opened[name], (1, self._shapes[full][0]), PRODUCT_BITS)
        self._claimed.append(Claimed(full, _numpy(x)[0], out[0]))
        return from_numpy(out)

    @contextmanager
    def checked(self) -> Generator[None]:
        """Check what was claimed inside; a wrong product goes before what follows from it."""
        try:
            yield
        except Difference:
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        wrong = self._secrets.wrong_product(self._claimed) if self._claimed else None
        if wrong is not None:
            name = self._claimed[wrong].matrix
            raise Difference(
                name.removeprefix(self._prefix), f"the product with the matrix {name} is wrong"
            )


class Checks:
    """Checks of one claim's openings against one committed trace."""

    def __init__(
        self, secrets: Secrets, claim: HopClaim, trace: bytes, tokens: Sequence[int]
    ) -> None:
        """`tokens`: prompt and answer, which the first and the last hop's checks need."""
        self._secrets, self._claim, self._trace, self._tokens = secrets, claim, trace, tokens
        self._config, self._fixed = secrets.config, secrets.constants()
        self._shapes = tensor_shapes(self._config)
        self._layers = claim.layers
        self._steps: dict[int, Steps] = {}

    def cell(self, name: CellName, opened: CellOpening) -> None:
        """Check a whole cell.

        Raises:
            Difference: an operator's result is not that of an honest node, or a row, key or value
                is not the one that was committed to.
            PeerCheating: the opening is malformed.
        """
        steps, p = self._layer(name.layer), name.position
        first = steps.first_seen(p)
        row, hash_in = self._row_in(name, opened.row_in)
        row_out = self._row_out(name.layer, p, opened.row_out)
        held = self._memory(opened.memory, p + 1 - first)
        self._committed(name, first, (*_split(opened.earlier), hash_in), held, opened.path)
        expect_keys(opened.products, PRODUCTS)
        expect_keys(opened.results, _RESULTS)

        def observe(operator: str, mantissas: Tensor, exponents: Tensor | None) -> None:
            if operator == "mlp_sum":
                self._same(operator, row_out, mantissas, "the row out")
            elif operator in ("stored_key", "stored_value"):
                self._same_stored(operator, held, mantissas, exponents)
            else:
                self._same_result(operator, opened.results[operator], mantissas, exponents)

        products = _Products(self._secrets, self._shapes, name.layer, opened.products)
        with products.checked():
            steps.run(row, p, products.claimed, observe, lambda _: (first, held))

    def sample(self, name: CellName, opened: SampleOpening) -> None:
        """Check that a position's key and value follow from its row in; raises as `cell` does."""
        row, hash_in = self._row_in(name, opened.row_in)
        held = self._memory(opened.memory, 1)
        self._committed(name, name.position, (hash_in,), held, opened.path)
        expect_keys(opened.products, ("key", "value"))
        expect_keys(opened.results, ("attention_norm",))

        def observe(operator: str, mantissas: Tensor, exponents: Tensor | None) -> None:
            if operator in ("stored_key", "stored_value"):
                self._same_stored(operator, held, mantissas, exponents)
            else:
                self._same_result(operator, opened.results[operator], mantissas, exponents)

        products = _Products(self._secrets, self._shapes, name.layer, opened.products)
        with products.checked():
            self._layer(name.layer).stored(row, name.position, products.claimed, observe)

    def head(self, position: int, opened: HeadOpening, request: GenerationRequest) -> None:
        """Check the token that follows a position; raises as `cell` does."""
        row = self._row_out(self._layers.stop - 1, position, opened.row)
        weight = self._secrets.vector("final_norm")
        normal = rms_norm(*residual_row(row), weight.values, weight.exponent, self._fixed.epsilon)
        h, exponent = reduce_rows(*normal, INPUT_BITS)
        self._same_result("final_norm", opened.normal, h, exponent)
        count = self._config.vocabulary_size
        product = unpack(opened.product, (1, count), PRODUCT_BITS)
        if self._secrets.wrong_product([Claimed("head", _numpy(h)[0], product[0])]) is not None:
            raise Difference("head", "the product with the output matrix is wrong")
        out = from_numpy(product)
        right = -(exponent + self._secrets.exponents["head"] + LOGIT_FRACTION)
        scores = align(out, right, residual.LOGIT_BITS)[0]
        known = len(request.prompt)
        generated = list(self._tokens[known : position + 1])
        if request.ensemble is not UNSET:  # the tokens are not this model's choice
            return
        token = choose(scores, request.sampling, request.prompt, generated, position + 1)
        if token != self._tokens[position + 1]:
            raise Difference(
                "sampling",
                f"token {self._tokens[position + 1]} was given where the logits give {token}",
            )

    def _layer(self, index: int) -> Steps:
        steps = self._steps.get(index)
        if steps is None:
            plain = self._secrets.plain_layer(index)
            steps = self._steps[index] = Steps(self._config, self._fixed, index, plain)
        return steps

    def _row_in(self, name: CellName, opened: RowIn) -> tuple[Tensor, bytes]:
        row = unpack(opened.row, (1, self._config.hidden_size), _RESIDUAL_BITS)
        hashed = row_hashes(row)[0]
        starts = name.layer == self._layers.start
        expect(bool(opened.proof) == starts, "a proof of a row in comes with the first layer")
        expect(
            (opened.embedding is not None) == (name.layer == 0),
            "a row of the embedding comes with the model's first layer",
        )
        if starts:
            under = hashed
            if opened.embedding is not None:
                self._embedded(name.position, row, opened.embedding)
                under = token_hash(self._tokens[name.position])
            self._proved("row_in", name.position, self._claim.rows_in, under, opened.proof)
        return from_numpy(row), hashed

    def _embedded(self, position: int, row: Integers, opened: EmbeddingRow) -> None:
        token, hidden = self._tokens[position], self._config.hidden_size
        expect(
            len(opened.values) == hidden and len(opened.multipliers) == 2 * hidden // GROUP,
            "a row of the embedding of another size",
        )
        values = np.frombuffer(opened.values, np.int8).reshape(1, hidden)
        multipliers = np.frombuffer(opened.multipliers, "<u2").reshape(1, -1).astype(np.uint16)
        shape = self._shapes["embedding"]
        start, count = token * tiles.tiles_per_row(shape), tiles.tile_count(shape)
        leaves = tiles.matrix_leaves(values, multipliers)
        root = self._secrets.embedding_root
        if not opens(tiles.DOMAIN, root, count, start, leaves, opened.path):
            raise Difference("embedding", f"the row of token {token} is not the model's")
        exponent = self._secrets.exponents["embedding"]
        matrix = Matrix(from_numpy(values.copy()), from_numpy(multipliers), exponent)
        expected = residual.embed(torch.tensor([0]), matrix, self._fixed.embedding_scale)
        self._same("embedding", row, expected, "the row in")

    def _row_out(self, layer: int, position: int, opened: RowOut) -> Tensor:
        row = unpack(opened.row, (1, self._config.hidden_size), _RESIDUAL_BITS)
        hashed = row_hashes(row)[0]
        ends = layer + 1 == self._layers.stop
        expect(bool(opened.proof) == ends, "a proof of a row out comes with the last layer")
        if ends:
            expect(not opened.memory and not opened.path, "a last layer's row has no next cell")
            self._proved("row_out", position, self._claim.rows_out, hashed, opened.proof)
        else:
            expect(len(opened.memory) == HASH_BYTES, "the hash of a next cell of another size")
            leaves = leaf(hashed, opened.memory)
            self._in_trace("row_out", layer + 1, position, leaves, opened.path)
        return from_numpy(row)

    def _proved(self, operator: str, position: int, root: str, hashed: bytes, data: bytes) -> None:
        proof = RowProof.from_bytes(data)
        there = (proof.position, proof.count) == (position, self._claim.positions)
        if not there or not proof.holds(root, hashed):
            raise Difference(operator, f"the row is not the one that the claim's {operator}s sign")

    def _memory(self, opened: Memory, positions: int) -> KeysValues:
        heads, size = self._config.kv_head_count, self._config.head_size

        def read(data: bytes, *last: int) -> Tensor:
            values = unpack(data, (positions, heads, *last), INPUT_BITS)
            return from_numpy(values.astype(np.int16))

        return KeysValues(
            read(opened.keys, size),
            read(opened.key_exponents),
            read(opened.values, size),
            read(opened.value_exponents),
        )

    def _committed(
        self,
        name: CellName,
        first: int,
        rows: tuple[bytes, ...],
        held: KeysValues,
        path: bytes,
    ) -> None:
        memories = memory_hashes(held)
        expect(len(rows) == len(memories), f"{len(rows)} rows' hashes, of {len(memories)}")
        leaves = b"".join([leaf(row, m) for row, m in zip(rows, memories, strict=True)])
        self._in_trace("trace", name.layer, first, leaves, path)

    def _in_trace(
        self, operator: str, layer: int, position: int, leaves: bytes, path: bytes
    ) -> None:
        positions = self._claim.positions
        start = (layer - self._layers.start) * positions + position
        count = self._layers.count * positions
        if not opens(TRACE, self._trace, count, start, leaves, path):
            raise Difference(operator, "the opening is not what the trace committed to")

    def _same_result(
        self,
        operator: str,
        claimed: tuple[bytes, bytes],
        mantissas: Tensor,
        exponents: Tensor | None,
    ) -> None:
        bits = _RESULTS.get(operator, INPUT_BITS)
        self._same(operator, unpack(claimed[0], tuple(mantissas.shape), bits), mantissas)
        if exponents is None:
            expect(not claimed[1], f"{operator} has no exponents")
        else:
            shape = tuple(exponents.shape)
            self._same(operator, unpack(claimed[1], shape, _EXPONENT_BITS), exponents)

    def _same_stored(
        self, operator: str, held: KeysValues, mantissas: Tensor, exponents: Tensor | None
    ) -> None:
        assert exponents is not None
        kept = (
            (held.keys, held.key_exponents)
            if operator == "stored_key"
            else (held.values, held.value_exponents)
        )
        self._same(operator, kept[0][-1:], mantissas)
        self._same(operator, kept[1][-1:], exponents[..., 0])

    def _same(
        self, operator: str, claimed: Tensor | Integers, expected: Tensor, what: str = "its result"
    ) -> None:
        got = _numpy(claimed) if isinstance(claimed, Tensor) else claimed
        wrong = np.flatnonzero(got.reshape(-1) != _numpy(expected).reshape(-1))
        if wrong.size:
            at = int(wrong[0])
            raise Difference(
                operator,
                f"{what} differs in {wrong.size} of {got.size} elements, first in element {at}: "
                f"{int(got.reshape(-1)[at])} instead of {int(_numpy(expected).reshape(-1)[at])}",
            )


def expect(good: bool, problem: str) -> None:
    """Refuse a malformed opening.

    Raises:
        PeerCheating: `good` is False.
    """
    if not good:
        raise PeerCheating(f"a malformed opening: {problem}")


def expect_keys(found: dict[str, Any], wanted: Sequence[str] | dict[str, int]) -> None:
    """Refuse an opening whose parts are not exactly the wanted ones."""
    expect(found.keys() == set(wanted), f"it holds {sorted(found)[:8]}, not {sorted(wanted)}")


def _split(hashes: bytes) -> list[bytes]:
    expect(len(hashes) % HASH_BYTES == 0, "hashes of another size")
    return [hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES)]


def _numpy(x: Tensor) -> NDArray[Any]:
    return cast("NDArray[Any]", cast(Any, x).numpy())
