from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models import gguf_writer, tiny
from tests.models.conftest import Checkpoint
from unisono.errors import ConfigurationError, CorruptModel, ModelError, UnsupportedModel
from unisono.models.catalog import open_source
from unisono.models.config import RopeConfig, tensor_shapes
from unisono.models.gguf import GgufSource
from unisono.models.gguf_file import GgufFile
from unisono.models.reference import reference_logits
from unisono.models.safetensors import SafetensorsSource

Checkpoints = Callable[[str], Checkpoint]

GEMMA_KEYS: dict[str, Any] = {
    "attention.sliding_window": 8,
    "rope.freq_base": 1000000.0,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
}
YARN_KEYS: dict[str, Any] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm": ("llama", {}),
    "llama-biased": ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5}),
    "mistral": ("llama", {"attention.sliding_window": 8}),
    "qwen2": ("qwen2", YARN_KEYS),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", GEMMA_KEYS),
}


@pytest.mark.parametrize("family", FILES)
def test_a_file_holds_the_same_model_as_its_checkpoint(
    checkpoint: Checkpoints, tmp_path: Path, family: str
) -> None:
    """Covers names, the permutation of query and key rows, Gemma's norms, rope and windows."""
    model, folder = checkpoint(family)
    architecture, keys = FILES[family]
    path = gguf_writer.write(tmp_path / "m.gguf", model, architecture, keys=keys)
    source, other = GgufSource(path), SafetensorsSource(folder)
    for name, shape in tensor_shapes(other.config).items():
        tensor = source.read(name)
        assert (tensor.shape, tensor.dtype) == (shape, np.float32)
        np.testing.assert_array_equal(tensor, other.read(name), err_msg=name)
    same = {"architecture": "", "query_scalar": 0}
    mine, theirs = (
        {f: same.get(f, getattr(c, f)) for f in c.__struct_fields__}
        for c in (source.config, other.config)
    )
    assert mine == theirs


def test_logits_of_a_gguf_llama_are_those_of_transformers(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    model, _ = checkpoint("smollm")
    source = GgufSource(gguf_writer.write(tmp_path / "m.gguf", model, "llama"))
    logits = np.stack(list(reference_logits(source, tiny.IDS)))
    np.testing.assert_allclose(logits, tiny.expected_logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("F16", 1e-3),
        ("BF16", 8e-3),
        ("Q8_0", 1e-2),
        ("Q5_0", 8e-2),
        ("Q5_1", 8e-2),
        ("Q4_0", 2e-1),
        ("Q4_1", 2e-1),
    ],
)
def test_quantized_matrices_come_back_close(
    checkpoint: Checkpoints, tmp_path: Path, kind: str, error: float
) -> None:
    model, folder = checkpoint("qwen3")
    form = GGMLQuantizationType[kind]
    source = GgufSource(gguf_writer.write(tmp_path / "m.gguf", model, "qwen3", kind=form))
    exact = SafetensorsSource(folder)
    for name in ("embedding", "layers.1.down", "layers.2.query"):
        expected = exact.read(name)
        assert np.abs(source.read(name) - expected).max() <= error * np.abs(expected).max()


