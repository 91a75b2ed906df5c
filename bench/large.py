"""Converting a model of 3 billion parameters, and what it takes.

    python -m bench.large [FOLDER]

Random weights in the shape of Llama 3.2 3B are written to FOLDER/large-source (bfloat16, several
shards; kept for the next run) and converted to FOLDER/large-store; without FOLDER, both lie in a
temporary one. Some 10 GB of disk are needed, and said to be missing before anything is written.
"""

from __future__ import annotations

import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from unisono.models.safetensors import INDEX_FILE
from unisono.models.safetensors_file import TensorWriter
from unisono.models.store import ModelStore
from unisono.types import ModelId

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_SIZE, MLP, VOCABULARY = 3072, 28, 24, 8, 128, 8192, 128256
LAYERS_PER_SHARD = 7
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_SIZE,
    "intermediate_size": MLP,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "eos_token_id": VOCABULARY - 1,
}
RANDOM_ELEMENTS = (1 << 22) - 3
"""Random numbers that all matrices are cut from: no multiple of any row, so that rows differ."""

Shapes = dict[str, tuple[int, ...]]


def shards() -> dict[str, Shapes]:
    """File name → tensors under the names of Hugging Face's checkpoints, with their shapes."""
    parts: list[Shapes] = [{"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}]
    queries, keys = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    layer: Shapes = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (queries, HIDDEN),
        "self_attn.k_proj": (keys, HIDDEN),
        "self_attn.v_proj": (keys, HIDDEN),
        "self_attn.o_proj": (HIDDEN, queries),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (MLP, HIDDEN),
        "mlp.up_proj": (MLP, HIDDEN),
        "mlp.down_proj": (HIDDEN, MLP),
    }
    for first in range(0, LAYERS, LAYERS_PER_SHARD):
        here = range(first, min(first + LAYERS_PER_SHARD, LAYERS))
        parts.append({f"model.layers.{i}.{n}.weight": s for i in here for n, s in layer.items()})
    parts[-1]["model.norm.weight"] = (HIDDEN,)
    return {f"model-{i:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts, 1)}


def parameters() -> int:
    """Weights of the model."""
    return sum(math.prod(shape) for part in shards().values() for shape in part.values())


def make_source(folder: Path) -> None:
    """Write the checkpoint, the same at each call; nothing if it is there already."""
    index = folder / INDEX_FILE
    if index.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    floats = random.standard_normal(RANDOM_ELEMENTS, np.float32) * np.float32(0.02)
    block = (floats.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16, rounded towards 0
    for file, shapes in shards().items():
        with TensorWriter(folder / file, {n: ("BF16", s) for n, s in shapes.items()}) as writer:
            for name, shape in shapes.items():
                _fill(writer, name, shape, block, int(random.integers(RANDOM_ELEMENTS)))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    # Last, so that a checkpoint that was left half written is written again.
    places = {name: file for file, shapes in shards().items() for name in shapes}
    index.write_text(json.dumps({"weight_map": places}))


def _fill(
    writer: TensorWriter, name: str, shape: tuple[int, ...], block: NDArray[np.uint16], at: int
) -> None:
    """A norm with ones; a matrix with the block over and over, beginning at element `at`."""
    left = math.prod(shape)
    if len(shape) == 1:
        writer.write(name, np.full(left, 0x3F80, np.uint16))
        return
    while left:
        piece = block[at : at + left]
        writer.write(name, piece)
        left, at = left - len(piece), 0


def require_space(folder: Path) -> None:
    """Stop if the disk cannot take what is not there yet of source and converted model."""
    made = (folder / "large-source" / INDEX_FILE).exists()
    needed = parameters() * ((0 if made else 2) + 17 / 16) / 1e9 + 0.1
    free = shutil.disk_usage(folder).free / 1e9
    if free < needed:
        sys.exit(
            f"{folder} has {free:.1f} GB free and {needed:.1f} GB are needed: free"
            f" {needed - free:.1f} GB, or name a folder on another disk"
        )


def convert(source: Path, store: Path) -> dict[str, Any]:
    """Convert in a process of its own: model id, seconds and peak MiB."""
    command = [sys.executable, "-m", "bench.large", "--convert", str(source), str(store)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def _convert_here(source: str, store: str) -> None:
    start = time.perf_counter()
    model = ModelStore(Path(store)).ensure(source)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_mib = peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    print(json.dumps({"model": model.id, "seconds": seconds, "peak MiB": peak_mib}))


def main(folder: Path) -> None:
    """Make, convert, and publish the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    source, store = folder / "large-source", folder / "large-store"
    shutil.rmtree(store, ignore_errors=True)
    require_space(folder)
    print(f"writing {parameters() / 1e9:.2f} billion weights to {source}", flush=True)
    make_source(source)
    print("converting", flush=True)
    converted = convert(source, store)
    model_id = ModelId(converted.pop("model"))
    rows = [{"what": "conversion", **converted}]
    print(f"model {model_id} in {store}")
    half = LAYERS // 2
    for start, stop in ((0, LAYERS), (0, half), (half, LAYERS)):
        rows.append(measure(model_id, store, start, stop))

    # Late: it loads torch, and a child's peak includes the memory of the process it is split from.
    from bench.machine import publish

    publish("large", rows)


def measure(model: ModelId, store: Path, start: int, stop: int) -> dict[str, Any]:
    """A node of these layers in a process of its own: seconds to load, tokens per second of one
    stream, and resident memory beside what the memory formula allows (int8 bytes of its tensors,
    keys and values, 250 MB)."""
    print(f"measuring layers {start}:{stop}", flush=True)
    arguments = ["--measure", model, str(store), str(start), str(stop)]
    command = [sys.executable, "-m", "bench.large", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"what": f"node of layers {start}:{stop}", **json.loads(done.stdout)}


def _measure_here(model: str, store: str, start: int, stop: int) -> None:
    from unisono.models.decoder import Segment, make_decoder
    from unisono.models.loading import load_block
    from unisono.observe import speed
    from unisono.observe.machine import resident_bytes
    from unisono.types import LayerRange

    stored = ModelStore(Path(store)).get(ModelId(model))
    began = time.perf_counter()
    decoder = make_decoder(
        stored.manifest.config, load_block(stored, LayerRange(start, stop)), kv_bytes=1 << 30
    )
    loaded = time.perf_counter() - began
    if all(decoder.ends):
        speed.prefill(decoder, 64)
        prefill = speed.prefill(decoder, 256).per_second
        rate = speed.decode(decoder, 16).per_second
    else:
        rows = np.random.default_rng(0).integers(-(1 << 22), 1 << 22, (256, HIDDEN))
        cache = decoder.new_cache(512)
        decoder.forward(rows[:64], [Segment(cache, 0, 64)])
        began = time.perf_counter()
        decoder.forward(rows, [Segment(cache, 0, 256)])
        prefill = 256 / (time.perf_counter() - began)
        began = time.perf_counter()
        for position in range(256, 272):
            decoder.forward(rows[:1], [Segment(cache, position, 1)])
        rate = 16 / (time.perf_counter() - began)
    weights = sum(
        entry.shape[0] * entry.shape[1] * 17 // 16
        for name, entry in stored.manifest.tensors.items()
        if entry.kind == "matrix" and _held(name, start, stop)
    )
    formula = weights + decoder.store.bytes_for(512) + 250e6
    figures = {
        "load seconds": loaded,
        "prefill tok/s": prefill,
        "decode tok/s": rate,
        "resident MB": resident_bytes() / 1e6,
        "of the formula": resident_bytes() / formula,
    }
    sys.stdout.write(json.dumps(figures))


def _held(name: str, start: int, stop: int) -> bool:
    if name.startswith("layers."):
        return start <= int(name.split(".")[1]) < stop
    return start == 0 or stop == LAYERS


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        _measure_here(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    elif sys.argv[1:2] == ["--convert"]:
        _convert_here(*sys.argv[2:4])
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="unisono-large-") as temporary:
            main(Path(temporary))
