"""What a light audit costs: the client that has no weights, and the node that opens its trace.

    python -m bench.light

Three tables: the default model in one hop, audited by a process of its own that holds the secrets
and nothing else; one layer of a model of 4,096 hidden units with random weights, where recomputing
the cell's matrix products is compared with checking them; and Freivalds' check of single matrices.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.machine import median_ms, publish
from unisono.models.catalog import DEFAULT_MODEL
from unisono.models.config import DecoderConfig, RopeConfig
from unisono.models.decoder import Draw, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.models.store import ModelStore, StoredModel
from unisono.models.tiles import tensor_root
from unisono.models.weights import BlockWeights, LayerWeights
from unisono.native import operators
from unisono.numerics import linear, tensors
from unisono.observe.machine import resident_bytes
from unisono.types import GenerationRequest, LayerRange, ModelId, NodeId, SessionId
from unisono.verification.light import messages
from unisono.verification.light.audit import LightAudit
from unisono.verification.light.checks import Checks
from unisono.verification.light.draw import Budget
from unisono.verification.light.field import (
    input_product,
    limbs,
    output_product,
    secret_vector,
    weights_product,
)
from unisono.verification.light.making import build
from unisono.verification.light.messages import CellName, TraceCommitment
from unisono.verification.light.responder import Responder
from unisono.verification.light.secrets import Claimed, Secrets
from unisono.verification.light.steps import PRODUCTS
from unisono.verification.light.trace import Trace
from unisono.verification.receipt import VERSION, Receipt, from_json, to_json
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.identity import Identity

POSITIONS = 256
PROMPT = 224
KEY = Identity(b"benchmark node, not a secret key")
Row = dict[str, object]

LARGE = DecoderConfig(
    architecture="llama",
    vocabulary_size=32,
    hidden_size=4096,
    layer_count=1,
    head_count=32,
    kv_head_count=8,
    head_size=128,
    mlp_size=14336,
    context_length=8192,
    norm_epsilon="0.00001",
    activation="silu",
    windows=(0,),
    rope=RopeConfig(theta="500000"),
    local_rope=RopeConfig(theta="500000"),
    query_scalar=128,
)
"""A layer of Llama 3 8B."""


def receipt_of(trace: Trace, model: ModelId, tokens: list[int], prompt: int) -> Receipt:
    claim = HopClaim(
        session=SessionId("00" * 16),
        request="00" * 32,
        gateway=NodeId("00" * 32),
        model=model,
        node=KEY.node_id,
        hop=0,
        layers=trace.layers,
        positions=trace.positions,
        rows_in=trace.rows_in,
        rows_out=trace.rows_out,
        out_tags=b"",
        tokens=tokens_root(tokens[prompt:]),
        epoch=0,
    ).signed_by(KEY)
    return Receipt(
        version=VERSION,
        id="00" * 16,
        request=GenerationRequest(model, tuple(tokens[:prompt]), len(tokens) - prompt),
        tokens=tuple(tokens[prompt:]),
        finish_reason="length",
        hops=(claim,),
        gateway=NodeId("00" * 32),
        created=0,
        elapsed_us=0,
        first_token_us=0,
        attempts=1,
    )


def client(folder: Path) -> None:
    """The audit in a process that has secrets and a receipt; it talks through its pipes."""
    torch.set_num_threads(1)
    before = resident_bytes()
    start = time.perf_counter()
    secrets = Secrets.load(folder / "secrets")
    loaded = time.perf_counter() - start
    receipt = from_json((folder / "receipt").read_bytes())
    rows: list[dict[str, float]] = []
    for kind in ("column", "column", "samples", "token"):
        budget = {
            "column": Budget(1, 0, 0, 0),
            "samples": Budget(0, 1, 16, 0),
            "token": Budget(0, 0, 0, 1),
        }[kind]
        audit = LightAudit(secrets, receipt, 0, budget)
        commitment = (folder / "commitment").read_bytes()
        (challenge,) = audit.challenges(msgspec.msgpack.decode(commitment, type=TraceCommitment))
        print(msgspec.msgpack.encode(challenge).hex(), flush=True)
        answer = Path(sys.stdin.readline().strip()).read_bytes()
        start = time.perf_counter()
        verdict = audit.judge(challenge, answer)
        taken = time.perf_counter() - start
        assert verdict.verdict == "VALID", verdict.message
        counts = len(challenge.cells), len(challenge.samples), len(challenge.heads)
        rows.append({"ms": 1e3 * taken, "bytes": len(answer), "count": sum(counts)})
    held = resident_bytes() - before
    print(json.dumps({"rows": rows, "load ms": 1e3 * loaded, "memory": held}), flush=True)


def default_model(model: StoredModel) -> list[Row]:
    """Secrets, a trace of 256 positions, and what a client without weights needs for it."""
    start = time.perf_counter()
    secrets = build(model)
    built = time.perf_counter() - start
    config = model.manifest.config
    tokens = [int(t) for t in np.random.default_rng(0).integers(5, 200_000, PROMPT)]
    whole = LayerRange(0, model.layer_count)
    weights = load_block(model, whole)
    decoder = make_decoder(config, weights)
    cache = decoder.new_cache(POSITIONS + 1)
    sampling = GenerationRequest(model.id, (), 1).sampling
    rows = decoder.forward(decoder.embed(tokens), [Segment(cache, 0, PROMPT)])
    while len(tokens) <= POSITIONS:
        draw = Draw(sampling, np.array(tokens, np.int32), PROMPT)
        tokens.append(decoder.choose(rows, [(len(rows) - 1, len(tokens), draw)])[0].token)
        if len(tokens) <= POSITIONS:
            place = Segment(cache, len(tokens) - 1, 1)
            rows = decoder.forward(decoder.embed(tokens[-1:]), [place])
    decoder.close()
    start = time.perf_counter()
    trace = Trace(config, weights, tokens[:-1])
    regenerated = time.perf_counter() - start
    receipt = receipt_of(trace, model.id, tokens, PROMPT)
    responder = Responder(receipt.hops[0], trace, KEY)
    opened: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        secrets.save(folder / "secrets")
        (folder / "receipt").write_bytes(to_json(receipt))
        (folder / "commitment").write_bytes(msgspec.msgpack.encode(responder.commit()))
        command = [sys.executable, "-m", "bench.light", "--client", name]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            while not (line := child.stdout.readline()).startswith("{"):
                assert line, "the client ended early"
                challenge = messages.decode(bytes.fromhex(line.strip()), messages.Challenge)
                start = time.perf_counter()
                answer = responder.respond(challenge)
                opened.append(1e3 * (time.perf_counter() - start))
                (folder / "answer").write_bytes(answer)
                child.stdin.write(f"{folder / 'answer'}\n")
                child.stdin.flush()
            found = json.loads(line)
        size = (folder / "secrets").stat().st_size
    matrices = len(secrets.sums)
    lines: list[Row] = [
        {"what": "making the secrets", "ms": 1e3 * built, "bytes": size},
        {
            "what": f"secrets of each of {matrices} matrices",
            "bytes": sum(8 * len(s) for s in secrets.sums.values()) // matrices,
        },
        {"what": "loading the secrets", "ms": found["load ms"]},
        {"what": "client memory: secrets and four audits", "bytes": found["memory"]},
        {"what": f"node: regenerating {POSITIONS} positions", "ms": 1e3 * regenerated},
    ]
    names = ("first column, per cell", "column, per cell", "samples, each", "a token's logits")
    for label, row, took in zip(names, found["rows"], opened, strict=True):
        count = row["count"]
        lines.append(
            {
                "what": f"client: {label}",
                "ms": row["ms"] / count,
                "bytes": int(row["bytes"] / count),
                "node ms": took / count,
            }
        )
    return lines


class Count(TorchDispatchMode):
    """Counts elements that operators write, and the multiplications of products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                inner = args[0].shape[-1] if "mm" in func.__name__ else 1
                self.operations += tensor.numel() * inner
        return out


