"""The decoder composed of the scalar specification: one token at a time, no tensors."""

from __future__ import annotations

from unisono.models.config import DecoderConfig
from unisono.models.constants import Constants, constants
from unisono.models.weights import BlockWeights
from unisono.numerics import scalar, tensors
from unisono.numerics.scalar import Row, Scaled


def _matrix(matrix: tensors.Matrix) -> scalar.Matrix:
    return scalar.Matrix(matrix.values.tolist(), matrix.multipliers.tolist(), matrix.exponent)


def _vector(vector: tensors.Vector) -> scalar.Vector:
    return scalar.Vector(vector.values.tolist(), vector.exponent)


class ScalarLayer:
    """One layer with the keys and values of one session."""

    def __init__(self, config: DecoderConfig, weights: BlockWeights, i: int) -> None:
        self._config, self._window = config, config.windows[i]
        self._weights: dict[str, scalar.Matrix | scalar.Vector | None] = {}
        for name in weights.layer[i].__slots__:
            value = getattr(weights.layer[i], name)
            if isinstance(value, tensors.Matrix):
                self._weights[name] = _matrix(value)
            elif value is not None:
                self._weights[name] = _vector(value)
        self._keys: list[list[Scaled]] = []
        self._values: list[list[Scaled]] = []

    def _linear(self, name: str, x: Scaled) -> Scaled:
        bias = self._weights.get(f"{name}_bias")
        return scalar.linear(*x, self._weights[name], bias)  # type: ignore[arg-type]

    def _norm(self, name: str, x: Scaled, epsilon: tuple[int, int]) -> Scaled:
        weight = self._weights.get(name)
        return x if weight is None else scalar.rms_norm(*x, weight, epsilon)  # type: ignore

    def _heads(self, x: Scaled) -> list[Scaled]:
        size = self._config.head_size
        return [(x[0][i : i + size], x[1]) for i in range(0, len(x[0]), size)]

    def forward(self, row: Row, position: int, fixed: Constants) -> Row:
        """The residual row after this layer; keys and values of `position` are kept."""
        epsilon = fixed.epsilon
        frequencies, factor = list(fixed.frequencies), fixed.factor
        if self._window:
            frequencies, factor = list(fixed.local_frequencies), fixed.local_factor
        turn = scalar.rotation(position, frequencies, factor)
        x = self._norm("attention_norm", (row, -20), epsilon)
        queries = [
            scalar.rotate(*self._norm("query_norm", head, epsilon), *turn)
            for head in self._heads(self._linear("query", x))
        ]
        self._keys.append(
            [
                scalar.rotate(*self._norm("key_norm", head, epsilon), *turn)
                for head in self._heads(self._linear("key", x))
            ]
        )
        self._values.append(
            [scalar.reduce_row(*head, 15) for head in self._heads(self._linear("value", x))]
        )
        seen = slice(-self._window, None) if self._window else slice(None)
        x = scalar.attend(queries, self._keys[seen], self._values[seen], fixed.score_scale)
        x = self._norm("post_attention_norm", self._linear("output", x), epsilon)
        row = scalar.add(row, *x)
        x = self._norm("mlp_norm", (row, -20), epsilon)
        gate, up = self._linear("gate", x), self._linear("up", x)
        x = self._linear("down", scalar.gated(self._config.activation, *gate, *up))
        return scalar.add(row, *self._norm("post_mlp_norm", x, epsilon))


class ScalarDecoder:
    """A whole model for one session."""

    def __init__(self, config: DecoderConfig, weights: BlockWeights) -> None:
        assert weights.embedding is not None
        assert weights.final_norm is not None
        assert weights.head is not None
        self._constants = constants(config)
        self._embedding, self._head = _matrix(weights.embedding), _matrix(weights.head)
        self._final_norm = _vector(weights.final_norm)
        self._layers = [ScalarLayer(config, weights, i) for i in range(config.layer_count)]
        self._position = 0

    def step(self, token: int) -> tuple[Row, Row]:
        """The residual row and the logits of the next token of the session."""
        row = scalar.embed(token, self._embedding, self._constants.embedding_scale)
        for layer in self._layers:
            row = layer.forward(row, self._position, self._constants)
        self._position += 1
        normal = scalar.rms_norm(row, -20, self._final_norm, self._constants.epsilon)
        return row, scalar.logits(*normal, self._head)
