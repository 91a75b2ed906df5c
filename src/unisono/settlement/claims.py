"""Claims as a chain takes them: what a hop signed about its rows, under its settlement key.

An EVM cannot check ed25519 signatures cheaply. A node whose settlement key is registered therefore
signs a second form of its claim with that key, as typed data (EIP-712) in the court's domain. It
also says what a contract cannot look up: the program that the model id stands for
(`fraud/descriptors.py`), the tokens, and how tokens were chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from eth_hash.auto import keccak
from msgspec import UNSET

from unisono.errors import BadSignature, ConfigurationError
from unisono.settlement.eip712 import (
    Domain,
    address_word,
    checksummed,
    struct_hash,
    type_hash,
    word,
)
from unisono.settlement.signature import SettlementKey, recover
from unisono.settlement.tables import bias_root
from unisono.types import EvmAddress, GenerationRequest, Sampling, SessionId
from unisono.verification.fraud.tree import EMPTY, HASH, Tree, tensor_tree
from unisono.wire.claims import HopClaim

NAME, VERSION = "Unisono court", "1"
SEQUENCE_FORMAT = "i4"
"""Of tokens: leaves hold 64."""
NO_PAYER = EvmAddress("0x" + "0" * 40)
_TYPE = type_hash(
    "Claim(bytes32 node,bytes32 session,bytes32 request,bytes32 model,bytes32 program,"
    "uint32 layerStart,uint32 layerStop,uint32 prompt,uint32 positions,bytes32 rowsIn,"
    "bytes32 rowsOut,bytes32 sequence,bytes32 sampling,uint64 epoch,address payer)"
)

SamplingWords = tuple[int, int, int, int, int, int, int, int, bytes]
"""The contract's struct: the settings in the order of `Sampling`, and the root of the biases."""


def court_domain(chain_id: int, court: EvmAddress) -> Domain:
    """What signatures of claims are bound to."""
    return Domain(NAME, VERSION, chain_id, court)


@dataclass(frozen=True, slots=True)
class SettlementClaim:
    """A claim that the court can judge; fields as in its struct."""

    node: bytes
    session: bytes
    request: bytes
    model: bytes
    program: bytes
    layer_start: int
    layer_stop: int
    prompt: int
    """Tokens of the prompt."""
    positions: int
    rows_in: bytes
    rows_out: bytes
    sequence: bytes
    """Of a hop that ends the model, the root over prompt and answer; zeros of another."""
    sampling: bytes
    epoch: int
    payer: EvmAddress
    signature: bytes = b""

    def words(self) -> tuple[object, ...]:
        """The contract's struct."""
        return (
            *(self.node, self.session, self.request, self.model, self.program),
            *(self.layer_start, self.layer_stop, self.prompt, self.positions),
            *(self.rows_in, self.rows_out, self.sequence, self.sampling),
            *(self.epoch, self.payer),
        )

    def digest(self, domain: Domain) -> bytes:
        """The 32 bytes that are signed; the court knows the claim by them."""
        return domain.digest(self.struct())

    def struct(self) -> bytes:
        """The claim's hash without a domain: what is shown of it while its contents are not."""
        return struct_hash(_TYPE, *map(_word, self.words()))

    def signed_by(self, key: SettlementKey, domain: Domain) -> SettlementClaim:
        """The same claim with the signature of the node's settlement key."""
        return replace(self, signature=key.sign(self.digest(domain)))

    def signer(self, domain: Domain) -> EvmAddress:
        """Whose stake answers for the claim.

        Raises:
            BadSignature: nobody's.
        """
        return checksummed(recover(self.digest(domain), self.signature))

    def check(self, domain: Domain, operator: EvmAddress, expected: SettlementClaim) -> None:
        """Whether this is the claim that a payer must have in hand before it pays: `expected` is
        what the payer itself makes of the ed25519 claim.

        Raises:
            BadSignature: it says something else, or another key signed it.
        """
        if replace(self, signature=b"") != replace(expected, signature=b""):
            raise BadSignature("the settlement claim is not what the hop's claim says")
        if self.signer(domain) != operator:
            raise BadSignature(f"the settlement claim is not signed by operator {operator}")


def settlement_claim(
    claim: HopClaim,
    request: GenerationRequest,
    tokens: tuple[int, ...],
    program: bytes,
    vocabulary: int,
    payer: EvmAddress,
) -> SettlementClaim:
    """The unsigned settlement form of a hop's claim.

    Args:
        claim: what the hop signed with ed25519.
        tokens: the answer, if the hop ends the model; else empty.
        program: root of the model's descriptors.
        vocabulary: tokens of the model.
        payer: who is refunded if the claim is false.

    Raises:
        ConfigurationError: there is no payer, or a field is not of its form.
    """
    if claim.distributions is not UNSET:
        raise ConfigurationError("an ensemble chose the tokens of this claim: no referee judges it")
    if payer == NO_PAYER:
        raise ConfigurationError("a settlement claim names who paid; no address was given")
    sequence = sequence_tree((*request.prompt, *tokens)).root if claim.tokens else EMPTY
    try:
        return SettlementClaim(
            node=_hash(bytes.fromhex(claim.node)),
            session=session_word(claim.session),
            request=_hash(bytes.fromhex(claim.request)),
            model=_hash(bytes.fromhex(claim.model)),
            program=_hash(program),
            layer_start=claim.layers.start,
            layer_stop=claim.layers.stop,
            prompt=len(request.prompt),
            positions=claim.positions,
            rows_in=_hash(bytes.fromhex(claim.rows_in)),
            rows_out=_hash(bytes.fromhex(claim.rows_out)),
            sequence=sequence,
            sampling=sampling_hash(request.sampling, vocabulary),
            epoch=claim.epoch,
            payer=payer,
        )
    except ValueError as error:
        raise ConfigurationError(f"the hop's claim has a malformed field: {error}") from error


def session_word(session: SessionId) -> bytes:
    """A session's 16 bytes, and zeros."""
    return bytes.fromhex(session).ljust(HASH, b"\0")


def sequence_tree(tokens: tuple[int, ...]) -> Tree:
    """The tree over tokens: its shape is that of a tensor of 4-byte integers."""
    return tensor_tree(np.array(tokens, dtype=np.int64), SEQUENCE_FORMAT)


def sampling_words(sampling: Sampling, vocabulary: int) -> SamplingWords:
    """How tokens are chosen, as the contract has it."""
    s = sampling
    return (
        *(s.temperature, s.top_k, s.top_p, s.min_p),
        *(s.repetition_penalty, s.presence_penalty, s.frequency_penalty, s.seed),
        bias_root(s.logit_bias, vocabulary),
    )


def sampling_hash(sampling: Sampling, vocabulary: int) -> bytes:
    """Keccak-256 of the words of `sampling_words`."""
    words = sampling_words(sampling, vocabulary)
    return keccak(b"".join(x if isinstance(x, bytes) else word(x) for x in words))


def _word(value: object) -> bytes:
    match value:
        case bytes():
            return _hash(value)
        case str():
            return address_word(EvmAddress(value))
        case int():
            return word(value)
        case _:
            raise TypeError(f"a claim holds no {type(value).__name__}")


def _hash(data: bytes) -> bytes:
    if len(data) != HASH:
        raise ValueError(f"{len(data)} bytes where {HASH} were expected")
    return data
