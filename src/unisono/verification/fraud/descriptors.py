"""A model's program as data: what a contract must know to judge any step of any cell.

A *variant* is a program that differs from others by more than the request: one per layer, two
entries, and an exit for each set of filters. A leaf describes the model, a variant, or a tensor of
one; it carries its own key, so that no place among the leaves must be proven. Everyone who has the
manifest makes the same tree; its root is the *program* of a model.

Leaves are words of 32 bytes, big-endian, two's complement:

    model    3, layers, hidden size, key/value heads, head size, vocabulary
    header   0, variant, window, tensors, kept tensors …
    tensor   1, variant, place, shape (size a, size b, bytes per element), kind,
             weights (rows, columns, tiles, root of the tiles), n, n inputs, parameters …

A tensor has a + b · seen elements, where `seen` positions are seen; kind 0 is received. A weight
vector has 0 rows, and without weights all four words are 0. An input is a tensor of the own cell
that elements may depend on, `place | bytes << 16 | size a << 32 | size b << 64`, ascending.
`parameters.py` has the forms of parameters, `tree.py` the tree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from unisono.merkle import leaf_hash
from unisono.models import tiles
from unisono.models.manifest import Manifest
from unisono.types import Q16, LayerRange, Sampling
from unisono.verification.fraud.attention_steps import Probability, Score, Weight
from unisono.verification.fraud.parameters import KINDS, Names, parameters
from unisono.verification.fraud.program import HopProgram, Program, Tensor
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.tree import Tree

WORD = 32
HEADER, TENSOR, MODEL = 0, 1, 3
"""First words of leaves."""

ENTRY = 1 << 16
"""Of a hop that begins the model; with 1 more, of any other."""
EXIT = 1 << 17
"""Where no token is chosen."""
CHOICE = 1 << 18
"""Where one is; plus which tensors choose it:"""
COUNTED, SAMPLED, TOP_K, TOP_P = 1, 2, 4, 8

_PAIRS = Score, Probability, Weight
"""Their tensors have an element per query head and seen position."""


class Leaf(NamedTuple):
    """A descriptor under the program's root."""

    payload: bytes
    place: int
    path: tuple[bytes, ...]
    """Siblings, from the leaf upwards."""


@dataclass(frozen=True)
class Descriptors:
    """The descriptors of a model."""

    payloads: tuple[bytes, ...]
    places: dict[tuple[int, ...], int]
    """Key of a descriptor (its first two or three words) → its place."""
    tree: Tree

    @property
    def root(self) -> bytes:
        """The program of the model: 32 bytes."""
        return self.tree.root

    def model(self) -> Leaf:
        """The leaf of the model."""
        return self._leaf(MODEL)

    def header(self, variant: int) -> Leaf:
        """The leaf of a variant. Raises KeyError where the model has none such."""
        return self._leaf(HEADER, variant)

    def tensor(self, variant: int, place: int) -> Leaf:
        """The leaf of a tensor. Raises KeyError where the variant has none such."""
        return self._leaf(TENSOR, variant, place)

    def _leaf(self, *key: int) -> Leaf:
        place, depth = self.places[key], self.tree.depth
        path = tuple(self.tree.node(depth - k, (place >> k) ^ 1) for k in range(depth))
        return Leaf(self.payloads[place], place, path)


def descriptors(manifest: Manifest) -> Descriptors:
    """Compile a model's program.

    Raises:
        ValueError, KeyError: the manifest was not checked (`Manifest.check`).
    """
    compiler = _Compiler(manifest)
    c = manifest.config
    facts = c.layer_count, c.hidden_size, c.kv_head_count, c.head_size, c.vocabulary_size
    compiler.put((MODEL,), facts)
    for place in range(c.layer_count):
        compiler.variant(place, compiler.whole(), Cell(place + 1, 0), c.windows[place])
    compiler.variant(ENTRY, compiler.whole(), Cell(0, 0))
    if c.layer_count > 1:
        compiler.variant(ENTRY | 1, compiler.hop(LayerRange(1, c.layer_count)), Cell(0, 0))
    exit = Cell(c.layer_count + 1, 0)
    compiler.variant(EXIT, compiler.whole(prompt=2), exit)
    for sampling in _SAMPLINGS:
        hop = compiler.whole(sampling=sampling)
        variant = variant_of(hop, exit)
        if (HEADER, variant) not in compiler.places:  # top-k of one token filters nothing
            compiler.variant(variant, hop, exit)
    return Descriptors(
        tuple(compiler.payloads), compiler.places, Tree([leaf_hash(p) for p in compiler.payloads])
    )


