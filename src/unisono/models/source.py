"""What a loader gives: a configuration, float weights under canonical names, a tokenizer."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unisono.models.config import DecoderConfig


class ModelSource(Protocol):
    """A model in somebody else's format, read one tensor at a time."""

    @property
    def name(self) -> str:
        """What people call the model, e.g. `gemma-3-270m`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the source's bytes do: a content hash, or path, size and time."""
        ...

    @property
    def config(self) -> DecoderConfig: ...

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor with this canonical name (`config.tensor_shapes`), in its shape.

        Raises:
            CorruptModel: missing, wrong shape, or truncated; names the file and the tensor.
        """
        ...

    def tokenizer_files(self) -> dict[str, bytes]:
        """File name → contents, for `models.tokenizer.Tokenizer.load`: `tokenizer.json` (the
        `tokenizers` library's format) and `tokenizer_settings.json` (special ids, template)."""
        ...
