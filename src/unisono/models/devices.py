"""Which device computes."""

from __future__ import annotations

import os
from pathlib import Path

from unisono.errors import ConfigurationError

KNOWN = ("auto", "cpu", "cuda")


def choose_device(wanted: str) -> str:
    """`cpu` or `cuda` for what was asked for; `auto` takes cuda where there is one.

    Raises:
        ConfigurationError: cuda was asked for and is not there, or another name.
    """
    if wanted not in KNOWN:
        raise ConfigurationError(f"there is no device '{wanted}': expected {', '.join(KNOWN)}")
    if wanted == "cpu" or (wanted == "auto" and not _may_have_cuda()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "auto":
        return "cpu"
    raise ConfigurationError(
        "torch finds no CUDA device here: use --device cpu, or install a driver and a torch build "
        "with CUDA"
    )


def _may_have_cuda() -> bool:
    """Whether it is worth loading torch to see."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/dxg"))


def available_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
