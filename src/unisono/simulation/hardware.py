"""What kinds of machines take part, and how long a block of layers takes on each.

Computing is modelled, not run: a decode step reads the block's weights once, a prompt row does two
operations per weight. Figures are round numbers of common machines, less than their data sheets:
what memory and units sustain.
"""

from __future__ import annotations

from dataclasses import dataclass

from unisono.routing.placement.facts import ModelFacts
from unisono.types import LayerRange, ModelId


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of machines."""

    name: str
    share: float
    """Part of all nodes."""
    memory_gb: float
    """Offered for weights, keys and values."""
    read_gb_s: float
    """Bytes that a pass reads from memory per second, sustained."""
    tera_ops: float
    """8-bit operations per second on prompts, sustained."""
    up_mbit_s: float
    """Sending through its access line."""
    down_mbit_s: float
    access_ms: float
    """Median one way through its access line; nodes scatter around it."""
    at_home: bool
    """Follows its owner's day: on and off with the hour, and less dependable."""


KINDS = (
    Kind("laptop, CPU", 0.14, 8, 45, 1.0, 20, 100, 7.0, True),
    Kind("desktop, CPU", 0.12, 20, 50, 2.0, 40, 250, 6.0, True),
    Kind("Mac, 64 GB unified", 0.14, 44, 300, 12, 40, 250, 6.0, True),
    Kind("desktop, 12 GB GPU", 0.29, 10.5, 330, 40, 40, 250, 6.0, True),
    Kind("desktop, 24 GB GPU", 0.22, 22, 850, 120, 100, 500, 4.0, True),
    Kind("workstation, 48 GB GPU", 0.087, 45, 800, 160, 1000, 1000, 1.5, False),
    Kind("server, 80 GB GPU", 0.003, 76, 1900, 400, 10_000, 10_000, 0.3, False),
)
"""Median access times are in the range of the fibre and cable lines that the United States'
Federal Communications Commission measures (Measuring Broadband America, fixed broadband reports:
idle round trips of some 10 to 30 ms to test servers); shares are an assumption."""

STEP_OVERHEAD_US = 400
"""Of a pass, whatever its size: hashing, frames, starting kernels."""
KEYS_BYTES = 2
"""Per number of the keys and values."""


HIDDEN = 8192
MODEL_NAME = "70B: 80 layers, hidden 8,192, int8"
MODEL = ModelFacts(
    model=ModelId("70" * 32),
    layers=80,
    layer_bytes=856_000_000,
    head_bytes=1_051_000_000,
    kv_bytes=2 * 8 * 128 * KEYS_BYTES,
    positions=12_288,
    row_bytes=4 * HIDDEN,
    prompt_rows=8.5,
)
"""The shape of Llama 3 70B at one byte per weight (80 layers, hidden 8,192, 8 key-value heads of
128, a vocabulary of 128,256): too large for most machines, so that chains and placement matter.
Rows travel as 32-bit integers. Its `prompt_rows` is the mean prompt over the mean answer of
`workload`."""


def step_us(kind: Kind, model: ModelFacts, block: LayerRange) -> int:
    """Microseconds of a decode step of one session through the block; 0 of no layers."""
    if not block.count:
        return 0
    read = model.work(block) * model.layer_bytes
    return STEP_OVERHEAD_US + round(read / (kind.read_gb_s * 1e3))


def row_us(kind: Kind, model: ModelFacts, block: LayerRange) -> int:
    """Microseconds of one more row in a pass through the block, at least 1; 0 of no layers."""
    if not block.count:
        return 0
    return max(1, round(block.count * 2 * model.layer_bytes / (kind.tera_ops * 1e6)))


def positions(memory: int, model: ModelFacts, block: LayerRange) -> int:
    """Positions of keys and values that fit beside the weights of the block."""
    if not block.count:
        return 0
    ends = block.start == 0 or block.stop == model.layers
    weights = block.count * model.layer_bytes + (model.end_bytes if ends else 0)
    return max(0, memory - weights) // (model.kv_bytes * block.count)