def random_matrix(draw: np.random.Generator, outputs: int, inputs: int) -> tensors.Matrix:
    values = draw.integers(-127, 128, (outputs, inputs), dtype=np.int8)
    multipliers = draw.integers(9000, 65536, (outputs, inputs // 32), dtype=np.uint16)
    return tensors.Matrix(values, multipliers, -28)


def large_layer() -> list[Row]:
    """One cell of a layer of 4,096 hidden units: its products, and their check."""
    draw = np.random.default_rng(0)
    c = LARGE
    shapes = {
        "query": (4096, 4096),
        "key": (1024, 4096),
        "value": (1024, 4096),
        "output": (4096, 4096),
        "gate": (c.mlp_size, 4096),
        "up": (c.mlp_size, 4096),
        "down": (4096, c.mlp_size),
    }
    norm = tensors.Vector(draw.integers(1 << 18, 1 << 20, 4096), -19)
    made = {name: random_matrix(draw, *shape) for name, shape in shapes.items()}
    layer = LayerWeights(attention_norm=norm, mlp_norm=norm, **made)
    weights = BlockWeights(LayerRange(0, 1), {0: layer}, random_matrix(draw, 32, 4096))
    start = time.perf_counter()
    secrets = Secrets(ModelId("00" * 32), c, bytes(32), bytes(32), {}, {}, {})
    for part in fields(layer):
        tensor = getattr(layer, part.name)
        if tensor is not None:
            name = f"layers.0.{part.name}"
            secrets.exponents[name] = tensor.exponent
            if isinstance(tensor, tensors.Vector):
                secrets.vectors[name] = tensor.values
            else:
                vector = secret_vector(secrets.seed, name, tensor.outputs)
                secrets.sums[name] = weights_product(vector, tensor)
    built = time.perf_counter() - start
    secrets.exponents["embedding"] = -28
    assert weights.embedding is not None
    embedding = weights.embedding
    root = tensor_root([embedding.values, embedding.multipliers])
    secrets.embedding_root = bytes.fromhex(root)

    tokens = [int(t) for t in draw.integers(0, 32, 33)]
    trace = Trace(c, weights, tokens[:-1])
    receipt = receipt_of(trace, secrets.model, tokens, 32)
    cell = CellName(0, 31)
    opened = trace.open_cell(cell)
    size = len(msgspec.msgpack.encode(opened))
    checks = Checks(secrets, receipt.hops[0], bytes.fromhex(trace.root), tokens)

    inputs = {n: draw.integers(-32767, 32768, (1, s[1])) for n, s in shapes.items()}
    held = {n: operators.HeldMatrix(m.values, m.multipliers) for n, m in made.items()}
    outputs = {n: held[n].product(inputs[n]) for n in shapes}
    claimed = [Claimed(f"layers.0.{n}", inputs[n][0], outputs[n][0]) for n in PRODUCTS]
    on_torch = {n: linear.Matrix.on("cpu", m) for n, m in made.items()}

    def products() -> None:
        for name in PRODUCTS:
            held[name].product(inputs[name])

    def torch_products() -> None:
        for name in PRODUCTS:
            linear.product(linear.from_numpy(inputs[name]), on_torch[name])

    def checked(fresh: bool) -> None:
        if fresh:
            secrets._expanded.clear()  # pyright: ignore[reportPrivateUsage]
        assert secrets.wrong_product(claimed) is None

    compiled, check, first, whole = median_ms(
        products, lambda: checked(False), lambda: checked(True), lambda: checks.cell(cell, opened)
    )
    (slow,) = median_ms(torch_products, repeat=3)
    with Count() as counted:
        checks.cell(cell, opened)
    weights_count = sum(a * b for a, b in shapes.values())
    # by limbs: three by three for an output, three for an input
    operations = sum(9 * a + 3 * b for a, b in shapes.values())
    times = {"× compiled": lambda ms: compiled / ms, "× torch": lambda ms: slow / ms}

    def line(what: str, ms: float, count: int, **more: object) -> Row:
        ratios = {name: ratio(ms) for name, ratio in times.items()}
        return {
            "what": what,
            "ms": ms,
            "operations": count,
            "× operations": weights_count / count,
            **ratios,
            **more,
        }

    sums = sum(8 * len(s) for s in secrets.sums.values())
    return [
        line("products, compiled kernels", compiled, weights_count),
        line("products, torch float64", slow, weights_count),
        line("check, vectors at hand", check, operations),
        line("check, vectors from the seed", first, operations),
        line("whole cell at position 31", whole, operations + counted.operations, bytes=size),
        {"what": "making the secrets", "ms": 1e3 * built, "bytes": sums},
    ]


def single_matrices() -> list[Row]:
    """Freivalds' check of one matrix against its product with one row."""
    draw = np.random.default_rng(1)
    lines: list[Row] = []
    for outputs, inputs in ((640, 640), (2048, 640), (4096, 4096), (14336, 4096), (4096, 14336)):
        matrix = random_matrix(draw, outputs, inputs)
        held = operators.HeldMatrix(matrix.values, matrix.multipliers)
        x = draw.integers(-32767, 32768, (1, inputs))
        y = held.product(x)
        vector = secret_vector(bytes(32), "x", outputs)
        secret, sums = limbs(vector), limbs(weights_product(vector, matrix))
        product, check = median_ms(
            lambda h=held, x=x: h.product(x),
            lambda r=secret, s=sums, x=x[0], y=y[0]: output_product(r, y) == input_product(s, x),
        )
        lines.append(
            {
                "matrix": f"{outputs} x {inputs}",
                "product ms": product,
                "check ms": check,
                "× time": product / check,
                "× multiplications": outputs * inputs / (9 * outputs + 3 * inputs),
                "secrets bytes": 8 * inputs,
            }
        )
    return lines


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    given: Any = arguments.parse_args()
    if given.client:
        client(given.client)
        return
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    publish("light-matrices", single_matrices())
    publish("light-layer", large_layer())
    publish("light-default", default_model(ModelStore().ensure(DEFAULT_MODEL)))


if __name__ == "__main__":
    main()
