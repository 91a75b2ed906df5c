"""What one cell of a hop computes: named tensors of integers, each with its step type.

A hop is a grid of cells, stages by positions. Stage 0 is the entry (the embedding, or the rows
received), then comes a stage per layer, then the exit (the rows sent; on the last hop the choice
of a token). A cell reads the residual row of the stage before, and a layer the keys and values
of earlier positions; these *kept* tensors are what cells exchange. The order of tensors is an
order of computation: each follows from earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from unisono.models.config import DecoderConfig
from unisono.models.constants import Constants, constants
from unisono.models.manifest import Manifest
from unisono.types import Q16, LayerRange, Sampling
from unisono.verification.fraud import attention_steps as attention
from unisono.verification.fraud import layer_steps as layer
from unisono.verification.fraud import sampling_steps as choice
from unisono.verification.fraud.steps import Cell, Exponent, RootRef, Rows, Step
from unisono.verification.fraud.tree import Format, block_count, depth_of

RESIDUAL = Exponent(-20)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor; without a step it is received from outside, and a later check binds it."""

    name: str
    size: int
    format: Format
    step: Step | None

    @property
    def block_count(self) -> int:
        """Leaves of its tree."""
        return block_count(self.size, self.format)


@dataclass(frozen=True)
class Program:
    """The tensors of one cell, in order, and which of them the grid keeps."""

    cell: Cell
    tensors: tuple[Tensor, ...]
    kept: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """Name of a tensor → its place."""
        return {tensor.name: i for i, tensor in enumerate(self.tensors)}

    def tensor(self, name: str) -> Tensor:
        """A tensor by name."""
        return self.tensors[self.index[name]]


@dataclass(frozen=True)
class HopProgram:
    """The programs of all cells of a hop's part of one answer."""

    manifest: Manifest
    layers: LayerRange
    prompt: int
    """Tokens of the prompt."""
    positions: int
    sampling: Sampling
    _made: dict[Cell, Program] = field(default_factory=dict[Cell, Program])

    @property
    def config(self) -> DecoderConfig:
        """The model's configuration."""
        return self.manifest.config

    @cached_property
    def constants(self) -> Constants:
        """The configuration's integers."""
        return constants(self.config)

    @property
    def stages(self) -> int:
        """Entry, layers, exit."""
        return self.layers.count + 2

    @property
    def first(self) -> bool:
        """Whether the hop embeds tokens."""
        return self.layers.start == 0

    @property
    def last(self) -> bool:
        """Whether the hop chooses tokens."""
        return self.layers.stop == self.config.layer_count

    @property
    def stage_depth(self) -> int:
        """Levels of the grid's tree above the roots of stages."""
        return depth_of(self.stages)

    @property
    def cell_depth(self) -> int:
        """Levels of the grid's tree above the roots of cells."""
        return self.stage_depth + depth_of(self.positions)

    def place(self, cell: Cell) -> int:
        """A cell's place among the leaves of the grid's tree."""
        return cell.stage << depth_of(self.positions) | cell.position

    def seen(self, cell: Cell) -> attention.Seen:
        """The positions that a layer's cell sees."""
        c = self.config
        window = c.windows[self.layer_of(cell.stage)]
        start = max(0, cell.position + 1 - window) if window else 0
        return attention.Seen(
            cell.stage, cell.position, start, c.head_count, c.kv_head_count, c.head_size
        )

    def layer_of(self, stage: int) -> int:
        """The layer that a stage computes."""
        return self.layers.start + stage - 1

    def kept(self, stage: int) -> tuple[Tensor, ...]:
        """The kept tensors of a stage's cells."""
        c = self.config
        row = Tensor("row", c.hidden_size, "i8", None)
        if stage == self.stages - 1:
            return (Tensor("sent", 1, "i8", None),)
        if stage == 0:
            return (row,)
        size = c.kv_head_count * c.head_size
        return (
            Tensor("keys", size, "i2", None),
            Tensor("keys.exponent", c.kv_head_count, "i8", None),
            Tensor("values", size, "i2", None),
            Tensor("values.exponent", c.kv_head_count, "i8", None),
            row,
        )

    def program(self, cell: Cell) -> Program:
        """The program of a cell.

        Raises:
            ValueError: the grid has no such cell.
        """
        if not (0 <= cell.stage < self.stages and 0 <= cell.position < self.positions):
            raise ValueError(f"{cell} is outside a grid of {self.stages} by {self.positions}")
        if cell not in self._made:
            if len(self._made) > 64:
                self._made.clear()
            self._made[cell] = self._make(cell)
        return self._made[cell]

    def _make(self, cell: Cell) -> Program:
        builder = _Builder(self, cell)
        if cell.stage == 0:
            builder.entry()
        elif cell.stage == self.stages - 1:
            builder.exit()
        else:
            builder.layer(self.layer_of(cell.stage))
        kept = tuple(tensor.name for tensor in self.kept(cell.stage))
        return Program(cell, tuple(builder.tensors), kept)


