"""Finding, checking and calling the compiled library.

The library is built for the machine that installs it. Before any of its code runs, the processor
features that its build needs are compared with those of this machine.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import os
from ctypes import POINTER, Structure, c_char_p, c_int, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisono.errors import UnisonoError
from unisono.numerics import tables

log = logging.getLogger(__name__)

KERNELS = ("portable", "avx2", "vnni", "tiles")
"""What computes products, by the number that `unisono_kernels` returns."""
MAX_TOP = 32
"""Likeliest tokens that a draw may report."""


def _integers(names: str) -> list[tuple[str, Any]]:
    """Fields of 64-bit integers."""
    return [(name, c_int64) for name in names.split()]


class BlockConfig(Structure):
    """`BlockConfig` of cpp/block.h."""

    _fields_ = _integers(
        "layers hidden heads kv_heads head_size mlp vocabulary gelu epsilon_mantissa "
        "epsilon_exponent scale_mantissa scale_exponent embedding_mantissa embedding_exponent "
        "factor local_factor groups threads"
    )


class LayerConfig(Structure):
    """`LayerConfig` of cpp/block.h."""

    _fields_ = _integers("window local group index")


class Segment(Structure):
    """`Segment` of cpp/block.h."""

    _fields_ = [*_integers("start count"), ("tables", c_void_p), ("table_size", c_int64)]


class Draw(Structure):
    """`Draw` of cpp/sampling.h."""

    _fields_ = [
        *_integers("row position temperature top_k top_p min_p repetition presence frequency"),
        ("seed", c_uint64),
        ("tokens", c_void_p),
        *_integers("prompt known"),
        ("bias_ids", c_void_p),
        ("bias_values", c_void_p),
        *_integers("biases top token logprob"),
        ("top_ids", c_int64 * MAX_TOP),
        ("top_logprobs", c_int64 * MAX_TOP),
    ]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "unisono_error": (c_char_p, []),
    "unisono_set_tables": (c_int, [c_void_p] * 4),
    "unisono_kernels": (c_int, []),
    "unisono_enable_tiles": (None, [c_int]),
    "unisono_block": (
        c_void_p,
        [POINTER(BlockConfig), POINTER(LayerConfig), c_void_p, c_void_p],
    ),
    "unisono_free_block": (None, [c_void_p]),
    "unisono_set_matrix": (
        c_int,
        [c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int64],
    ),
    "unisono_set_vector": (c_int, [c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64]),
    "unisono_tie_head": (None, [c_void_p]),
    "unisono_make_pool": (c_int, [c_void_p, c_int64, c_int64, c_int64]),
    "unisono_page": (c_void_p, [c_void_p, c_int64, c_int64]),
    "unisono_page_bytes": (c_int64, [c_void_p, c_int64]),
    "unisono_discard_page": (None, [c_void_p, c_int64, c_int64]),
    "unisono_embed": (c_int, [c_void_p, c_void_p, c_int64, c_void_p]),
    "unisono_forward": (c_int, [c_void_p, c_void_p, c_int64, POINTER(Segment), c_int64]),
    "unisono_logits": (c_int, [c_void_p, c_void_p, c_int64, c_void_p]),
    "unisono_draw": (c_int, [c_void_p, c_void_p, POINTER(Draw), c_int64]),
    "unisono_take_times": (None, [c_void_p, c_void_p]),
    "unisono_matrix": (c_void_p, [c_void_p, c_void_p, c_int64, c_int64]),
    "unisono_free_matrix": (None, [c_void_p]),
    "unisono_product": (c_int, [c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
    "unisono_largest": (
        c_int,
        [c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p],
    ),
    "unisono_norm": (None, [c_void_p, c_int64, c_int64, c_void_p, c_int64, c_int64, c_void_p]),
    "unisono_rotate": (c_int64, [c_void_p, c_int64, c_int64, c_void_p, c_void_p]),
    "unisono_rotation": (None, [c_int64, c_void_p, c_int64, c_int64, c_void_p, c_void_p]),
    "unisono_gated": (
        c_int64,
        [c_int64, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_void_p],
    ),
    "unisono_add_bias": (c_int64, [c_void_p, c_int64, c_int64, c_void_p, c_int64]),
    "unisono_add_residual": (None, [c_void_p, c_void_p, c_int64, c_int64]),
    "unisono_choose": (None, [c_void_p, c_int64, POINTER(Draw)]),
}


def path() -> Path | None:
    """Where the built library lies, if it was built."""
    spec = importlib.util.find_spec("unisono.native._kernels")
    return Path(spec.origin) if spec and spec.origin else None


def _processor_features() -> set[str]:
    """Linux's names of this processor's features; empty where they cannot be read."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split(":", 1)[1].split())
    return set()


@functools.cache
def load() -> Any | None:
    """The library, ready for calls, or None where this machine has none that fits.

    `UNISONO_NATIVE=0` in the environment switches it off.
    """
    file = path()
    if file is None or os.environ.get("UNISONO_NATIVE") == "0":
        return None
    library: Any = ctypes.CDLL(str(file))
    needed = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "unisono_features")))
    present = _processor_features()
    missing = sorted(set(needed.decode().split()) - {"base"} - present) if present else []
    if missing:
        log.warning(
            "the compiled kernels need %s, which this processor lacks: they were built on another "
            "machine. Install again here; until then torch computes, slowly.",
            ", ".join(missing),
        )
        return None
    stale = [name for name in _SIGNATURES if not hasattr(library, name)]
    if stale:
        log.warning(
            "the compiled kernels are of another version (%s is missing): install again; until "
            "then torch computes, slowly.",
            stale[0],
        )
        return None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    values = (tables.exp2_values, tables.gate_values, tables.cosine_values, tables.log2_values)
    arrays = [np.array(v(), dtype=np.int64) for v in values]
    check(library, library.unisono_set_tables(*(address(a) for a in arrays)))
    return library


def address(array: NDArray[Any]) -> int:
    """Where a contiguous array's elements lie; the caller keeps it alive."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def check(library: Any, status: int) -> None:
    """Raise what a call of the library reports.

    Raises:
        UnisonoError: the call failed.
    """
    if status != 0:
        raise UnisonoError(f"the compiled kernels failed: {library.unisono_error().decode()}")


def kernels() -> str:
    """What computes on this CPU: one of `KERNELS`, or `torch`."""
    library = load()
    return "torch" if library is None else KERNELS[int(library.unisono_kernels())]
