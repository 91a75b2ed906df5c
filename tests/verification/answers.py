"""Honest and dishonest answers of networks in one process, with the keys that signed them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from tests.scenarios.network import Answered, request_for, tiny_network
from unisono.models.store import StoredModel
from unisono.types import GenerationRequest
from unisono.verification.receipt import Receipt
from unisono.wire.claims import HopClaim
from unisono.wire.identity import Identity


@dataclass(frozen=True)
class Made:
    """A receipt and everybody's keys."""

    receipt: Receipt
    gateway: Identity
    hops: tuple[Identity, ...]

    def altered(self, **changes: Any) -> Receipt:
        """The receipt with other contents, signed by its gateway all the same."""
        return msgspec.structs.replace(self.receipt, **changes).signed_by(self.gateway)

    def with_claims(self, claims: Sequence[HopClaim]) -> Receipt:
        """The receipt with claims that their hops sign, whatever they say."""
        signed = tuple(c.signed_by(key) for c, key in zip(claims, self.hops, strict=True))
        return self.altered(hops=signed)


def make(
    model: StoredModel,
    blocks: Any = 3,
    request: GenerationRequest | None = None,
    *,
    workers: dict[int, Any] | None = None,
    engines: dict[int, Any] | None = None,
    **options: Any,
) -> Made:
    """Run one answer on a network of its own."""

    async def run() -> Made:
        async with tiny_network(model, blocks, **options) as net:
            for index, kind in (workers or {}).items():
                net.nodes[index].worker.__class__ = kind
            for index, kind in (engines or {}).items():
                net.nodes[index].engine.__class__ = kind
            answered: Answered = await net.answer(request or request_for(model))
            keys = {node.identity.node_id: node.identity for node in net.nodes}
            hops = tuple(keys[claim.node] for claim in answered.claims)
            return Made(answered.receipt(), net.gateway, hops)

    return asyncio.run(run())
