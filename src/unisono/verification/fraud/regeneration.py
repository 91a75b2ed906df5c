"""All tensors of a cell at once, in the vectorised operators: what an honest party commits to.

One function per step type; the tests compare every element with the step itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unisono.models.weights import BlockWeights
from unisono.numerics import activation, linear, residual
from unisono.numerics import sampling as draws
from unisono.numerics.fixed import align, bit_length, round_shift, square_root
from unisono.numerics.linear import Matrix, from_numpy
from unisono.numerics.philox import philox
from unisono.numerics.rotary import rotation
from unisono.numerics.softmax import MAX_DISTANCE, exp2_negative
from unisono.types import Q16
from unisono.verification.fraud import attention_steps as attention
from unisono.verification.fraud import layer_steps as layer
from unisono.verification.fraud import sampling_steps as choice
from unisono.verification.fraud.program import Program
from unisono.verification.fraud.steps import Cell, Exponent, Rows, Step

Array = NDArray[np.int64]
_S = TypeVar("_S", bound=Step)
FILL: dict[type[Step], Callable[[Any, Context, int], Tensor]] = {}


@dataclass(slots=True)
class Context:
    """What a cell's tensors are made from: its sources, and the tensors so far."""

    weights: BlockWeights
    tokens: Sequence[int]
    kept: Callable[[Cell, str], Array]
    """A kept tensor of an earlier cell."""
    stacked: Callable[[int, int, int, str], Array]
    """A kept tensor of positions `start:stop` of a stage, [positions, size]."""
    made: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def rows(self, rows: Rows) -> Tensor:
        """Rows [groups, width]."""
        if rows.cell is None:
            return self.made[rows.tensor].view(rows.groups, rows.width)
        return _tensor(self.kept(rows.cell, rows.tensor)).view(rows.groups, rows.width)

    def exponent(self, exponent: Exponent) -> Tensor:
        """Exponents [groups] or [1]."""
        total = torch.tensor([exponent.constant])
        for name, _ in exponent.parts:
            total = total + self.made[name]
        return total

    def seen(self, seen: attention.Seen, name: str) -> Tensor:
        """A kept tensor of all positions that are seen, [seen, size]; the own one is last."""
        earlier = self.stacked(seen.stage, seen.start, seen.position, name)
        return torch.cat([_tensor(earlier), self.made[name][None, :]])

    def weight(self, name: str) -> Any:
        """A stored tensor by its canonical name."""
        if name.startswith("layers."):
            _, i, part = name.split(".")
            return getattr(self.weights.layer[int(i)], part)
        return getattr(self.weights, name) if name != "head" else self.weights.head

    def matrix(self, name: str) -> Matrix:
        """A matrix; a tied output matrix is stored with the embedding or as the head."""
        stored = self.weight(name) or self.weights.head
        assert stored is not None
        return Matrix.on("cpu", stored)


def regenerate(program: Program, context: Context, given: dict[str, Array]) -> dict[str, Array]:
    """Every tensor of a cell, int64 [size]; `given` holds those that have no step, and overrides
    others."""
    context.made = {}
    for tensor in program.tensors:
        if tensor.name in given:
            made = _tensor(given[tensor.name])
        else:
            assert tensor.step is not None
            made = FILL[type(tensor.step)](tensor.step, context, tensor.size)
        context.made[tensor.name] = made.reshape(-1)
    return {name: cast(Array, cast(Any, x).numpy()) for name, x in context.made.items()}


def _tensor(array: Array) -> Tensor:
    return from_numpy(np.ascontiguousarray(array))


def _fill(kind: type[_S]) -> Callable[..., Callable[[_S, Context, int], Tensor]]:
    def register(
        function: Callable[[_S, Context, int], Tensor],
    ) -> Callable[[_S, Context, int], Tensor]:
        FILL[kind] = function
        return function

    return register


def _reduced(x: Tensor, shift: Tensor, bits: int) -> Tensor:
    limit = (1 << bits) - 1
    return round_shift(x, shift).clamp(-limit, limit)


