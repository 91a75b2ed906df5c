"""Keys and values of one session, for one block of layers."""

from __future__ import annotations

import torch
from torch import Tensor

from unisono.errors import UnisonoError
from unisono.models.config import DecoderConfig
from unisono.types import LayerRange

_FIRST = 64


def bytes_per_position(config: DecoderConfig, layers: LayerRange) -> int:
    """Memory of one position: 16-bit mantissas and one 16-bit exponent per head, keys and
    values, in every layer of the block."""
    return layers.count * 2 * config.kv_head_count * (config.head_size + 1) * 2


class SessionCache:
    """Grows as positions are written, up to `capacity`. Writing from an earlier position on
    replaces what followed it."""

    def __init__(
        self, config: DecoderConfig, layers: LayerRange, capacity: int, device: str = "cpu"
    ) -> None:
        self.layers = layers
        self.capacity = capacity
        self.length = 0
        self._config = config
        self._device = device
        self._rows = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._key_exponents: list[Tensor] = []
        self._value_exponents: list[Tensor] = []

    def reserve(self, length: int) -> None:
        """Make room for positions below `length`.

        Raises:
            UnisonoError: beyond `capacity`.
        """
        if length > self.capacity:
            raise UnisonoError(
                f"position {length - 1} does not fit a session of {self.capacity} positions"
            )
        if length <= self._rows:
            return
        rows = min(self.capacity, max(_FIRST, length, 2 * self._rows))
        heads, size = self._config.kv_head_count, self._config.head_size
        for store, shape in (
            (self._keys, (rows, heads, size)),
            (self._values, (rows, heads, size)),
            (self._key_exponents, (rows, heads)),
            (self._value_exponents, (rows, heads)),
        ):
            for i in range(self.layers.count):
                grown = torch.zeros(shape, dtype=torch.int16, device=self._device)
                if self._rows:
                    grown[: self._rows] = store[i]
                    store[i] = grown
                else:
                    store.append(grown)
        self._rows = rows

    def write(
        self,
        layer: int,
        start: int,
        keys: tuple[Tensor, Tensor],
        values: tuple[Tensor, Tensor],
    ) -> None:
        """Store (mantissas [n, heads, size], exponents [n, heads, 1]) from position `start`."""
        i, stop = layer - self.layers.start, start + keys[0].shape[0]
        self._keys[i][start:stop] = keys[0]
        self._key_exponents[i][start:stop] = keys[1].squeeze(-1)
        self._values[i][start:stop] = values[0]
        self._value_exponents[i][start:stop] = values[1].squeeze(-1)

    def read(self, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keys, key exponents, values, value exponents of positions `start:stop`."""
        i = layer - self.layers.start
        span = slice(start, stop)
        return (
            self._keys[i][span],
            self._key_exponents[i][span],
            self._values[i][span],
            self._value_exponents[i][span],
        )
