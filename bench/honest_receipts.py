"""Honest receipts, made and checked by every form of the kernels that this machine runs.

Networks with splits, batches and thread counts of their own make them; other processes, with
kernels built for other processors, replay them. `bench.adversaries` runs this beside the attacks,
in a process of its own:

    python -m bench.honest_receipts all STORE MODEL COUNT OUT
    python -m bench.honest_receipts replay FORM STORE RECEIPTS OUT
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from itertools import cycle
from pathlib import Path
from typing import Any, TypedDict

import torch
from tests.scenarios.network import weights
from tests.verification.adversaries.trial import Served, serve

from unisono.models.config import DecoderConfig
from unisono.models.decoder import Decoder, make_decoder
from unisono.models.store import ModelStore, StoredModel
from unisono.models.torch_decoder import TorchDecoder
from unisono.models.weights import BlockWeights
from unisono.native import library, operators
from unisono.routing.placement import even_blocks
from unisono.types import Q16, GenerationRequest, LayerRange, ModelId, Sampling
from unisono.verification import replay
from unisono.verification.form import check_form
from unisono.verification.receipt import Receipt, from_json, to_json

ROOT = Path(__file__).parents[1]
ARCHITECTURES = {"portable": "x86-64", "avx2": "x86-64-v3", "vnni": "", "tiles": "", "torch": ""}
"""Form of the kernels → processor to build for; empty: as installed."""
SHARES = {"tiles": 0.3, "vnni": 0.28, "avx2": 0.2, "portable": 0.2, "torch": 0.02}
"""Of the receipts that each form replays; torch is slow on small models."""

NOT_HERE = 3
"""Exit status of a process that lacks a form."""


def requests(
    model: StoredModel, first: int, count: int, tokens: int = 8
) -> list[GenerationRequest]:
    """Prompts and settings of many kinds, none of them twice."""
    size = model.manifest.config.vocabulary_size
    samplings = [
        Sampling(),
        Sampling(temperature=Q16, seed=first),
        Sampling(temperature=Q16, top_k=40, top_p=60000, min_p=300, seed=first + 1),
        Sampling(
            temperature=Q16,
            repetition_penalty=80000,
            presence_penalty=20000,
            frequency_penalty=9000,
            logit_bias=((3, 90000), (17, -200000)),
            seed=first,
        ),
    ]
    found: list[GenerationRequest] = []
    for i in range(first, first + count):
        prompt = tuple((i * 31 + 7 * j * j + (i * j) % 13) % size for j in range(3 + i % 22))
        found.append(GenerationRequest(model.id, prompt, 1 + (i * 7) % tokens, samplings[i % 4]))
    return found


class Honest(TypedDict):
    """What a run leaves for whoever started it."""

    receipts: int
    made: list[dict[str, object]]
    checks: list[dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """How a network of honest nodes is put together."""

    blocks: int | tuple[LayerRange, ...]
    together: int
    threads: tuple[int, ...]
    """Of the nodes, one after another, again and again."""
    torch_hops: tuple[int, ...] = ()

    @property
    def hops(self) -> int:
        return self.blocks if isinstance(self.blocks, int) else len(self.blocks)

    def make(self) -> dict[int, Any]:
        """Decoders by hop."""

        def honest(threads: int, kind: type[Decoder] | None) -> Any:
            def made(model: StoredModel, layers: LayerRange, kv_bytes: int) -> Decoder:
                config, held = model.manifest.config, weights(model, layers)
                if kind is not None:
                    return TorchDecoder(config, held, threads=1, kv_bytes=kv_bytes)
                return make_decoder(config, held, threads=threads, kv_bytes=kv_bytes)

            return made

        threads = cycle(self.threads)
        return {
            hop: honest(next(threads), TorchDecoder if hop in self.torch_hops else None)
            for hop in range(self.hops)
        }


def settings(layers: int) -> list[Setting]:
    """Splits, batch sizes and thread counts."""
    uneven = (LayerRange(0, 1), LayerRange(1, layers))
    return [
        Setting(1, 1, (1,)),
        Setting(1, 32, (2,)),
        Setting(1, 16, (3,)),
        Setting(2, 16, (1, 2)),
        Setting(uneven, 8, (2, 1)),
        Setting(3, 16, (1, 2, 3)),
        Setting(min(4, layers), 32, (1,)),
        Setting(2, 16, (1,), torch_hops=(0,)),
        Setting(2, 16, (2,), torch_hops=(1,)),
    ]


async def make(model: StoredModel, count: int) -> tuple[list[Served], list[dict[str, object]]]:
    """So many honest answers over all settings, with one row per setting."""
    kinds = settings(model.layer_count)
    # torch takes longer
    parts = [1 if kind.torch_hops else 4 for kind in kinds]
    found: list[Served] = []
    rows: list[dict[str, object]] = []
    for number, (kind, part) in enumerate(zip(kinds, parts, strict=True)):
        rest = count - len(found)
        share = rest if number == len(kinds) - 1 else count * part // sum(parts)
        start = time.perf_counter()
        tiles = number % 2 == 0
        if library.load() is not None:
            operators.enable_tiles(tiles)
        blocks = (
            kind.blocks
            if isinstance(kind.blocks, tuple)
            else even_blocks(model.layer_count, kind.blocks)
        )
        made = await serve(
            model,
            requests(model, len(found), share),
            blocks=blocks,
            together=kind.together,
            make=kind.make(),
            record=False,
        )
        found += made
        seconds = time.perf_counter() - start
        rows.append(
            {
                "split": "+".join(str(block.count) for block in blocks),
                "side by side": kind.together,
                "threads": "/".join(map(str, kind.threads)),
                "torch hops": len(kind.torch_hops),
                "tiles": tiles,
                "receipts": share,
                "ms each": 1e3 * seconds / share,
            }
        )
    if library.load() is not None:
        operators.enable_tiles(True)
    return found, rows


def check(model: StoredModel, store: ModelStore, served: Sequence[Served]) -> list[dict[str, Any]]:
    """Check form here, and replay by every form of the kernels, each its share; one row each with
    the accusations, of which there must be none."""
    start = time.perf_counter()
    wrong = sum(check_form(s.receipt, model) is not None for s in served)
    rows: list[dict[str, Any]] = [
        {
            "check": "form",
            "receipts": len(served),
            "accusations": wrong,
            "ms each": 1e3 * (time.perf_counter() - start) / len(served),
        }
    ]
    at = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form, share in SHARES.items():
            # every setting meets every form: receipts were made setting by setting
            count = max(1, round(share * len(served)))
            some = [served[(at + 7919 * i) % len(served)].receipt for i in range(count)]
            at += 7919 * count
            rows.append(_elsewhere(form, some, store, folder))
    return rows


def _elsewhere(
    form: str, receipts: list[Receipt], store: ModelStore, folder: Path
) -> dict[str, Any]:
    file, out = folder / f"{form}.receipts", folder / f"{form}.json"
    file.write_bytes(b"\n".join(to_json(r) for r in receipts))
    environment = dict(os.environ)
    if form == "torch":
        environment["UNISONO_NATIVE"] = "0"
    command = [sys.executable, "-m", "bench.honest_receipts", "replay", form]
    command += [str(store.root), str(file), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode not in (0, NOT_HERE):
        raise SystemExit(f"the replay by '{form}' failed")
    if done.returncode == NOT_HERE:
        return {"check": f"replay, {form}: not on this machine", "receipts": 0, "accusations": 0}
    return json.loads(out.read_text())


def built_for(architecture: str, folder: Path) -> Path:
    """The kernels as a compiler builds them for another processor of this kind."""
    made = folder / f"kernels-{architecture}.so"
    sources = sorted(glob(str(ROOT / "src/unisono/native/cpp/*.cpp")))
    flags = ["-std=c++17", "-O3", "-fwrapv", "-pthread", "-w", "-Wno-psabi", "-shared", "-fPIC"]
    command = ["g++", *flags, f"-march={architecture}", *sources, "-o", str(made)]
    subprocess.run(command, check=True)
    return made


def replay_here(form: str, models: Path, file: Path, out: Path) -> None:
    """Replay receipts with one form of the kernels; the process is new."""
    architecture = ARCHITECTURES[form]
    with tempfile.TemporaryDirectory() as folder:
        if architecture:
            made = built_for(architecture, Path(folder))
            library.path = lambda: made
        torch.set_num_threads(1)  # they wait for each other where something else runs
        if form == "vnni":
            operators.enable_tiles(False)
        runs = library.kernels() if form != "vnni" else "vnni"
        if runs != form:
            print(f"the kernels here are '{runs}', not '{form}'")
            raise SystemExit(NOT_HERE)
        _keep_decoders()
        store, wrong = ModelStore(models), 0
        receipts = [from_json(line) for line in file.read_bytes().split(b"\n")]
        start = time.perf_counter()
        for receipt in receipts:
            wrong += replay.verify(receipt, store).verdict != "VALID"
        seconds = time.perf_counter() - start
    row = {
        "check": f"replay, {form}",
        "receipts": len(receipts),
        "accusations": wrong,
        "ms each": 1e3 * seconds / len(receipts),
    }
    out.write_text(json.dumps(row))


def _keep_decoders() -> None:
    """Let replays read the same weights, and make the same decoders, only once."""
    blocks: dict[LayerRange, BlockWeights] = {}
    decoders: dict[LayerRange, Decoder] = {}
    read = replay.load_block

    def block(model: StoredModel, layers: LayerRange) -> BlockWeights:
        if layers not in blocks:
            blocks[layers] = read(model, layers)
        return blocks[layers]

    def decoder(config: DecoderConfig, held: BlockWeights) -> Decoder:
        if held.layers not in decoders:
            decoders[held.layers] = made = make_decoder(config, held)
            made.close = lambda: None  # type: ignore[method-assign]
        return decoders[held.layers]

    replay.load_block, replay.make_decoder = block, decoder


def everything(models: Path, name: str, count: int, out: Path) -> None:
    """Make, check, and write what was found."""
    torch.set_num_threads(1)
    store = ModelStore(models)
    model = store.get(ModelId(name))
    served, rows = asyncio.run(make(model, count))
    found: Honest = {"receipts": len(served), "made": rows, "checks": check(model, store, served)}
    out.write_text(json.dumps(found))


def main() -> None:
    """One of the two commands above."""
    match sys.argv[1:]:
        case ["all", models, name, count, out]:
            everything(Path(models), name, int(count), Path(out))
        case ["replay", form, models, receipts, out]:
            replay_here(form, Path(models), Path(receipts), Path(out))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