@_fill(layer.Shift)
def _shift(step: layer.Shift, c: Context, size: int) -> Tensor:
    row = c.rows(step.rows)
    if step.after:
        row = _reduced(row, c.made[step.after][:, None], step.after_bits)
    return (bit_length(row.abs().amax(-1)) - step.bits).clamp(min=0)


@_fill(layer.Requantise)
def _requantise(step: layer.Requantise, c: Context, size: int) -> Tensor:
    return _reduced(c.rows(step.rows), c.made[step.shift][:, None], step.bits)


@_fill(layer.ExponentSum)
def _exponent(step: layer.ExponentSum, c: Context, size: int) -> Tensor:
    total = c.exponent(step.exponent).expand(size)
    return total if step.least is None else total.clamp(min=step.least)


@_fill(layer.NormInverse)
def _norm_inverse(step: layer.NormInverse, c: Context, size: int) -> Tensor:
    shift, copy = c.made[step.shift], c.made[step.copy]
    wide = _reduced(c.rows(step.rows), shift[:, None], 30)
    narrow = _reduced(wide, copy[:, None], 15)
    mean = ((narrow * narrow).sum(-1) << 16) // step.rows.width
    exponent = c.exponent(step.rows.exponent) + shift + copy
    mantissa, epsilon = step.epsilon
    added = align(torch.full_like(mean, mantissa), 2 * exponent - 16 - epsilon, 50)
    return (1 << 46) // square_root(mean + added).clamp(min=1)


@_fill(layer.NormElement)
def _norm(step: layer.NormElement, c: Context, size: int) -> Tensor:
    wide = _reduced(c.rows(step.rows), c.made[step.shift][:, None], 30)
    inverse, copy = c.made[step.inverse][:, None], c.made[step.copy][:, None]
    return round_shift(wide * inverse, copy + 14) * _tensor(c.weight(step.weight).values)


@_fill(layer.Product)
def _product(step: layer.Product, c: Context, size: int) -> Tensor:
    return linear.product(c.rows(step.rows), c.matrix(step.matrix))


@_fill(layer.Logit)
def _logit(step: layer.Logit, c: Context, size: int) -> Tensor:
    return align(_product(step, c, size), -(c.exponent(step.exponent) + 16), residual.LOGIT_BITS)


@_fill(layer.Bias)
def _bias(step: layer.Bias, c: Context, size: int) -> Tensor:
    common = c.made[step.common]
    shift = (common - c.exponent(step.exponent)).clamp(max=62)
    bias = _tensor(c.weight(step.bias).values)
    return round_shift(c.made[step.product], shift) + align(bias, common - step.bias_exponent, 60)


@_fill(layer.Gate)
def _gate(step: layer.Gate, c: Context, size: int) -> Tensor:
    gate, exponent = c.rows(step.rows)[0], c.exponent(step.rows.exponent)
    argument = align(gate, -(exponent + 20), 25)
    if step.activation == "gelu_tanh":
        square = round_shift(argument * argument, 20)
        inner = activation.GELU_LINEAR + round_shift(square * activation.GELU_CUBIC, 20)
        limit = (1 << 25) - 1
        argument = round_shift(argument * inner, 30).clamp(-limit, limit)
    return _reduced(gate, c.made[step.shift], 24) * activation.sigmoid(argument)


@_fill(layer.Gated)
def _gated(step: layer.Gated, c: Context, size: int) -> Tensor:
    left = _reduced(c.rows(step.left), c.made[step.left_shift], 31)
    return left * _reduced(c.rows(step.right), c.made[step.right_shift], 31)


@_fill(layer.Add)
def _add(step: layer.Add, c: Context, size: int) -> Tensor:
    exponent = c.exponent(step.rows.exponent)
    return residual.add(c.rows(step.residual)[0], c.rows(step.rows)[0], exponent)


@_fill(layer.Token)
def _token(step: layer.Token, c: Context, size: int) -> Tensor:
    return torch.tensor([c.tokens[step.position]])


@_fill(layer.Embed)
def _embed(step: layer.Embed, c: Context, size: int) -> Tensor:
    return residual.embed(c.made[step.token], c.matrix("embedding"), step.scale)