class _Builder:
    """Writes down a cell's tensors one after another."""

    def __init__(self, hop: HopProgram, cell: Cell) -> None:
        self.hop, self.cell, self.config = hop, cell, hop.config
        self.constants = hop.constants
        self.exponents = {name: t.exponent for name, t in hop.manifest.tensors.items()}
        self.tensors: list[Tensor] = []

    def put(self, name: str, size: int, step: Step | None, format: Format = "i8") -> None:
        self.tensors.append(Tensor(name, size, format, step))

    def entry(self) -> None:
        c, position = self.config, self.cell.position
        if self.hop.first:
            self.put("token", 1, layer.Token(position))
            exponent = self.exponents["embedding"]
            embed = layer.Embed("token", exponent, self.constants.embedding_scale)
            self.put("row", c.hidden_size, embed)
        else:
            self.put("row", c.hidden_size, None)
            self.put("received", 1, layer.Boundary(RootRef(None, "row"), "in", position))

    def exit(self) -> None:
        c, position = self.config, self.cell.position
        before = Cell(self.cell.stage - 1, position)
        row = Rows("row", 1, c.hidden_size, RESIDUAL, before)
        self.put("sent", 1, layer.Boundary(RootRef(before, "row"), "out", position))
        if self.hop.last and position >= self.hop.prompt - 1:
            self.choose(row)

    def shift(self, name: str, rows: Rows, bits: int, after: str = "") -> None:
        self.put(name, rows.groups, layer.Shift(rows, bits, after, 30 if after else 0))

    def requantise(self, name: str, rows: Rows, bits: int, format: Format) -> Rows:
        """The rows of `reduce_row`."""
        self.shift(f"{name}.shift", rows, bits)
        step = layer.Requantise(rows, f"{name}.shift", bits)
        self.put(name, rows.groups * rows.width, step, format)
        exponent = rows.exponent.plus(0, (f"{name}.shift", rows.groups > 1))
        return Rows(name, rows.groups, rows.width, exponent)

    def norm(self, name: str, rows: Rows, weight: str) -> Rows:
        shift, copy, inverse = (f"{name}.{part}" for part in ("shift", "copy", "inverse"))
        self.shift(shift, rows, 30)
        self.shift(copy, rows, 15, shift)
        step = layer.NormInverse(rows, shift, copy, self.constants.epsilon)
        self.put(inverse, rows.groups, step)
        element = layer.NormElement(rows, shift, copy, inverse, weight)
        self.put(name, rows.groups * rows.width, element)
        return Rows(name, rows.groups, rows.width, Exponent(self.exponents[weight] - 24))

    def linear(self, name: str, rows: Rows, outputs: int, matrix: str, biased: bool) -> Rows:
        """A linear layer of rows that were requantised to 15 bits."""
        exponent = rows.exponent.plus(self.exponents[matrix])
        common = f"{name}.exponent"
        if not biased:
            self.put(name, outputs, layer.Product(rows, matrix))
            self.put(common, 1, layer.ExponentSum(exponent))
        else:
            bias = f"{matrix}_bias"
            self.put(f"{name}.product", outputs, layer.Product(rows, matrix))
            self.put(common, 1, layer.ExponentSum(exponent, self.exponents[bias] - 36))
            step = layer.Bias(f"{name}.product", common, exponent, bias, self.exponents[bias])
            self.put(name, outputs, step)
        return Rows(name, 1, outputs, Exponent(0, ((common, False),)))

    def heads(self, rows: Rows) -> Rows:
        size = self.config.head_size
        return Rows(rows.tensor, rows.width // size, size, rows.exponent)

    def rotate(self, name: str, heads: Rows) -> None:
        turned = f"{name}.turned"
        self.shift(f"{turned}.shift", heads, 24)
        step = attention.Turn(heads, f"{turned}.shift", "rotation")
        self.put(turned, heads.groups * heads.width, step)
        exponent = heads.exponent.plus(-22, (f"{turned}.shift", True))
        self.keep(name, Rows(turned, heads.groups, heads.width, exponent))

    def keep(self, name: str, heads: Rows) -> None:
        """Heads at 15 bits, and their exponents."""
        self.shift(f"{name}.shift", heads, 15)
        step = layer.Requantise(heads, f"{name}.shift", 15)
        self.put(name, heads.groups * heads.width, step, "i2")
        exponent = layer.ExponentSum(heads.exponent.plus(0, (f"{name}.shift", True)))
        self.put(f"{name}.exponent", heads.groups, exponent)

    def layer(self, i: int) -> None:
        c = self.config
        before = Cell(self.cell.stage - 1, self.cell.position)
        row = Rows("row", 1, c.hidden_size, RESIDUAL, before)
        x = self.attention(i, self.norm("attention_norm", row, f"layers.{i}.attention_norm"))
        if c.post_norms:
            x = self.norm("post_attention_norm", x, f"layers.{i}.post_attention_norm")
        self.put("middle", c.hidden_size, layer.Add(row, x))
        middle = Rows("middle", 1, c.hidden_size, RESIDUAL)
        x = self.mlp(i, self.norm("mlp_norm", middle, f"layers.{i}.mlp_norm"))
        if c.post_norms:
            x = self.norm("post_mlp_norm", x, f"layers.{i}.post_mlp_norm")
        self.put("row", c.hidden_size, layer.Add(middle, x))

    def attention(self, i: int, x: Rows) -> Rows:
        c, at = self.config, f"layers.{i}."
        x = self.requantise("attention_input", x, 15, "i2")
        queries, keys = c.head_count * c.head_size, c.kv_head_count * c.head_size
        query = self.heads(self.linear("query", x, queries, f"{at}query", c.qkv_bias))
        key = self.heads(self.linear("key", x, keys, f"{at}key", c.qkv_bias))
        value = self.heads(self.linear("value", x, keys, f"{at}value", c.qkv_bias))
        if c.query_key_norm:
            query = self.norm("query_norm", query, f"{at}query_norm")
            key = self.norm("key_norm", key, f"{at}key_norm")
        k, position = self.constants, self.cell.position
        turns, factor = k.frequencies, k.factor
        if c.windows[i]:
            turns, factor = k.local_frequencies, k.local_factor
        self.put("rotation", c.head_size, attention.Rotation(position, turns, factor))
        self.rotate("queries", query)
        self.rotate("keys", key)
        self.keep("values", value)
        seen = self.hop.seen(self.cell)
        pairs = c.head_count * seen.count
        self.put("scores", pairs, attention.Score(seen, k.score_scale))
        self.put("top", c.head_count, attention.Largest("scores", seen.count))
        self.put("probabilities", pairs, attention.Probability(seen))
        self.put("highest", c.head_count, attention.LargestValueExponent(seen))
        self.put("weights", pairs, attention.Weight(seen))
        self.put("divisor", c.head_count, attention.Divisor(seen))
        self.put("mixed", queries, attention.Mixed(seen))
        self.put("common", 1, attention.Largest("highest", c.head_count))
        self.put("attended", queries, attention.Attended(c.head_size))
        out = Rows("attended", 1, queries, Exponent(-33, (("common", False),)))
        out = self.requantise("output_input", out, 15, "i2")
        return self.linear("output", out, c.hidden_size, f"{at}output", c.output_bias)

    def mlp(self, i: int, x: Rows) -> Rows:
        c, at = self.config, f"layers.{i}."
        x = self.requantise("mlp_input", x, 15, "i2")
        gate = self.linear("gate", x, c.mlp_size, f"{at}gate", c.mlp_bias)
        up = self.linear("up", x, c.mlp_size, f"{at}up", c.mlp_bias)
        self.shift("gate.shift", gate, 24)
        self.put("active", c.mlp_size, layer.Gate(gate, "gate.shift", c.activation))
        exponent = gate.exponent.plus(-38, ("gate.shift", False))
        active = Rows("active", 1, c.mlp_size, exponent)
        self.shift("active.shift", active, 31)
        self.shift("up.shift", up, 31)
        self.put("gated", c.mlp_size, layer.Gated(active, "active.shift", up, "up.shift"))
        parts = ("active.shift", False), ("up.shift", False), *up.exponent.parts
        gated = Rows("gated", 1, c.mlp_size, exponent.plus(up.exponent.constant, *parts))
        down = self.requantise("down_input", gated, 15, "i2")
        return self.linear("down", down, c.hidden_size, f"{at}down", c.mlp_bias)

    def choose(self, row: Rows) -> None:
        c, s, size = self.config, self.hop.sampling, self.config.vocabulary_size
        position = self.cell.position + 1
        x = self.requantise("head_input", self.norm("final_norm", row, "final_norm"), 15, "i2")
        head = "embedding" if c.tied_head else "head"
        exponent = x.exponent.plus(self.exponents[head])
        self.put("logits", size, layer.Logit(x, head, exponent))
        counted = s.repetition_penalty != Q16 or s.presence_penalty != 0 or s.frequency_penalty != 0
        if counted:
            self.put("seen", size, choice.Count(0, position), "i4")
            self.put("repeats", size, choice.Count(self.hop.prompt, position), "i4")
        self.put("adjusted", size, choice.Adjust(s, counted))
        ranked = "adjusted" if s.temperature == 0 else self.filter(position)
        self.put("winner", 1, choice.Winner(ranked, size))
        self.put("chosen", 1, choice.Chosen(position))

    def filter(self, position: int) -> str:
        s, size = self.hop.sampling, self.config.vocabulary_size
        self.put("best", 1, attention.Largest("adjusted", size))
        self.put("below", size, choice.Distance(s.temperature))
        self.put("likelihoods", size, choice.Likelihood())
        self.put("keys", size, choice.RankKey())
        bounds: tuple[str, ...] = ()
        if 0 < s.top_k < size:
            self.put("top_k.bound", 1, choice.TopK(size, s.top_k))
            bounds = ("top_k.bound",)
        if s.top_p < Q16:
            bounded = bool(bounds)
            self.put("nucleus.mass", 1, choice.Mass(size, bounded, s.top_p))
            self.put("nucleus.bound", 1, choice.Nucleus(size, bounded))
            bounds += ("nucleus.bound",)
        self.put("noisy", size, choice.Noisy(position, s.seed, s.min_p, bounds))
        return "noisy"
