from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.models import gguf_writer, tiny
from tests.models.conftest import Checkpoint
from unisono.errors import CorruptModel
from unisono.models import conversion
from unisono.models.config import DecoderConfig, RopeConfig, tensor_shapes
from unisono.models.conversion import convert
from unisono.models.gguf import GgufSource
from unisono.models.manifest import part_of, tensor_kind
from unisono.models.quantise import quantise_bias, quantise_matrix, quantise_norm
from unisono.models.safetensors import SafetensorsSource
from unisono.models.source import ModelSource
from unisono.models.store import StoredModel

Checkpoints = Callable[[str], Checkpoint]
Floats = NDArray[np.float32]

WIDE = DecoderConfig(
    architecture="llama",
    vocabulary_size=30_011,
    hidden_size=256,
    layer_count=2,
    head_count=4,
    kv_head_count=2,
    head_size=64,
    mlp_size=1024,
    context_length=128,
    norm_epsilon="1e-6",
    activation="silu",
    windows=(0, 0),
    rope=RopeConfig(),
    local_rope=RopeConfig(),
    query_scalar=64,
    tied_head=False,
)
EMBEDDING = 30_011 * 256
"""Elements of the largest tensor of `WIDE`: 30 MB as float32."""


class Counting:
    """A source of made-up weights that counts how many floats its callers hold at most."""

    def __init__(self, config: DecoderConfig = WIDE, bad: str = "") -> None:
        self.config, self.name, self.fingerprint = config, "counting", "counting"
        self.held = self.most = 0
        self._shapes, self._bad, self._lock = tensor_shapes(config), bad, threading.Lock()

    def read(self, name: str) -> Floats:
        return self.rows(name, 0, self._shapes[name][0])

    def rows(self, name: str, start: int, stop: int) -> Floats:
        row = np.arange(1, 1 + self._shapes[name][-1] if len(self._shapes[name]) > 1 else 2)
        made = np.sin(np.arange(start, stop)[:, None] * 0.37 + row).astype(np.float32)
        if name == self._bad and stop == self._shapes[name][0]:
            made[-1, -1] = np.nan
        self._hold(made.size)
        weakref.finalize(made, self._hold, -made.size)
        return made.reshape(stop - start, *self._shapes[name][1:])

    def _hold(self, size: int) -> None:
        with self._lock:
            self.held += size
            self.most = max(self.most, self.held)

    def tokenizer_files(self) -> dict[str, bytes]:
        return {}


class CountingRows(Counting):
    """The same, of which parts can be read."""

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        return self.rows(name, start, stop)


def stored(source: ModelSource, root: Path) -> StoredModel:
    return StoredModel(convert(source, root))


def whole(source: ModelSource, part: str) -> dict[str, NDArray[np.generic]]:
    """What a stored file must hold, every tensor read and quantised at once."""
    expected: dict[str, NDArray[np.generic]] = {}
    for name in (n for n in tensor_shapes(source.config) if part_of(n) == part):
        values = source.read(name)
        if tensor_kind(name) == "matrix":
            matrix = quantise_matrix(name, values)
            expected[f"{name}.values"] = matrix.values
            expected[f"{name}.multipliers"] = matrix.multipliers.view(np.int16)
        else:
            make = quantise_norm if tensor_kind(name) == "norm" else quantise_bias
            expected[name] = make(name, values).values.astype(np.int32)
    return expected


@pytest.mark.parametrize("family", ["llama-biased", "gemma3", "qwen2"])
@pytest.mark.parametrize("piece", [1, 1000, 1 << 20])
def test_files_hold_what_whole_tensors_quantise_to_however_they_are_cut(
    checkpoint: Checkpoints,
    tmp_path: Path,
    family: str,
    piece: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversion, "PIECE", piece)
    source = SafetensorsSource(checkpoint(family)[1])
    model = stored(source, tmp_path)
    for part in {part_of(name) for name in model.manifest.tensors}:
        file, expected = model.path / f"{part}.safetensors", whole(source, part)
        found = load_file(file)
        assert {n: (a.dtype, a.shape) for n, a in found.items()} == {
            n: (a.dtype, a.shape) for n, a in expected.items()
        }
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        save_file(expected, tmp_path / "library")
        assert file.read_bytes() == (tmp_path / "library").read_bytes()


