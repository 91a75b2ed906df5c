from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.conftest import TinyModels
from unisono.merkle import Tree, leaf_hash, seal
from unisono.models.config import DecoderConfig
from unisono.models.constants import constants
from unisono.models.fields import field_leaf, fields, table_leaves, table_roots
from unisono.models.manifest import Manifest
from unisono.numerics import tables


def number(value: bytes) -> int:
    assert value[:1] == b"i"
    return int.from_bytes(value[1:], "little", signed=True)


def test_a_model_id_is_the_root_over_its_sorted_fields(tiny_models: TinyModels) -> None:
    manifest = tiny_models.gemma.manifest
    found = fields(manifest)
    assert list(found) == sorted(found)
    leaves = [
        leaf_hash(bytes([len(name)]) + name.encode() + value) for name, value in found.items()
    ]
    root = seal("model/2", len(leaves), Tree(b"".join(leaves)).top()).hex()
    assert manifest.model_id == root == tiny_models.gemma.id


def test_fields_say_what_the_manifest_says(tiny_models: TinyModels) -> None:
    manifest = tiny_models.gemma.manifest
    found, config = fields(manifest), manifest.config
    assert number(found["numerics"]) == manifest.numerics
    assert number(found["config/hidden_size"]) == config.hidden_size
    assert number(found["config/post_norms"]) == 1
    assert found["config/norm_epsilon"] == b"s" + config.norm_epsilon.encode()
    assert [number(found[f"config/windows/{i}"]) for i in range(6)] == list(config.windows)
    assert found["config/rope/theta"] == b"s" + config.rope.theta.encode()
    known = constants(config)
    assert number(found["constants/epsilon/0"]) == known.epsilon[0]
    assert number(found["constants/epsilon/1"]) == known.epsilon[1]
    assert number(found["constants/frequencies/3"]) == known.frequencies[3]
    entry = manifest.tensors["layers.1.gate"]
    assert found["tensors/layers.1.gate"] == (
        b"t\0"
        + entry.shape[0].to_bytes(4, "little")
        + entry.shape[1].to_bytes(4, "little")
        + entry.exponent.to_bytes(4, "little", signed=True)
        + bytes.fromhex(entry.root)
    )
    norm = found["tensors/final_norm"]
    assert norm[:10] == b"t\1\1\0\0\0" + config.hidden_size.to_bytes(4, "little")


def altered(config: DecoderConfig) -> list[dict[str, Any]]:
    """For every field of a configuration, another value."""
    changes: list[dict[str, Any]] = []
    for name in config.__struct_fields__:
        value = getattr(config, name)
        other: Any
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, int):
            other = {"kv_head_count": 4}.get(name, value + 32)
        elif isinstance(value, tuple):
            other = (*value[:-1], value[-1] + 1)
        elif name == "activation":
            other = "silu" if value == "gelu_tanh" else "gelu_tanh"
        elif isinstance(value, str):
            other = "0.5" if name == "norm_epsilon" else value + "x"
        else:
            other = msgspec.structs.replace(value, theta="777")
        changes.append({name: other})
    return changes


def test_every_field_of_a_configuration_is_committed_to(tiny_models: TinyModels) -> None:
    manifest = tiny_models.gemma.manifest
    seen = {manifest.model_id}
    for change in altered(manifest.config):
        if "layer_count" in change:
            continue  # needs as many windows
        config = msgspec.structs.replace(manifest.config, **change)
        seen.add(msgspec.structs.replace(manifest, config=config).model_id)
    assert len(seen) == len(DecoderConfig.__struct_fields__)


@pytest.mark.parametrize(
    "change",
    [{"kind": "bias"}, {"shape": (64, 320)}, {"exponent": -5}, {"root": "ab" * 32}],
    ids=str,
)
def test_every_fact_of_a_tensor_is_committed_to(
    tiny_models: TinyModels, change: dict[str, Any]
) -> None:
    manifest: Manifest = tiny_models.gemma.manifest
    entry = msgspec.structs.replace(manifest.tensors["layers.0.gate"], **change)
    other = msgspec.structs.replace(manifest, tensors=manifest.tensors | {"layers.0.gate": entry})
    assert other.model_id != manifest.model_id


@pytest.mark.parametrize("name", tables.NAMES)
def test_any_two_neighbours_of_a_table_lie_in_one_leaf(name: str) -> None:
    values, leaves = tables.values(name), table_leaves(name)
    for at in range(len(values) - 1):
        leaf, place = leaves[at // 16], 8 * (at % 16)
        pair = [leaf[place + i : place + i + 8] for i in (0, 8)]
        assert [int.from_bytes(b, "little", signed=True) for b in pair] == [*values[at : at + 2]]
    top = Tree(b"".join(map(leaf_hash, leaves))).top()
    assert table_roots()[name] == seal("table/1", len(leaves), top).hex()


def test_a_name_that_its_length_byte_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="256 bytes: at most 255"):
        field_leaf("x" * 256, b"")
