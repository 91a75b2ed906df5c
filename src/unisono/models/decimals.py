"""Floats of foreign files as decimal strings, the only form that a `DecoderConfig` holds."""

from __future__ import annotations

import math

import numpy as np

from unisono.errors import CorruptModel


def decimal_string(value: float, where: str) -> str:
    """The shortest decimal that names this double: `1e-06`, `10000`, `0.25`.

    `where` is the file and key that an error names.

    Raises:
        CorruptModel: not a finite number.
    """
    if not math.isfinite(value):
        raise CorruptModel(f"{where} is {value}: a finite number was expected")
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(float(value))


def single_string(value: float, where: str) -> str:
    """The shortest decimal that names this float32: 9.999999974752427e-07 is `1e-06`.

    Formats such as GGUF store single precision, so a value read as a double carries digits that
    nobody wrote. Raises as `decimal_string` does.
    """
    return decimal_string(float(str(np.float32(value))), where)
