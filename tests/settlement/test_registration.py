"""What a registry keeps is checked by whoever reads it."""

from __future__ import annotations

import dataclasses

import pytest

from tests.settlement.deployed import DEPLOYER, deployed
from tests.settlement.evm import account
from tests.tiny_weights import FAMILIES, tiny_config
from unisono.merkle import Tree, leaf_hash
from unisono.models.config import tensor_shapes
from unisono.models.fields import field_tree, table_roots
from unisono.models.manifest import (
    MANIFEST_VERSION,
    NUMERICS_VERSION,
    Manifest,
    TensorEntry,
    tensor_kind,
)
from unisono.settlement.registration import ModelRecord, Registration
from unisono.types import NodeId
from unisono.wire.identity import Identity

IDENTITY = Identity.from_seed(b"\x01" * 32)
REGISTRY, OPERATOR = account(40), account(41)


def test_a_registration_is_good_in_one_place_for_one_operator() -> None:
    good = Registration.signed(IDENTITY, 31_337, REGISTRY, OPERATOR)
    assert good.is_good(31_337, REGISTRY)
    assert not good.is_good(1, REGISTRY)
    assert not good.is_good(31_337, account(42))
    for change in (
        {"operator": account(43)},
        {"node": Identity.from_seed(b"\x02" * 32).node_id},
        {"node": NodeId("no id")},
        {"signature": bytes(64)},
        {"signature": good.signature[:63]},
    ):
        assert not dataclasses.replace(good, **change).is_good(31_337, REGISTRY)


def test_a_registration_comes_back_from_the_contract_as_it_was() -> None:
    at = deployed()
    sent = Registration.signed(IDENTITY, at.evm.chain_id, at.registry.address, OPERATOR)
    at.registry.send(OPERATOR, "register", *sent.arguments)
    *_, r, s = at.registry.view("record", bytes.fromhex(IDENTITY.node_id), OPERATOR)
    found = Registration(IDENTITY.node_id, OPERATOR, r + s)
    assert found == sent
    assert found.is_good(at.evm.chain_id, at.registry.address)


def manifest(family: str) -> Manifest:
    config = tiny_config(family)
    shapes = tensor_shapes(config)
    tensors = {
        name: TensorEntry(tensor_kind(name), shape, 0, f"{i:064x}")
        for i, (name, shape) in enumerate(shapes.items())
    }
    return Manifest(MANIFEST_VERSION, NUMERICS_VERSION, table_roots(), config, tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_models_record_is_published_under_its_name(family: str) -> None:
    at = deployed()
    record = ModelRecord.of(manifest(family), b"\x05" * 32)
    at.registry.send(
        DEPLOYER, "publish", record.model, record.program, record.weights, record.parameters
    )
    assert at.registry.view("published_at", *record.key) == at.evm.time
    other = ModelRecord.of(manifest(family), b"\x06" * 32)
    assert at.registry.view("published_at", *other.key) == 0


def test_the_weights_root_depends_on_every_tensor_and_on_nothing_else() -> None:
    plain = manifest("llama")
    base = ModelRecord.of(plain, b"\x05" * 32)
    for name, entry in plain.tensors.items():
        changed = plain.tensors | {name: TensorEntry(entry.kind, entry.shape, 0, "f" * 64)}
        other = ModelRecord.of(
            Manifest(plain.version, plain.numerics, plain.tables, plain.config, changed),
            b"\x05" * 32,
        )
        assert other.weights != base.weights
        assert other.parameters == base.parameters
    assert ModelRecord.of(plain, b"\x06" * 32).weights == base.weights


def test_parameters_are_leaves_under_the_model_id() -> None:
    plain = manifest("gemma")
    record = ModelRecord.of(plain, bytes(32))
    leaves, rest = [], record.parameters
    while rest:
        size = int.from_bytes(rest[:2], "big")
        leaves.append(rest[2 : 2 + size])
        rest = rest[2 + size :]
    tree: Tree = field_tree(plain)
    known = {tree.leaf(i) for i in range(len(tree))}
    assert len(leaves) > 10
    assert all(leaf_hash(leaf) in known for leaf in leaves)
