"""Disputes over small models: material, claims, and parties that lie in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np

from tests.tiny_weights import tiny_config, tiny_weights
from unisono.merkle import seal
from unisono.models import tiles
from unisono.models.config import DecoderConfig, tensor_shapes
from unisono.models.fields import table_roots
from unisono.models.manifest import (
    MANIFEST_VERSION,
    NUMERICS_VERSION,
    Manifest,
    TensorEntry,
    tensor_kind,
)
from unisono.models.weights import BlockWeights
from unisono.types import (
    Q16,
    GenerationRequest,
    LayerRange,
    Sampling,
    SessionId,
    request_hash,
)
from unisono.verification.adversaries import lying
from unisono.verification.fraud.game import Conviction, Game
from unisono.verification.fraud.holdings import Holdings, Signed, WeightTrees, tensor_of
from unisono.verification.fraud.inquiry import Inquiry
from unisono.verification.fraud.moves import Challenge, Subject
from unisono.verification.fraud.parties import Challenger, Defender, Target
from unisono.verification.fraud.program import HopProgram
from unisono.verification.fraud.regeneration import Array
from unisono.verification.fraud.steps import Cell, Total
from unisono.verification.fraud.trace import Material
from unisono.wire.claims import HopClaim, rows_root, tokens_root
from unisono.wire.identity import Identity

HOP, CHALLENGER, ARBITER = (Identity.from_seed(bytes([i]) * 32) for i in (1, 2, 3))
PROMPT = 5
EVERYTHING = Sampling(
    temperature=Q16,
    top_k=20,
    top_p=60000,
    min_p=100,
    repetition_penalty=70000,
    presence_penalty=3000,
    frequency_penalty=100,
    seed=5,
    logit_bias=((3, 500),),
)
"""Every filter and penalty at once."""
GREEDY = Sampling()


def manifest_of(config: DecoderConfig, weights: BlockWeights) -> Manifest:
    """The manifest of a model that is only in memory."""
    trees, entries = WeightTrees(weights), {}
    for name, shape in tensor_shapes(config).items():
        tensor, (tree, _) = tensor_of(weights, name), trees.of(name)
        assert tensor is not None
        root = seal(tiles.DOMAIN, len(tree), tree.top()).hex()
        entries[name] = TensorEntry(tensor_kind(name), shape, tensor.exponent, root)
    return Manifest(MANIFEST_VERSION, NUMERICS_VERSION, table_roots(), config, entries)


@dataclass(frozen=True)
class Answer:
    """An answer's part of one hop, as an honest hop computes it."""

    material: Material
    honest: Holdings
    request: GenerationRequest
    tokens: tuple[int, ...]
    """The answer."""

    @property
    def hop(self) -> HopProgram:
        return self.material.program

    def subject(self, signed: Signed | None = None, **changes: Any) -> Subject:
        """A claim that the hop signs, about these rows."""
        signed, hop = signed or self.honest.signed, self.hop
        claim = HopClaim(
            session=SessionId("0" * 32),
            request=request_hash(self.request),
            gateway=ARBITER.node_id,
            model=self.request.model,
            node=HOP.node_id,
            hop=0,
            layers=hop.layers,
            positions=hop.positions,
            rows_in=rows_root(signed.rows_in),
            rows_out=rows_root(signed.rows_out),
            out_tags=b"",
            tokens=tokens_root(self.tokens) if hop.last else "",
            epoch=0,
        )
        claim = msgspec.structs.replace(claim, **changes).signed_by(HOP)
        tokens = self.tokens if hop.last else ()
        return Subject(claim, self.request, tokens, hop.manifest)

    def game(self, subject: Subject | None = None) -> Game:
        subject = subject or self.subject()
        return Game(subject, challenge_of(subject), 0)


def challenge_of(subject: Subject) -> Challenge:
    claim = subject.claim.signed_bytes()
    challenge = Challenge(claim, CHALLENGER.node_id, ARBITER.node_id, bytes(16))
    return challenge.signed_by(CHALLENGER)


@cache
def answer_of(
    family: str,
    sampling: Sampling = EVERYTHING,
    layers: tuple[int, int] = (0, 2),
    positions: int = 9,
    **changes: Any,
) -> Answer:
    """A hop of a random model of two layers; its answer is what the model says."""
    config = tiny_config(family, **changes)
    weights = tiny_weights(config)
    manifest = manifest_of(config, weights)
    tokens = [(7 * i + 3) % config.vocabulary_size for i in range(PROMPT)]
    rows: Array | None = None
    while True:
        count = len(tokens)
        whole = HopProgram(manifest, LayerRange(0, 2), PROMPT, count, sampling)
        material = Material(whole, weights, (*tokens, 0))
        holdings = Holdings(material, WeightTrees(weights))
        winner = holdings.trace(Cell(3, count - 1)).values["winner"]
        tokens.append((1 << 20) - 1 - (int(winner[0]) & ((1 << 20) - 1)))
        if count == positions:
            rows = holdings.grid.kept[layers[0], "row"] if layers[0] else None
            break
    span = LayerRange(*layers)
    hop = HopProgram(manifest, span, PROMPT, positions, sampling)
    block = BlockWeights(
        layers=span,
        layer={i: weights.layer[i] for i in range(*layers)},
        embedding=weights.embedding if span.start == 0 else None,
        final_norm=weights.final_norm if span.stop == 2 else None,
        head=weights.head if span.stop == 2 else None,
    )
    material = Material(hop, block, tuple(tokens), rows)
    answer = tuple(tokens[PROMPT:])
    request = GenerationRequest(manifest.model_id, tuple(tokens[:PROMPT]), len(answer), sampling)
    return Answer(material, Holdings(material, WeightTrees(block)), request, answer)