@_fill(layer.Boundary)
def _boundary(step: layer.Boundary, c: Context, size: int) -> Tensor:
    return torch.ones(1, dtype=torch.int64)


@_fill(attention.Rotation)
def _rotation(step: attention.Rotation, c: Context, size: int) -> Tensor:
    turns = torch.tensor(step.frequencies, dtype=torch.int64)
    return torch.cat(rotation(torch.tensor([step.position]), turns, step.factor), dim=-1)


@_fill(attention.Turn)
def _turn(step: attention.Turn, c: Context, size: int) -> Tensor:
    x = _reduced(c.rows(step.rows), c.made[step.shift][:, None], 24)
    half = step.rows.width // 2
    a, b = x[:, :half], x[:, half:]
    cosine, sine = c.made[step.rotation][:half], c.made[step.rotation][half:]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], dim=-1)


def _by_head(seen: attention.Seen, x: Tensor) -> Tensor:
    """[seen, kv_heads] → [heads, seen]."""
    return x.t().repeat_interleave(seen.heads // seen.kv_heads, dim=0)


def _seen_heads(seen: attention.Seen, x: Tensor) -> Tensor:
    """[seen, kv_heads * size] → float64 [heads, seen, size]."""
    x = x.view(seen.count, seen.kv_heads, seen.size).to(torch.float64).permute(1, 0, 2)
    return x.repeat_interleave(seen.heads // seen.kv_heads, dim=0)


@_fill(attention.Score)
def _score(step: attention.Score, c: Context, size: int) -> Tensor:
    s = step.seen
    query = c.made["queries"].view(s.heads, s.size, 1).to(torch.float64)
    dot = (_seen_heads(s, c.seen(s, "keys")) @ query)[..., 0].to(torch.int64)  # below 2**39
    mantissa, exponent = step.scale
    exponents = c.made["queries.exponent"][:, None] + _by_head(s, c.seen(s, "keys.exponent"))
    return align(dot * mantissa, -(exponents + exponent + 16), 40)


@_fill(attention.Largest)
def _largest(step: attention.Largest, c: Context, size: int) -> Tensor:
    return c.made[step.tensor].view(size, step.width).amax(-1)


@_fill(attention.LargestValueExponent)
def _highest(step: attention.LargestValueExponent, c: Context, size: int) -> Tensor:
    return _by_head(step.seen, c.seen(step.seen, "values.exponent")).amax(-1)


@_fill(attention.Probability)
def _probability(step: attention.Probability, c: Context, size: int) -> Tensor:
    scores = c.made["scores"].view(step.seen.heads, -1)
    return exp2_negative((c.made["top"][:, None] - scores).clamp(max=MAX_DISTANCE), 28)


@_fill(attention.Weight)
def _weight(step: attention.Weight, c: Context, size: int) -> Tensor:
    exponents = _by_head(step.seen, c.seen(step.seen, "values.exponent"))
    shift = (c.made["highest"][:, None] - exponents).clamp(max=62)
    return round_shift(c.made["probabilities"].view(step.seen.heads, -1), shift)


@_fill(attention.Divisor)
def _divisor(step: attention.Divisor, c: Context, size: int) -> Tensor:
    return c.made["probabilities"].view(size, -1).sum(-1) >> 9


@_fill(attention.Mixed)
def _mixed(step: attention.Mixed, c: Context, size: int) -> Tensor:
    s = step.seen
    weights = c.made["weights"].view(s.heads, 1, -1)
    values = _seen_heads(s, c.seen(s, "values"))
    # two digits keep each float64 sum below 2**53
    high = ((weights >> 14).to(torch.float64) @ values).to(torch.int64)
    low = ((weights & ((1 << 14) - 1)).to(torch.float64) @ values).to(torch.int64)
    return ((high << 14) + low)[:, 0, :] // c.made["divisor"][:, None]


@_fill(attention.Attended)
def _attended(step: attention.Attended, c: Context, size: int) -> Tensor:
    shift = (c.made["common"] - c.made["highest"]).clamp(max=62)
    return round_shift(c.made["mixed"].view(-1, step.size) << 24, shift[:, None])


@_fill(choice.Count)
def _count(step: choice.Count, c: Context, size: int) -> Tensor:
    out = torch.zeros(size, dtype=torch.int64)
    for token, times in Counter(c.tokens[step.start : step.stop]).items():
        out[token] = times
    return out


@_fill(choice.Adjust)
def _adjust(step: choice.Adjust, c: Context, size: int) -> Tensor:
    s, out = step.sampling, c.made["logits"].clone()
    if step.counted:
        seen, repeats = c.made["seen"] > 0, c.made["repeats"]
        if s.repetition_penalty != Q16:
            lower = torch.where(
                out > 0, (out << 16) // s.repetition_penalty, (out * s.repetition_penalty) >> 16
            )
            out = torch.where(seen, lower, out)
        penalty = s.presence_penalty + s.frequency_penalty * repeats
        out = torch.where(repeats > 0, out - penalty, out)
    for token, bias in s.logit_bias:
        out[token] += bias
    return out.clamp(-choice.SCORE_LIMIT, choice.SCORE_LIMIT)


@_fill(choice.Distance)
def _distance(step: choice.Distance, c: Context, size: int) -> Tensor:
    return ((c.made["best"] - c.made["adjusted"]) << 16) // step.temperature


def _base2(below: Tensor) -> Tensor:
    return round_shift(below.clamp(max=MAX_DISTANCE) * activation.LOG2_E, 16).clamp(
        max=MAX_DISTANCE
    )


@_fill(choice.Likelihood)
def _likelihood(step: choice.Likelihood, c: Context, size: int) -> Tensor:
    return exp2_negative(_base2(c.made["below"]), 28)


@_fill(choice.RankKey)
def _rank(step: choice.RankKey, c: Context, size: int) -> Tensor:
    return (c.made["below"].clamp(max=choice.SCORE_LIMIT) << choice.ID_BITS) | torch.arange(size)


@_fill(choice.TopK)
def _top_k(step: choice.TopK, c: Context, size: int) -> Tensor:
    return torch.kthvalue(c.made["keys"], step.k).values


def _kept(bounded: bool, c: Context) -> tuple[Tensor, Tensor]:
    keys, p = c.made["keys"], c.made["likelihoods"]
    if not bounded:
        return keys, p
    inside = keys <= c.made["top_k.bound"]
    return keys[inside], p[inside]


@_fill(choice.Mass)
def _mass(step: choice.Mass, c: Context, size: int) -> Tensor:
    total = int(_kept(step.bounded, c)[1].sum())
    return torch.tensor([total * step.top_p >> 16])


@_fill(choice.Nucleus)
def _nucleus(step: choice.Nucleus, c: Context, size: int) -> Tensor:
    keys, p = _kept(step.bounded, c)
    order = keys.argsort()
    before = p[order].cumsum(0) - p[order]
    inside = before < c.made["nucleus.mass"]
    inside[0] = True
    return keys[order][inside].amax()


@_fill(choice.Noisy)
def _noisy(step: choice.Noisy, c: Context, size: int) -> Tensor:
    p, keys = c.made["likelihoods"], c.made["keys"]
    good = (p > 0) & (p >= step.min_p << 12)
    for name in step.bounds:
        good &= keys <= c.made[name]
    ids = good.nonzero().squeeze(-1)
    uniform = 2 * philox(ids, step.position, step.seed) + 1
    exponential = ((33 << 38) - draws.log2_fixed(uniform)).clamp(min=1)
    gumbel = round_shift((38 << 38) - draws.log2_fixed(exponential), 22)
    out = torch.full((size,), choice.NEVER)
    out[ids] = gumbel - _base2(c.made["below"][ids])
    return out


@_fill(choice.Winner)
def _winner(step: choice.Winner, c: Context, size: int) -> Tensor:
    x = c.made[step.tensor]
    return ((x << choice.ID_BITS) | (choice.IDS - torch.arange(x.shape[0]))).amax()


@_fill(choice.Chosen)
def _chosen(step: choice.Chosen, c: Context, size: int) -> Tensor:
    return torch.ones(1, dtype=torch.int64)


__all__ = ["FILL", "Array", "Context", "regenerate"]
