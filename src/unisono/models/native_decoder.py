"""The decoder on compiled kernels: one call per pass."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisono.errors import UnisonoError
from unisono.models.config import DecoderConfig
from unisono.models.constants import constants
from unisono.models.decoder import KV_BYTES, Choice, Decoder, Draw, Rows, Segment
from unisono.models.devices import available_threads
from unisono.models.weights import BlockWeights
from unisono.native import library
from unisono.native.library import address, check
from unisono.numerics.tensors import Matrix, Vector

_MATRICES = ("query", "key", "value", "output", "gate", "up", "down")
_EMBEDDING, _HEAD = len(_MATRICES) + 1, len(_MATRICES) + 2
_VECTORS = (
    "attention_norm",
    "mlp_norm",
    "query_norm",
    "key_norm",
    "post_attention_norm",
    "post_mlp_norm",
    "query_bias",
    "key_bias",
    "value_bias",
    "output_bias",
    "gate_bias",
    "up_bias",
    "down_bias",
)
_FINAL_NORM = len(_VECTORS) + 1
PARTS = ("products", "attention", "other operators", "output matrix", "sampling")
"""What `take_times` tells apart."""
_ENDS = -1
"""The layer number of what belongs to no layer."""


class NativeDecoder(Decoder):
    """A block on this machine's CPU. The weights are copied into its own layout."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: BlockWeights,
        *,
        threads: int | None = None,
        kv_bytes: int = KV_BYTES,
    ) -> None:
        ends = weights.embedding is not None, weights.head is not None
        super().__init__(config, weights.layers, ends, kv_bytes)
        loaded = library.load()
        if loaded is None:
            raise UnisonoError("the compiled kernels are not available on this machine")
        self._library: Any = loaded
        self.threads = threads or available_threads()
        self._block: int | None = self._make()
        self._fill(weights)
        for group, layers in enumerate(self.store.groups):
            limit = self.store.limits[group]
            check(loaded, loaded.unisono_make_pool(self._block, group, len(layers.layers), limit))
        self.store.memory = self

    def _make(self) -> int:
        c, config = constants(self.config), self.config
        layers = range(self.layers.start, self.layers.stop)
        made = library.BlockConfig(
            layers=len(layers),
            hidden=config.hidden_size,
            heads=config.head_count,
            kv_heads=config.kv_head_count,
            head_size=config.head_size,
            mlp=config.mlp_size,
            vocabulary=config.vocabulary_size,
            gelu=config.activation == "gelu_tanh",
            epsilon_mantissa=c.epsilon[0],
            epsilon_exponent=c.epsilon[1],
            scale_mantissa=c.score_scale[0],
            scale_exponent=c.score_scale[1],
            embedding_mantissa=c.embedding_scale[0],
            embedding_exponent=c.embedding_scale[1],
            factor=c.factor,
            local_factor=c.local_factor,
            groups=len(self.store.groups),
            threads=self.threads,
        )
        places = {
            layer: (group, index)
            for group, found in enumerate(self.store.groups)
            for index, layer in enumerate(found.layers)
        }
        each = (library.LayerConfig * len(layers))(
            *(
                library.LayerConfig(config.windows[i], config.windows[i] > 0, *places[i])
                for i in layers
            )
        )
        turns = np.array([c.frequencies, c.local_frequencies], dtype=np.int64)
        block = self._library.unisono_block(byref(made), each, address(turns[0]), address(turns[1]))
        if not block:
            check(self._library, -1)
        return block

    def _fill(self, weights: BlockWeights) -> None:
        for number, i in enumerate(range(self.layers.start, self.layers.stop)):
            layer = weights.layer[i]
            for slot, name in enumerate(_MATRICES):
                self._set_matrix(number, slot, getattr(layer, name))
            for slot, name in enumerate(_VECTORS):
                vector = getattr(layer, name)
                if vector is not None:
                    self._set_vector(number, slot, vector)
        if weights.embedding is not None:
            self._set_matrix(_ENDS, _EMBEDDING, weights.embedding)
        if weights.final_norm is not None:
            self._set_vector(_ENDS, _FINAL_NORM, weights.final_norm)
        if weights.head is not None:
            if weights.head is weights.embedding:
                self._library.unisono_tie_head(self._block)
            else:
                self._set_matrix(_ENDS, _HEAD, weights.head)

    def _set_matrix(self, layer: int, slot: int, matrix: Matrix) -> None:
        values = np.ascontiguousarray(matrix.values)
        multipliers = np.ascontiguousarray(matrix.multipliers)
        status = self._library.unisono_set_matrix(
            self._block,
            layer,
            slot,
            address(values),
            address(multipliers),
            matrix.outputs,
            matrix.inputs,
            matrix.exponent,
        )
        check(self._library, status)

    def _set_vector(self, layer: int, slot: int, vector: Vector) -> None:
        values = np.ascontiguousarray(vector.values, dtype=np.int64)
        status = self._library.unisono_set_vector(
            self._block, layer, slot, address(values), len(values), vector.exponent
        )
        check(self._library, status)

    def close(self) -> None:
        if self._block is not None:
            self._library.unisono_free_block(self._block)
            self._block = None
            self.store.memory = None

    def __del__(self) -> None:
        if getattr(self, "_block", None) is not None:
            self.close()

    def _embed(self, ids: NDArray[np.int64]) -> Rows:
        rows = np.empty((len(ids), self.config.hidden_size), dtype=np.int64)
        check(
            self._library,
            self._library.unisono_embed(
                self._block, address(np.ascontiguousarray(ids)), len(ids), address(rows)
            ),
        )
        return rows

    def _forward(self, rows: Rows, segments: Sequence[Segment]) -> Rows:
        out = np.array(rows, dtype=np.int64, order="C")
        each = (library.Segment * len(segments))(
            *(
                library.Segment(s.start, s.count, address(s.cache.tables), s.cache.tables.shape[1])
                for s in segments
            )
        )
        check(
            self._library,
            self._library.unisono_forward(self._block, address(out), len(out), each, len(segments)),
        )
        return out

    def _logits(self, rows: Rows) -> Rows:
        given = np.ascontiguousarray(rows, dtype=np.int64)
        out = np.empty((len(given), self.config.vocabulary_size), dtype=np.int64)
        check(
            self._library,
            self._library.unisono_logits(self._block, address(given), len(given), address(out)),
        )
        return out

    def _choose(self, rows: Rows, draws: Sequence[tuple[int, int, Draw]]) -> list[Choice]:
        given = np.ascontiguousarray(rows, dtype=np.int64)
        kept: list[Any] = []  # what the calls below read must live until they end
        each = (library.Draw * len(draws))(
            *(native_draw(draw, row, position, kept) for row, position, draw in draws)
        )
        check(
            self._library,
            self._library.unisono_draw(self._block, address(given), each, len(draws)),
        )
        return [choice_of(d) for d in each]

    def take_times(self) -> dict[str, float]:
        """Seconds by part of the passes since the last call."""
        out = np.zeros(len(PARTS), dtype=np.int64)
        self._library.unisono_take_times(self._block, address(out))
        return dict(zip(PARTS, (out / 1e9).tolist(), strict=True))

    def read_page(self, group: int, page: int) -> bytes:
        size = self._library.unisono_page_bytes(self._block, group)
        return ctypes.string_at(self._library.unisono_page(self._block, group, page), size)

    def write_page(self, group: int, page: int, data: bytes) -> None:
        ctypes.memmove(self._library.unisono_page(self._block, group, page), data, len(data))

    def discard_page(self, group: int, page: int) -> None:
        self._library.unisono_discard_page(self._block, group, page)