def test_large_tensors_are_read_like_the_library_reads_them(tmp_path: Path) -> None:
    """Slices and threads change nothing: the last slice is ragged."""
    path = tmp_path / "m.gguf"
    value = np.random.default_rng(0).standard_normal((3001, 704), dtype=np.float32)
    packed = gguf.quants.quantize(value, GGMLQuantizationType.Q5_0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("big", packed, raw_dtype=GGMLQuantizationType.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = gguf.quants.dequantize(packed, GGMLQuantizationType.Q5_0)
    np.testing.assert_array_equal(GgufFile(path).read("big"), expected)


def test_explicit_rope_factors_come_from_their_tensor(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    factors = np.linspace(1, 8.5, 16, dtype=np.float32)
    path = gguf_writer.write(
        tmp_path / "m.gguf",
        checkpoint("smollm")[0],
        "llama",
        replace={"rope_freqs.weight": factors},
    )
    rope = GgufSource(path).config.rope
    assert rope.scaling == "factors"
    assert rope.factors[:3] == ("1", "1.5", "2")


def test_gemma_windows_follow_an_explicit_pattern(checkpoint: Checkpoints, tmp_path: Path) -> None:
    keys = GEMMA_KEYS | {
        "attention.sliding_window_pattern": [True, False] * 3 + [True],
        "rope.freq_base_swa": 20000.0,
    }
    path = gguf_writer.write(tmp_path / "m.gguf", checkpoint("gemma3")[0], "gemma3", keys=keys)
    config = GgufSource(path).config
    assert config.windows == (8, 0, 8, 0, 8, 0, 8)
    assert config.local_rope == RopeConfig(theta="20000")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
        ({"rope.dimension_count": 16}, "rotary embedding of a part"),
        ({"expert_count": 8}, "mixture of experts"),
        ({"final_logit_softcapping": 30.0}, "soft capping"),
        ({"attention.head_count_kv": [2, 1, 2]}, "differs between layers"),
        ({"attention.value_length": 64}, "value length"),
    ],
)
def test_features_outside_the_definition_are_refused(
    checkpoint: Checkpoints, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    path = gguf_writer.write(tmp_path / "m.gguf", checkpoint("smollm")[0], "llama", keys=keys)
    with pytest.raises(UnsupportedModel, match=message) as error:
        GgufSource(path)
    assert str(path) in str(error.value)


def test_an_unsupported_architecture_is_named_with_the_supported_ones(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = gguf_writer.write(tmp_path / "m.gguf", checkpoint("smollm")[0], "mamba")
    with pytest.raises(UnsupportedModel, match=r"'mamba' is not supported; .*gemma3, llama, qwen2"):
        GgufSource(path)


def test_a_missing_tensor_is_named_with_its_file(checkpoint: Checkpoints, tmp_path: Path) -> None:
    model, _ = checkpoint("smollm")
    path = gguf_writer.write(tmp_path / "m.gguf", model, "llama", drop=("blk.1.ffn_up.weight",))
    with pytest.raises(CorruptModel, match=r"m\.gguf lacks tensor 'blk\.1\.ffn_up\.weight'"):
        GgufSource(path).read("layers.1.up")


def test_a_wrong_shape_is_named_with_its_file(checkpoint: Checkpoints, tmp_path: Path) -> None:
    model, _ = checkpoint("smollm")
    wrong = {"blk.0.ffn_down.weight": np.zeros((32, 96), np.float32)}
    path = gguf_writer.write(tmp_path / "m.gguf", model, "llama", replace=wrong)
    with pytest.raises(CorruptModel, match=r"m\.gguf: tensor 'blk\.0\.ffn_down.*\(32, 96\)"):
        GgufSource(path).read("layers.0.down")


def test_a_missing_key_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    keys = {"feed_forward_length": None}
    path = gguf_writer.write(tmp_path / "m.gguf", checkpoint("smollm")[0], "llama", keys=keys)
    with pytest.raises(CorruptModel, match=r"'llama\.feed_forward_length' is missing"):
        GgufSource(path)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    return gguf_writer.write(path, tiny.build("smollm"), "llama").read_bytes()


@pytest.mark.parametrize("kept", [0, 10, 24, 100, 2000, -1000, -1])
def test_a_truncated_file_is_corrupt_wherever_it_ends(
    small_file: bytes, tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(small_file[:kept])
    with pytest.raises(CorruptModel, match=r"cut\.gguf"):
        GgufSource(path)


@pytest.mark.parametrize(
    ("at", "data", "error", "message"),
    [
        (0, b"GGML", CorruptModel, "instead of b'GGUF'"),
        (4, struct.pack("<I", 1), UnsupportedModel, "version 1"),
        (4, struct.pack(">I", 3), UnsupportedModel, "big-endian"),
        (8, struct.pack("<Q", 1 << 40), CorruptModel, "number of tensors is 1099511627776"),
        (16, struct.pack("<Q", 1 << 40), CorruptModel, "number of metadata keys"),
        (24, struct.pack("<Q", 1 << 60), CorruptModel, "length of a metadata key"),
    ],
)
def test_headers_out_of_bounds_are_refused(
    small_file: bytes, tmp_path: Path, at: int, data: bytes, error: type, message: str
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(small_file[:at] + data + small_file[at + len(data) :])
    with pytest.raises(error, match=message):
        GgufSource(path)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_damage_to_the_header_is_an_error_or_harmless(
    small_file: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    damaged = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 9000))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    message = path.name
    try:
        source = GgufSource(path)
        source.read("layers.0.query")
        source.tokenizer_files()
    except ModelError as error:
        message = str(error)
    assert path.name in message


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot open"):
        GgufSource(tmp_path / "none.gguf")


@pytest.mark.slow
def test_the_default_model_is_read_whole() -> None:
    source = open_source()
    config = source.config
    assert config.norm_epsilon == "1e-06"
    assert config.windows == ((512,) * 5 + (0,)) * 3
    assert (config.rope.theta, config.local_rope.theta) == ("1000000", "10000")
    assert (config.query_scalar, config.tied_head, config.vocabulary_size) == (256, True, 262144)
    for name, shape in tensor_shapes(config).items():
        tensor = source.read(name)
        assert tensor.shape == shape
        assert np.isfinite(tensor).all()
