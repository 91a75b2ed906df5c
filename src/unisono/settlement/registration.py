"""What a registry keeps of nodes and models, and how whoever reads it checks it.

An EVM cannot check ed25519 cheaply, so a registry keeps a node's signature unchecked, in a record
that belongs to the node id and the operator's address together: a false record is worth nothing
and stands in nobody's way. Models are the same: a record is named by all that it says.
"""

from __future__ import annotations

from dataclasses import dataclass

from eth_hash.auto import keccak

from unisono.merkle import Tree, leaf_hash, seal
from unisono.models.fields import field_leaf, fields
from unisono.models.manifest import Manifest
from unisono.settlement.eip712 import address_bytes
from unisono.types import EvmAddress, NodeId, digest
from unisono.wire.identity import Identity, verify_signature

MAX_PARAMETERS = 4096
"""Most bytes of a model's canonical parameters on a chain."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A node's signature under an operator's address: that both belong together."""

    node: NodeId
    operator: EvmAddress
    signature: bytes
    """64 bytes, ed25519."""

    @classmethod
    def signed(
        cls, identity: Identity, chain_id: int, registry: EvmAddress, operator: EvmAddress
    ) -> Registration:
        """A node's own registration."""
        message = registration_message(chain_id, registry, operator)
        return cls(identity.node_id, operator, identity.sign(message))

    def is_good(self, chain_id: int, registry: EvmAddress) -> bool:
        """Whether the node signed this, for this registry on this chain."""
        message = registration_message(chain_id, registry, self.operator)
        return verify_signature(self.node, message, self.signature)

    @property
    def arguments(self) -> tuple[bytes, bytes, bytes]:
        """Of the registry's `register`: node id and both halves of the signature."""
        return bytes.fromhex(self.node), self.signature[:32], self.signature[32:]


def registration_message(chain_id: int, registry: EvmAddress, operator: EvmAddress) -> bytes:
    """What a node signs to register under an operator's address."""
    places = (address_bytes(registry), address_bytes(operator))
    return digest("registration/1", chain_id.to_bytes(8, "little"), *places)


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model as a registry has it: roots of 32 bytes, and its parameters in full."""

    model: bytes
    program: bytes
    weights: bytes
    parameters: bytes

    @classmethod
    def of(cls, manifest: Manifest, program: bytes) -> ModelRecord:
        """The only true record of a manifest whose program has the root `program`.

        Raises:
            CorruptModel, UnsupportedModel: the manifest has no model id.
            ValueError: its parameters need more than `MAX_PARAMETERS` bytes.
        """
        model = bytes.fromhex(manifest.model_id)
        leaves = {name: field_leaf(name, value) for name, value in fields(manifest).items()}
        weights = Tree(
            b"".join(leaf_hash(x) for name, x in leaves.items() if name.startswith("tensors/"))
        )
        # The very leaves of the tree whose root is the model id: a contract can check each.
        parameters = b"".join(
            len(leaf).to_bytes(2, "big") + leaf
            for name, leaf in leaves.items()
            if name == "numerics" or name.startswith("config/")
        )
        if len(parameters) > MAX_PARAMETERS:
            raise ValueError(f"parameters of {len(parameters)} bytes: at most {MAX_PARAMETERS}")
        root = seal("weights/1", len(weights), weights.top())
        return cls(model, program, root, parameters)

    @property
    def key(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Arguments of the registry's `published_at`."""
        return self.model, self.program, self.weights, keccak(self.parameters)