def test_sources_with_and_without_parts_give_the_same_model(tmp_path: Path) -> None:
    one = stored(Counting(), tmp_path)
    assert stored(CountingRows(), tmp_path).id == one.id


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_a_conversion_holds_a_few_pieces_as_floats_and_less_than_a_tensor_in_all(
    tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = 1 << 16
    monkeypatch.setattr(conversion, "PIECE", piece)
    monkeypatch.setattr(conversion, "MAX_THREADS", threads)
    monkeypatch.setattr("os.cpu_count", lambda: threads)
    source = CountingRows()
    tracemalloc.start()
    try:
        convert(source, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.held == 0
    assert source.most <= threads * piece
    if threads <= 2:
        assert peak < EMBEDDING  # bytes: a quarter of the embedding as float32


def test_a_source_without_parts_is_held_by_one_tensor_at_a_time(tmp_path: Path) -> None:
    source = Counting()
    convert(source, tmp_path)
    assert source.held == 0
    assert source.most <= 2 * EMBEDDING


@pytest.mark.parametrize("name", ["embedding", "layers.1.down", "layers.1.mlp_norm", "head"])
@pytest.mark.parametrize("kind", [Counting, CountingRows])
def test_nan_in_the_last_piece_is_found_and_nothing_is_left_behind(
    tmp_path: Path, kind: type[Counting], name: str
) -> None:
    with pytest.raises(CorruptModel, match=f"tensor '{name}' holds infinite .* or NaN"):
        convert(kind(bad=name), tmp_path)
    assert list(tmp_path.iterdir()) == []


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
@pytest.mark.parametrize(("family", "architecture"), [("smollm", "llama"), ("qwen3", "qwen3")])
def test_rows_of_a_gguf_matrix_are_rows_of_the_whole(
    checkpoint: Checkpoints,
    tmp_path_factory: pytest.TempPathFactory,
    family: str,
    architecture: str,
    data: st.DataObject,
) -> None:
    """Rows of `llama` queries and keys lie in another order within a head."""
    path = tmp_path_factory.getbasetemp() / f"{family}-q8.gguf"
    if not path.exists():
        gguf_writer.write(path, checkpoint(family)[0], architecture, kind=GGMLQuantizationType.Q8_0)
    source = GgufSource(path)
    leaf = data.draw(st.sampled_from(["query", "key", "value", "down"]))
    expected = source.read(f"layers.1.{leaf}")
    start = data.draw(st.integers(0, len(expected) - 1))
    stop = data.draw(st.integers(start + 1, len(expected)))
    rows = source.read_rows(f"layers.1.{leaf}", start, stop)
    np.testing.assert_array_equal(rows, expected[start:stop])


def test_rows_of_a_gguf_matrix_that_is_missing_or_misshapen_are_refused(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    model, _ = checkpoint("smollm")
    wrong = {"blk.0.ffn_down.weight": np.zeros((32, 96), np.float32)}
    path = gguf_writer.write(
        tmp_path / "m.gguf", model, "llama", replace=wrong, drop=("blk.1.ffn_up.weight",)
    )
    with pytest.raises(CorruptModel, match=r"m\.gguf: tensor 'blk\.0\.ffn_down.*\(32, 96\)"):
        GgufSource(path).read_rows("layers.0.down", 0, 1)
    with pytest.raises(CorruptModel, match=r"m\.gguf lacks tensor 'blk\.1\.ffn_up\.weight'"):
        GgufSource(path).read_rows("layers.1.up", 0, 1)


def test_conversion_does_without_torch(checkpoint: Checkpoints, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from unisono.models.store import ModelStore;"
        "ModelStore(Path(sys.argv[2])).ensure(sys.argv[1]); assert 'torch' not in sys.modules"
    )
    arguments = [str(checkpoint("gemma3")[1]), str(tmp_path)]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)


def test_checkpoints_of_half_precision_convert_to_what_their_float32_does(
    tmp_path: Path,
) -> None:
    import torch

    model = tiny.build("qwen3").to(torch.bfloat16)
    half = stored(SafetensorsSource(tiny.save(model, tmp_path / "half")), tmp_path)
    full = stored(SafetensorsSource(tiny.save(model.float(), tmp_path / "full")), tmp_path)
    assert half.manifest.tensors == full.manifest.tensors
