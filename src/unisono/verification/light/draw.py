"""Which cells a client looks at, and how many bytes it asks for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

from unisono.models.config import DecoderConfig
from unisono.verification.light.messages import MAX_CELLS, CellName, Challenge, claim_hash
from unisono.wire.claims import HopClaim

_ANSWER_BYTES = 48 << 20
"""What one answer may take by the client's estimate: a frame holds 64 MiB."""
_PRODUCT_BYTES = 7
"""Of a product's element, at most."""
_ROW_BYTES = 6
"""Of a residual row's element, at most."""
_HASHES_BYTES = 4096
"""Paths, proofs and names of one part, at most."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a client looks at."""

    columns: int = 1
    """Positions whose cells are checked in every layer of the hop: from rows in to rows out."""
    cells: int = 0
    """Single cells beside them."""
    samples: int = 4
    """Earlier positions per cell whose keys and values are checked."""
    heads: int = 1
    """Tokens that are drawn again, where the hop ends the model."""
    apart: bool = False
    """Whether every cell, with its samples, and every token is a challenge of its own, so that what
    a node signs about it stays small."""


def draw(
    config: DecoderConfig,
    claim: HopClaim,
    trace: str,
    answered: range,
    budget: Budget,
    source: random.Random,
) -> list[Challenge]:
    """Draw cells, samples of what they attend to, and tokens.

    Args:
        trace: the root that the node committed to (64 hex digits).
        answered: the positions that a token of the answer follows.
        source: draws uniformly; whoever can foresee it can pass.

    Returns:
        Challenges such that the answer to each fits in a frame.
    """
    layers, positions = claim.layers, claim.positions
    columns = source.sample(range(positions), min(budget.columns, positions))
    cells = {CellName(i, p) for p in columns for i in range(layers.start, layers.stop)}
    for _ in range(budget.cells):
        layer = source.randrange(layers.start, layers.stop)
        cells.add(CellName(layer, source.randrange(positions)))
    samples: dict[CellName, CellName] = {}
    """Sample → the cell that it was drawn for."""
    for cell in sorted(cells):
        seen = range(first_seen(config, cell), cell.position)
        for p in source.sample(seen, min(budget.samples, len(seen))):
            samples.setdefault(CellName(cell.layer, p), cell)
    heads: list[int] = []
    if layers.stop == config.layer_count:
        heads = sorted(source.sample(answered, min(budget.heads, len(answered))))
    items = [_Item("cell", c, cell_bytes(config, c)) for c in sorted(cells)]
    drawn = sorted(samples.keys() - cells)
    items += [_Item("sample", c, sample_bytes(config)) for c in drawn]
    last = layers.stop - 1
    items += [_Item("head", CellName(last, p), head_bytes(config)) for p in heads]
    claimed = claim_hash(claim)
    if budget.apart:
        groups: dict[tuple[str, CellName], list[_Item]] = {}
        for item in items:
            owner = samples[item.name] if item.kind == "sample" else item.name
            groups.setdefault(("head" if item.kind == "head" else "cell", owner), []).append(item)
        return [_challenge(claimed, trace, group) for group in groups.values()]
    return [_challenge(claimed, trace, batch) for batch in _batches(items)]


class _Item(NamedTuple):
    kind: Literal["cell", "sample", "head"]
    name: CellName
    size: int


def _batches(items: list[_Item]) -> list[list[_Item]]:
    batches: list[list[_Item]] = [[]]
    room = _ANSWER_BYTES
    for item in items:
        if batches[-1] and (item.size > room or len(batches[-1]) >= MAX_CELLS):
            batches.append([])
            room = _ANSWER_BYTES
        room -= item.size
        batches[-1].append(item)
    return batches


def _challenge(claim: str, trace: str, items: list[_Item]) -> Challenge:
    return Challenge(
        claim,
        trace,
        tuple(item.name for item in items if item.kind == "cell"),
        tuple(item.name for item in items if item.kind == "sample"),
        tuple(item.name.position for item in items if item.kind == "head"),
    )


def first_seen(config: DecoderConfig, cell: CellName) -> int:
    """The first position that a cell attends to."""
    window = config.windows[cell.layer]
    return max(0, cell.position - window + 1) if window else 0


def cell_bytes(config: DecoderConfig, cell: CellName) -> int:
    """An upper bound on the opening of a cell."""
    c = config
    queries, keys = c.head_count * c.head_size, c.kv_head_count * c.head_size
    products = queries + 2 * keys + 2 * c.hidden_size + 2 * c.mlp_size
    results = 2 * (2 * c.hidden_size + 2 * queries + c.mlp_size + c.head_count)
    seen = cell.position + 1 - first_seen(c, cell)
    memory = seen * (4 * (keys + c.kv_head_count) + 32)
    rows = 3 * _ROW_BYTES * c.hidden_size
    return products * _PRODUCT_BYTES + results + memory + rows + _HASHES_BYTES


def sample_bytes(config: DecoderConfig) -> int:
    """An upper bound on the opening of a sample."""
    keys = config.kv_head_count * config.head_size
    rows = (_ROW_BYTES + 2) * config.hidden_size
    return 2 * keys * _PRODUCT_BYTES + rows + 4 * (keys + config.kv_head_count) + _HASHES_BYTES


def head_bytes(config: DecoderConfig) -> int:
    """An upper bound on the opening of a position's logits."""
    rows = (_ROW_BYTES + 2) * config.hidden_size
    return config.vocabulary_size * _PRODUCT_BYTES + rows + _HASHES_BYTES