Lie = Callable[[Mapping[str, Array]], dict[str, Array]]
"""Tensors of one cell that a liar puts in the place of true ones."""


def one_element(tensor: str, i: int, delta: int = 1) -> Lie:
    def lie(honest: Mapping[str, Array]) -> dict[str, Array]:
        values = honest[tensor].copy()
        values[i] += delta
        return {tensor: values}

    return lie


def lying_holdings(answer: Answer, cell: Cell, lie: Lie) -> Holdings:
    """What a liar can show that computes one cell with a lie in it and goes on from there."""
    return lying.lying_holdings(answer.honest, cell, lie)


class Splitter(Defender):
    """A liar that splits sums so that the parts make what it asserted."""

    def totals(self, game: Game) -> list[Total]:
        parts = super().totals(game)
        inquiry = game.inquiry
        assert inquiry is not None
        step = inquiry.step
        wanted = inquiry.asserted
        if wanted is None:
            wanted = _total_for(inquiry, step.combine(parts), self.holdings, game)
        whole = step.combine(parts)
        if wanted is None or wanted == whole:
            return parts
        middle = len(parts) // 2
        if step.maximum:
            parts = [tuple(map(min, part, wanted)) for part in parts]
            parts[middle] = wanted
        else:
            moved = zip(parts[middle], wanted, whole, strict=True)
            parts[middle] = tuple(part + want - have for part, want, have in moved)
        return parts


_RANGES = {
    "shift": (0, 1 << 61),
    "norm_inverse": (0, 1 << 44),
    "mass": (0, 1 << 47),
    "score": (-(1 << 40), 1 << 40),
}


def _total_for(inquiry: Inquiry, true: Total, holdings: Holdings, game: Game) -> Total | None:
    """A total from which the asserted value follows."""
    step, i, value = inquiry.step, inquiry.element, inquiry.value
    fixed = holdings.values(game.layout, game.cell_in_dispute, step.fixed(i))
    if step.kind == "top_k":
        return (step.k - 1, 1)  # type: ignore[attr-defined]
    if step.kind == "nucleus":
        return (0, 1 << 40, 0, 1, 0)

    def gives(total: int) -> int:
        return step.finish(i, value, (total,), fixed)

    if step.maximum and step.kind != "shift":
        return (value,)
    low, high = _RANGES.get(step.kind, (-(1 << 61), 1 << 61))
    rising = step.kind != "norm_inverse"
    while low < high:
        middle = (low + high) // 2
        if (gives(middle) >= value) if rising else (gives(middle) <= value):
            high = middle
        else:
            low = middle + 1
    return (low,) if gives(low) == value else None


@dataclass(frozen=True)
class Outcome:
    conviction: Conviction
    sent: tuple[bytes, ...]
    game: Game

    @property
    def moves(self) -> int:
        return len(self.sent)

    @property
    def largest(self) -> int:
        """Bytes of the longest move."""
        return max(len(move) for move in self.sent)


def play(game: Game, defender: Defender, challenger: Challenger) -> Outcome:
    """Let both speak in turn until somebody is convicted."""
    sent: list[bytes] = []
    while game.conviction is None:
        sent.append((defender if game.turn == "defender" else challenger).move(game))
        assert game.receive(sent[-1], 0)
    return Outcome(game.conviction, tuple(sent), game)


def caught(
    answer: Answer, cell: Cell, lie: Lie, target: Target | None, defender: type[Defender] = Defender
) -> Outcome:
    """A hop that lies in a cell against an honest challenger."""
    liar = lying_holdings(answer, cell, lie)
    parties = defender(HOP, liar), Challenger(CHALLENGER, answer.honest, target)
    return play(answer.game(), *parties)


def changed(hashes: list[bytes], position: int) -> list[bytes]:
    """Row hashes with another one at a position."""
    return [bytes(32) if p == position else h for p, h in enumerate(hashes)]


def evaluate(holdings: Holdings, game: Game, cell: Cell, tensor: str, i: int, value: int) -> int:
    """An element as its step type computes it, from the other tensors."""
    step = holdings.hop.program(cell).tensor(tensor).step
    assert step is not None
    fixed = holdings.values(game.layout, cell, step.fixed(i))
    length = step.length(i)
    total = holdings.total(game.layout, cell, step, i, value, (0, length)) if length else ()
    return step.finish(i, value, total, fixed)


def elements(size: int, most: int, seed: int) -> list[int]:
    """All elements of a tensor, or some."""
    if size <= most:
        return list(range(size))
    drawn = np.random.default_rng(seed).choice(size, most - 2, replace=False)
    return sorted({0, size - 1, *map(int, drawn)})