_SAMPLINGS = [Sampling(presence_penalty=presence) for presence in (0, 1)] + [
    Sampling(temperature=1, presence_penalty=presence, top_k=top_k, top_p=top_p)
    for presence in (0, 1)
    for top_k in (0, 1)
    for top_p in (0, Q16)
]
"""One for each set of tensors that choose a token."""


def variant_of(hop: HopProgram, cell: Cell) -> int:
    """The variant of a cell's program."""
    if cell.stage == 0:
        return ENTRY if hop.first else ENTRY | 1
    if cell.stage < hop.stages - 1:
        return hop.layer_of(cell.stage)
    if not hop.last or cell.position < hop.prompt - 1:
        return EXIT
    s = hop.sampling
    counted = s.repetition_penalty != Q16 or s.presence_penalty != 0 or s.frequency_penalty != 0
    bits = COUNTED * counted
    if s.temperature != 0:
        filtered = 0 < s.top_k < hop.config.vocabulary_size
        bits |= SAMPLED | TOP_K * filtered | TOP_P * (s.top_p < Q16)
    return CHOICE | bits


class _Compiler:
    """Writes down leaves one after another."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.payloads: list[bytes] = []
        self.places: dict[tuple[int, ...], int] = {}

    def hop(
        self, layers: LayerRange, prompt: int = 1, sampling: Sampling | None = None
    ) -> HopProgram:
        return HopProgram(self.manifest, layers, prompt, 1, sampling or Sampling())

    def whole(self, prompt: int = 1, sampling: Sampling | None = None) -> HopProgram:
        return self.hop(LayerRange(0, self.manifest.config.layer_count), prompt, sampling)

    def put(self, key: tuple[int, ...], values: Iterable[int]) -> None:
        self.places[key] = len(self.payloads)
        self.payloads.append(b"".join(map(word, (*key, *values))))

    def variant(self, variant: int, hop: HopProgram, cell: Cell, window: int = 0) -> None:
        program = hop.program(cell)
        kept = (program.index[name] for name in program.kept)
        self.put((HEADER, variant), (window, len(program.tensors), *kept))
        grow = frozenset(t.name for t in program.tensors if isinstance(t.step, _PAIRS))
        names = Names(program.index, window, grow)
        for place, tensor in enumerate(program.tensors):
            facts = self.tensor(tensor, program, names)
            self.put((TENSOR, variant, place), facts)

    def tensor(self, tensor: Tensor, program: Program, names: Names) -> tuple[int, ...]:
        shape = shape_of(tensor, names)
        if tensor.step is None:
            return (*shape, 0, 0, 0, 0, 0, 0)
        p = parameters(tensor.step, names)
        inputs: list[int] = []
        for place in sorted(program.index[name] for name in p.inputs):
            a, b, width = shape_of(program.tensors[place], names)
            inputs.append(place | width << 16 | a << 32 | b << 64)
        kind = KINDS[tensor.step.kind]
        return (*shape, kind, *self.weights(p.weight), len(inputs), *inputs, *p.values)

    def weights(self, name: str) -> tuple[int, int, int, int]:
        if not name:
            return 0, 0, 0, 0
        entry = self.manifest.tensors[name]
        rows, columns = (0, *entry.shape)[-2:]
        root = int.from_bytes(bytes.fromhex(entry.root), "big")
        return rows, columns, tiles.tile_count(entry.shape), root


def shape_of(tensor: Tensor, names: Names) -> tuple[int, int, int]:
    """Size a, size b and bytes per element; probed where one position is seen."""
    grows = tensor.name in names.grow
    a, b = (0, tensor.size) if grows else (tensor.size, 0)
    return a, b, int(tensor.format[1])


def word(value: int) -> bytes:
    """The word of an integer that is signed, or of 32 bytes that are a hash."""
    return (value % (1 << 256)).to_bytes(WORD, "big")
