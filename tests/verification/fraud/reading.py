"""Descriptors read back, as their forms are documented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from unisono.models import tiles
from unisono.verification.fraud import attention_steps as attention
from unisono.verification.fraud import layer_steps as layer
from unisono.verification.fraud import sampling_steps as choice
from unisono.verification.fraud.descriptors import Leaf, variant_of
from unisono.verification.fraud.parameters import KINDS
from unisono.verification.fraud.program import HopProgram, Tensor
from unisono.verification.fraud.steps import Cell, Exponent, RootRef, Rows, Step


def words(leaf: Leaf) -> list[int]:
    data = leaf.payload
    assert len(data) % 32 == 0
    return [int.from_bytes(data[k : k + 32], "big", signed=True) for k in range(0, len(data), 32)]


class Reader:
    """Reads the parameters of a step back, as the forms are documented."""

    def __init__(self, hop: HopProgram, cell: Cell, values: list[int], weight: str) -> None:
        self.hop, self.cell, self.values, self.weight = hop, cell, values, weight
        self.names = [tensor.name for tensor in hop.program(cell).tensors]
        self.at = 0

    def take(self, count: int) -> list[int]:
        self.at += count
        assert self.at <= len(self.values)
        return self.values[self.at - count : self.at]

    def number(self) -> int:
        return self.take(1)[0]

    def pair(self) -> tuple[int, int]:
        first, second = self.take(2)
        return first, second

    def tensor(self) -> str:
        place = self.number()
        return "" if place == -1 else self.names[place]

    def matrix(self) -> str:
        assert self.number() == 0
        assert self.weight
        return self.weight

    def rows(self) -> Rows:
        place, groups, width, before = self.take(4)
        if not before:
            return Rows(self.names[place], groups, width, Exponent(0))
        assert place == 4
        cell = Cell(self.cell.stage - 1, self.cell.position)
        return Rows(self.hop.kept(cell.stage)[-1].name, groups, width, Exponent(0), cell)

    def exponent(self) -> Exponent:
        constant, count = self.take(2)
        parts = (self.take(2) for _ in range(count))
        return Exponent(constant, tuple((self.names[t], bool(each)) for t, each in parts))

    def list(self) -> list[int]:
        return self.take(self.number())

    def seen(self) -> attention.Seen:
        window, heads, kv_heads, size = self.take(4)
        start = max(0, self.cell.position + 1 - window) if window else 0
        return attention.Seen(*self.cell, start, heads, kv_heads, size)

    def named(self, *expected: str) -> None:
        assert tuple(self.tensor() for _ in expected) == expected


def read_shift(r: Reader) -> Step:
    rows, bits, after = r.rows(), r.number(), r.tensor()
    return layer.Shift(rows, bits, after, r.number())


def read_exponent(r: Reader) -> Step:
    has, least = r.pair()
    return layer.ExponentSum(r.exponent(), least if has else None)


def read_norm_inverse(r: Reader) -> Step:
    rows, shift, copy, epsilon = r.rows(), r.tensor(), r.tensor(), r.pair()
    return layer.NormInverse(rows._replace(exponent=r.exponent()), shift, copy, epsilon)


def read_norm(r: Reader) -> Step:
    return layer.NormElement(r.rows(), r.tensor(), r.tensor(), r.tensor(), r.matrix())


def read_bias(r: Reader) -> Step:
    product, common, bias, exponent = r.tensor(), r.tensor(), r.matrix(), r.number()
    return layer.Bias(product, common, r.exponent(), bias, exponent)


def read_gate(r: Reader) -> Step:
    rows, shift, activation = r.rows(), r.tensor(), ("silu", "gelu_tanh")[r.number()]
    return layer.Gate(rows._replace(exponent=r.exponent()), shift, activation)


def read_gated(r: Reader) -> Step:
    return layer.Gated(r.rows(), r.tensor(), r.rows(), r.tensor())


def read_add(r: Reader) -> Step:
    residual, rows = r.rows(), r.rows()
    return layer.Add(residual, rows._replace(exponent=r.exponent()))


def read_embed(r: Reader) -> Step:
    token, exponent, scale = r.tensor(), r.number(), r.pair()
    assert r.matrix() == "embedding"
    return layer.Embed(token, exponent, scale)


def read_boundary(r: Reader) -> Step:
    place, before, side = r.take(3)
    if before:
        assert place == 4
        ref = RootRef(Cell(r.cell.stage - 1, r.cell.position), "row")
    else:
        ref = RootRef(None, r.names[place])
    return layer.Boundary(ref, ("in", "out")[side], r.cell.position)


def read_rotation(r: Reader) -> Step:
    factor = r.number()
    return attention.Rotation(r.cell.position, tuple(r.list()), factor)


def read_score(r: Reader) -> Step:
    seen, scale = r.seen(), r.pair()
    r.named("queries", "queries.exponent", "keys", "keys.exponent")
    return attention.Score(seen, scale)


def read_largest(r: Reader) -> Step:
    tensor, a, b = r.tensor(), r.number(), r.number()
    window = r.hop.seen(r.cell).count if b else 0
    return attention.Largest(tensor, a + b * window)


def of_seen(step: Callable[[attention.Seen], Step], *names: str) -> Callable[[Reader], Step]:
    def read(r: Reader) -> Step:
        seen = r.seen()
        r.named(*names)
        return step(seen)

    return read


def read_attended(r: Reader) -> Step:
    size = r.number()
    r.named("mixed", "common", "highest")
    return attention.Attended(size)


def read_adjust(r: Reader) -> Step:
    counted = bool(r.number())
    r.named("logits", "seen" if counted else "", "repeats" if counted else "")
    return choice.Adjust(r.hop.sampling, counted)


def read_count(r: Reader) -> Step:
    return choice.Count(r.hop.prompt if r.number() else 0, r.cell.position + 1)


def read_distance(r: Reader) -> Step:
    r.named("adjusted", "best")
    return choice.Distance(r.hop.sampling.temperature)


def of_below(step: Callable[[], Step]) -> Callable[[Reader], Step]:
    def read(r: Reader) -> Step:
        r.named("below")
        return step()

    return read


def read_top_k(r: Reader) -> Step:
    size = r.number()
    r.named("keys")
    return choice.TopK(size, r.hop.sampling.top_k)


def read_mass(r: Reader) -> Step:
    size, bounded = r.pair()
    r.named("top_k.bound" if bounded else "", "likelihoods", "keys")
    return choice.Mass(size, bool(bounded), r.hop.sampling.top_p)


def read_nucleus(r: Reader) -> Step:
    size, bounded = r.pair()
    r.named("nucleus.mass", "top_k.bound" if bounded else "", "likelihoods", "keys")
    return choice.Nucleus(size, bool(bounded))


def read_noisy(r: Reader) -> Step:
    r.named("below", "likelihoods", "keys")
    bounds, s = tuple(r.names[place] for place in r.list()), r.hop.sampling
    return choice.Noisy(r.cell.position + 1, s.seed, s.min_p, bounds)


def read_chosen(r: Reader) -> Step:
    r.named("winner")
    return choice.Chosen(r.cell.position + 1)


READ: dict[str, Callable[[Reader], Step]] = {
    "shift": read_shift,
    "requantise": lambda r: layer.Requantise(r.rows(), r.tensor(), r.number()),
    "exponent": read_exponent,
    "norm_inverse": read_norm_inverse,
    "norm": read_norm,
    "product": lambda r: layer.Product(r.rows(), r.matrix()),
    "logit": lambda r: layer.Logit(r.rows(), r.matrix(), r.exponent()),
    "bias": read_bias,
    "gate": read_gate,
    "gated": read_gated,
    "add": read_add,
    "token": lambda r: layer.Token(r.cell.position),
    "embed": read_embed,
    "boundary": read_boundary,
    "rotation": read_rotation,
    "turn": lambda r: attention.Turn(r.rows(), r.tensor(), r.tensor()),
    "score": read_score,
    "largest": read_largest,
    "value_exponent": of_seen(attention.LargestValueExponent, "values.exponent"),
    "probability": of_seen(attention.Probability, "scores", "top"),
    "weight": of_seen(attention.Weight, "probabilities", "highest", "values.exponent"),
    "divisor": of_seen(attention.Divisor, "probabilities"),
    "mixed": of_seen(attention.Mixed, "divisor", "weights", "values"),
    "attended": read_attended,
    "count": read_count,
    "adjust": read_adjust,
    "distance": read_distance,
    "likelihood": of_below(choice.Likelihood),
    "rank": of_below(choice.RankKey),
    "top_k": read_top_k,
    "mass": read_mass,
    "nucleus": read_nucleus,
    "noisy": read_noisy,
    "winner": lambda r: choice.Winner(r.tensor(), r.number()),
    "chosen": read_chosen,
}
READS_EXPONENT = {"norm_inverse": ("rows",), "gate": ("rows",), "add": ("rows",)}
"""Fields that are rows whose exponent the step reads: of others no descriptor tells it."""


def plain(step: Step) -> Step:
    """A step without the exponents that it does not read."""
    fields = {name: getattr(step, name) for name in type(step).__dataclass_fields__}
    return replace(
        step,
        **{
            name: rows._replace(exponent=Exponent(0))
            for name, rows in fields.items()
            if isinstance(rows, Rows) and name not in READS_EXPONENT.get(step.kind, ())
        },
    )


def read(hop: HopProgram, cell: Cell, place: int, leaf: Leaf) -> tuple[Tensor, list[int]]:
    """A tensor from its descriptor, and its inputs."""
    w = words(leaf)
    assert w[:3] == [1, variant_of(hop, cell), place]
    a, b, width, kind, rows, columns, count, root, n = w[3:12]
    inputs, values, weight = w[12 : 12 + n], w[12 + n :], ""
    if columns:
        data = leaf.payload[10 * 32 : 11 * 32].hex()
        weight, entry = next(
            (name, t) for name, t in hop.manifest.tensors.items() if t.root == data
        )
        assert (rows, columns) == (entry.shape if len(entry.shape) == 2 else (0, *entry.shape))
        assert count == tiles.tile_count(entry.shape)
    else:
        assert (rows, columns, count, root) == (0, 0, 0, 0)
    size = a + (b * hop.seen(cell).count if b else 0)
    name = hop.program(cell).tensors[place].name
    if kind == 0:
        assert not values
        assert not inputs
        return Tensor(name, size, f"i{width}", None), inputs
    reader = Reader(hop, cell, values, weight)
    step = READ[next(k for k, number in KINDS.items() if number == kind)](reader)
    assert reader.at == len(values), "something was left over"
    return Tensor(name, size, f"i{width}", step), inputs