_NONE = np.empty((2, 0), dtype=np.int64)


def native_draw(draw: Draw, row: int, position: int, kept: list[Any]) -> library.Draw:
    """A draw as the library reads it; arrays that it points to are added to `kept`."""
    s = draw.sampling
    tokens = np.ascontiguousarray(draw.tokens, dtype=np.int32)
    bias = np.array(s.logit_bias, dtype=np.int64).reshape(-1, 2).T.copy() if s.logit_bias else _NONE
    kept += [tokens, bias]
    return library.Draw(
        row=row,
        position=position,
        temperature=s.temperature,
        top_k=s.top_k,
        top_p=s.top_p,
        min_p=s.min_p,
        repetition=s.repetition_penalty,
        presence=s.presence_penalty,
        frequency=s.frequency_penalty,
        seed=s.seed,
        tokens=address(tokens),
        prompt=draw.prompt,
        known=len(tokens),
        bias_ids=address(bias[0]) if bias.size else None,
        bias_values=address(bias[1]) if bias.size else None,
        biases=bias.shape[1],
        top=min(draw.top_logprobs, library.MAX_TOP),
    )


def choice_of(d: library.Draw) -> Choice:
    """What a draw gave."""
    if d.top < 0:
        return Choice(d.token)
    top = tuple(zip(d.top_ids[: d.top], d.top_logprobs[: d.top], strict=True))
    return Choice(d.token, d.logprob, top)
