"""A dispute about the default model: what it takes to regenerate, how many moves, how many bytes.

    python -m bench.fraud [POSITIONS…]

Per number of positions, on all layers in one hop: seconds until a party has the grid (a prefill,
one layer at a time, and its hashes), until it has the trace of one layer's cell and of the last
cell with its choice of a token; then, for a liar that defends each of its lies by splitting sums
as the lie needs, the most moves, the longest move, and the time that both parties and the
referee need together. Weights are in memory; the trees of their tiles are made once (first line).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.verification.fraud.dispute import (
    CHALLENGER,
    EVERYTHING,
    HOP,
    Answer,
    Splitter,
    lying_holdings,
    one_element,
    play,
)

from bench.machine import publish
from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.config import tensor_shapes
from unisono.models.loading import load_block
from unisono.models.store import ModelStore
from unisono.models.tokenizer import Tokenizer
from unisono.types import GenerationRequest, LayerRange
from unisono.verification.fraud.holdings import Holdings, WeightTrees
from unisono.verification.fraud.parties import Challenger
from unisono.verification.fraud.program import HopProgram
from unisono.verification.fraud.steps import Cell
from unisono.verification.fraud.trace import Grid, Material, cell_trace, compute_kept
from unisono.verification.fraud.transcript import VERSION, Transcript, to_json

SIZES = (128, 512, 1024)
ANSWER = 8
LIES = ("scores", "mixed", "down", "row", "logits", "nucleus.bound", "noisy", "winner")
PROSE = (Path(__file__).parent.parent / "LICENSE").read_text()


def main() -> None:
    sizes = [int(x) for x in sys.argv[1:]] or list(SIZES)
    model = ModelStore().ensure(DEFAULT_MODEL)
    layers = LayerRange(0, model.layer_count)
    weights = load_block(model, layers)
    started = time.perf_counter()
    trees = WeightTrees(weights)
    for name in tensor_shapes(model.manifest.config):
        trees.of(name)
    trees_s = time.perf_counter() - started
    print(f"trees over the tiles of all weights: {trees_s:.2f} s")
    tokens = Tokenizer.from_files(model.tokenizer_files()).encode(PROSE)
    rows: list[dict[str, object]] = []
    for positions in sizes:
        sequence = tuple(tokens[: positions + 1])
        prompt = positions + 1 - ANSWER
        hop = HopProgram(model.manifest, layers, prompt, positions, EVERYTHING)
        rows.append(_measure(Material(hop, weights, sequence), trees, positions))
    publish("fraud", rows, trees_seconds=trees_s, lies=list(LIES))


def _measure(material: Material, trees: WeightTrees, positions: int) -> dict[str, object]:
    hop = material.program
    started = time.perf_counter()
    kept = compute_kept(material)
    computed = time.perf_counter()
    grid = Grid(hop, kept)
    hashed = time.perf_counter()
    holdings = Holdings(material, trees, None, grid)
    prompt, sequence = hop.prompt, material.tokens
    answer = sequence[prompt:]
    request = GenerationRequest(hop.manifest.model_id, sequence[:prompt], len(answer), hop.sampling)
    whole = Answer(material, holdings, request, answer)
    row: dict[str, object] = {
        "positions": positions,
        "rows, keys, values s": computed - started,
        "hashes s": hashed - computed,
    }
    cells = {"layer": Cell(6, positions - 2), "exit": Cell(hop.stages - 1, positions - 2)}
    for name, cell in cells.items():
        cell_trace(material, grid, cell)
        started = time.perf_counter()
        trace = cell_trace(material, grid, cell)
        row[f"trace of {name} s"] = time.perf_counter() - started
        size = sum(t.size * int(t.format[1]) for t in trace.program.tensors)
        row[f"{name} MB"] = size / 1e6
    moves = largest = total = 0
    slowest, file = 0.0, 0
    for tensor in LIES:
        place = next(c for c in cells.values() if tensor in hop.program(c).index)
        i = hop.program(place).tensor(tensor).size // 2
        liar = lying_holdings(whole, place, one_element(tensor, i))
        holdings.trace(place)
        started = time.perf_counter()
        outcome = play(
            whole.game(),
            Splitter(HOP, liar),
            Challenger(CHALLENGER, holdings, (place, tensor)),
        )
        slowest = max(slowest, time.perf_counter() - started)
        if outcome.conviction.node != HOP.node_id:
            raise SystemExit(f"the liar was not convicted: {outcome.conviction}")
        game = outcome.game
        sent = [len(move) for move in outcome.sent]
        moves, largest = max(moves, len(sent)), max(largest, *sent)
        total = max(total, sum(sent))
        transcript = Transcript(VERSION, game.subject, game.challenge, tuple(outcome.sent), ())
        file = max(file, len(to_json(transcript)))
    row |= {
        "most moves": moves,
        "longest move B": largest,
        "all moves B": total,
        "game s": slowest,
        "file KB": file / 1e3,
    }
    return row


if __name__ == "__main__":
    main()
