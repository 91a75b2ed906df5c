from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny
from tests.models.conftest import Checkpoint
from unisono.errors import ConfigurationError, CorruptModel, UnsupportedModel
from unisono.models.config import RopeConfig, tensor_shapes
from unisono.models.reference import reference_logits
from unisono.models.safetensors import SafetensorsSource, resolve
from unisono.models.safetensors_config import decoder_config
from unisono.models.safetensors_file import TensorWriter, read_floats, stored_tensors

Checkpoints = Callable[[str], Checkpoint]


def copy(checkpoint: Checkpoints, family: str, folder: Path) -> Path:
    shutil.copytree(checkpoint(family)[1], folder, dirs_exist_ok=True)
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(document))


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_canonical_tensor_has_its_shape(checkpoint: Checkpoints, family: str) -> None:
    source = SafetensorsSource(checkpoint(family)[1])
    for name, shape in tensor_shapes(source.config).items():
        tensor = source.read(name)
        assert (tensor.shape, tensor.dtype) == (shape, np.float32), name


def test_configurations_hold_what_the_checkpoint_says(checkpoint: Checkpoints) -> None:
    gemma = SafetensorsSource(checkpoint("gemma3")[1]).config
    assert gemma.windows == (8, 8, 8, 8, 8, 0, 8)
    assert gemma.rope == RopeConfig(theta="1000000", scaling="linear", factor="8")
    assert gemma.local_rope == RopeConfig(theta="10000")
    assert (gemma.query_scalar, gemma.norm_epsilon, gemma.tied_head) == (48, "1e-06", True)
    qwen = SafetensorsSource(checkpoint("qwen2")[1]).config
    assert (qwen.qkv_bias, qwen.output_bias, qwen.windows) == (True, False, (0, 0, 0))
    assert qwen.rope.attention_factor == "1.1386294361119890619"
    assert SafetensorsSource(checkpoint("qwen2-windows")[1]).config.windows == (0, 8, 8)
    assert SafetensorsSource(checkpoint("llama")[1]).config.rope.scaling == "llama3"


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_several_shards_read_like_one_file(
    checkpoint: Checkpoints, tmp_path: Path, family: str
) -> None:
    model, folder = checkpoint(family)
    tiny.save(model, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    one, many = SafetensorsSource(folder), SafetensorsSource(tmp_path)
    for name in tensor_shapes(one.config):
        np.testing.assert_array_equal(one.read(name), many.read(name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_are_read_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny.build("gemma3").to(dtype)
    source = SafetensorsSource(tiny.save(model, tmp_path))
    logits = np.stack(list(reference_logits(source, tiny.IDS)))
    # Read again rather than cast: rounding the model also rounded its rotary frequencies.
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    expected = tiny.expected_logits(again).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_configurations_of_older_transformers_mean_the_same(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    for family in ("llama", "gemma3", "qwen2"):
        folder = copy(checkpoint, family, tmp_path / family)
        expected = SafetensorsSource(folder).config
        path = folder / "config.json"
        document = json.loads(path.read_text())
        ropes = document.pop("rope_parameters")
        if family == "gemma3":
            document.pop("layer_types")
            document["sliding_window_pattern"] = 6
            document["rope_local_base_freq"] = 10000.0
            ropes = ropes["full_attention"]
        document["rope_theta"] = ropes.pop("rope_theta")
        document["rope_scaling"] = ropes
        path.write_text(json.dumps(document))
        assert SafetensorsSource(folder).config == expected


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_multimodal_gemma_is_found(
    checkpoint: Checkpoints, tmp_path: Path, prefix: str
) -> None:
    plain = SafetensorsSource(checkpoint("gemma3")[1])
    folder = copy(checkpoint, "gemma3", tmp_path)

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.", prefix, 1)] = tensors.pop(name)
        tensors["vision_tower.patch.weight"] = torch.zeros(2)

    rewrite(folder, rename)
    text = json.loads((folder / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    (folder / "config.json").write_text(json.dumps(outer))
    source = SafetensorsSource(folder)
    assert source.config == plain.config
    np.testing.assert_array_equal(source.read("layers.3.up"), plain.read("layers.3.up"))


def test_a_missing_tensor_is_named_with_its_folder(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = copy(checkpoint, "qwen3", tmp_path)
    rewrite(folder, lambda tensors: tensors.__delitem__("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CorruptModel, match=r"lacks tensor 'model\.layers\.1\.mlp\.up_proj") as e:
        SafetensorsSource(folder).read("layers.1.up")
    assert str(folder) in str(e.value)


def test_a_wrong_shape_is_named_with_its_file(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = copy(checkpoint, "qwen3", tmp_path)
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(CorruptModel, match=r"model\.safetensors: tensor 'model\.norm.*\(63,\)"):
        SafetensorsSource(folder).read("final_norm")


def test_quantized_tensors_are_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = copy(checkpoint, "qwen3", tmp_path)
    whole = torch.ones(64, dtype=torch.int8)
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": whole}))
    with pytest.raises(UnsupportedModel, match=r"'model\.norm\.weight' is stored as I8"):
        SafetensorsSource(folder).read("final_norm")


def test_a_truncated_file_is_corrupt(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = copy(checkpoint, "qwen3", tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptModel, match=r"model\.safetensors is not a readable"):
        SafetensorsSource(folder)


def test_a_missing_shard_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    tiny.save(checkpoint("llama")[0], tmp_path, max_shard_size="60KB")
    lost = sorted(tmp_path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CorruptModel, match=lost.name):
        SafetensorsSource(tmp_path)


def test_a_shard_outside_the_folder_is_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = copy(checkpoint, "qwen3", tmp_path)
    index = {"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptModel, match="not a plain file name"):
        SafetensorsSource(folder)


def test_a_bias_that_the_configuration_leaves_out_is_refused(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = copy(checkpoint, "llama-biased", tmp_path)
    change_config(folder, attention_bias=False)
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.self_attn\.k_proj\.bias"):
        SafetensorsSource(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "'MixtralForCausalLM' is not supported; supp"),
        ({"architectures": None}, "architecture None is not supported"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"num_experts": 8}, "mixture of experts"),
        ({"quantization_config": {"bits": 4}}, "quantized checkpoint"),
        ({"final_logit_softcapping": 30.0}, "soft capping"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope scaling 'longrope'"),
        ({"rope_scaling": tiny.YARN_ROPE | {"truncate": False}}, "without truncation"),
        ({"hidden_size": 65, "head_dim": 32}, "hidden_size is 65"),
    ],
)
def test_features_outside_the_definition_are_refused_by_name(
    checkpoint: Checkpoints, changes: dict[str, Any], message: str
) -> None:
    document = json.loads((checkpoint("smollm")[1] / "config.json").read_text())
    with pytest.raises(UnsupportedModel, match=message) as error:
        decoder_config(document | changes, "here/config.json")
    assert "here/config.json" in str(error.value)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": None}, {"num_hidden_layers": "3"}, {"rms_norm_eps": "small"}]
)
def test_malformed_keys_are_named(checkpoint: Checkpoints, changes: dict[str, Any]) -> None:
    document = json.loads((checkpoint("smollm")[1] / "config.json").read_text())
    with pytest.raises(CorruptModel, match=next(iter(changes))):
        decoder_config(document | changes, "here/config.json")


def test_a_folder_without_a_model_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no config\.json"):
        resolve(str(tmp_path))


def test_the_fingerprint_follows_the_files(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = copy(checkpoint, "qwen3", tmp_path)
    before = SafetensorsSource(folder).fingerprint
    assert SafetensorsSource(folder).fingerprint == before
    change_config(folder, note="changed")
    assert SafetensorsSource(folder).fingerprint != before


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_rows_of_every_type_are_those_that_the_library_reads(tmp_path: Path, kind: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.int16)  # every half, subnormal and NaN
    forms = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if kind == "F32":
        tensor = torch.randn(1 << 8, 1 << 8)
    else:
        tensor = torch.from_numpy(bits).view(forms[kind]).reshape(1 << 8, 1 << 8)
    file = tmp_path / "m.safetensors"
    save_file({"before": torch.ones(3), "w": tensor}, file, metadata={"format": "pt"})
    stored = stored_tensors(file)
    assert set(stored) == {"before", "w"}
    expected = tensor.float().numpy()
    for start, stop in ((0, 256), (0, 1), (17, 91), (255, 256), (9, 9)):
        rows = read_floats(file, stored["w"], start, stop)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, expected[start:stop])


@pytest.mark.parametrize("family", ["gemma3", "llama-biased"])
def test_rows_of_a_checkpoint_are_rows_of_its_tensors(checkpoint: Checkpoints, family: str) -> None:
    source = SafetensorsSource(checkpoint(family)[1])
    for name, shape in tensor_shapes(source.config).items():
        whole, half = source.read(name), shape[0] // 3
        np.testing.assert_array_equal(source.read_rows(name, 0, half), whole[:half])
        np.testing.assert_array_equal(source.read_rows(name, half, shape[0]), whole[half:])


def test_a_file_that_shrinks_after_its_header_was_read_is_corrupt(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = copy(checkpoint, "qwen3", tmp_path)
    source = SafetensorsSource(folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])

    def read_all() -> None:
        for name in tensor_shapes(source.config):
            source.read(name)

    with pytest.raises(CorruptModel, match=r"cannot be read \(it ends inside the tensor\)"):
        read_all()


def test_a_tensor_that_is_not_in_the_shard_of_the_index_is_named(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = copy(checkpoint, "qwen3", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys([*tensors, "model.norm.weight"], "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    rewrite(folder, lambda tensors: tensors.__delitem__("model.norm.weight"))
    source = SafetensorsSource(folder)
    with pytest.raises(CorruptModel, match=r"'model\.norm\.weight' cannot be read"):
        source.read("final_norm")


def test_a_written_file_is_byte_for_byte_that_of_the_library(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    tensors = {
        "b.values": torch.randint(-128, 128, (7, 33), dtype=torch.int8, generator=random),
        "b.more": torch.randint(-9, 9, (5, 3), dtype=torch.int16, generator=random),
        "c": torch.randint(-9, 9, (11,), dtype=torch.int32, generator=random),
        "a": torch.randint(-9, 9, (0,), dtype=torch.int32, generator=random),
    }
    save_file(tensors, tmp_path / "theirs")
    names = {torch.int8: "I8", torch.int16: "I16", torch.int32: "I32"}
    shapes = {n: (names[t.dtype], tuple(t.shape)) for n, t in tensors.items()}
    with TensorWriter(tmp_path / "ours", shapes) as file:
        for step in range(0, 12, 3):  # a few rows of each in turn
            for name, tensor in tensors.items():
                file.write(name, tensor[step : step + 3].numpy())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert all(torch.equal(t, tensors[n]) for n, t in load_file(tmp_path / "ours").items())


def test_a_tensor_must_be_written_whole_and_not_beyond_its_end(tmp_path: Path) -> None:
    def write(**sizes: int) -> None:
        with TensorWriter(tmp_path / "m", {"a": ("I8", (4,)), "b": ("I8", (4,))}) as file:
            for name, size in sizes.items():
                file.write(name, np.zeros(3, np.int8))
                file.write(name, np.zeros(size - 3, np.int8))

    write(b=4, a=4)
    with pytest.raises(ValueError, match="'b' was not written to its end"):
        write(a=4, b=3)
    with pytest.raises(ValueError, match="2 bytes for 'a', room 1"):
        write(a=5)
