"""Answers that several chains compute and a majority decides."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import (
    SAMPLINGS,
    TinyNetwork,
    WrongToken,
    cheat,
    request_for,
    tiny_network,
    with_sampling,
)
from unisono.routing.quorum import QuorumAnswer
from unisono.types import GenerationRequest, LayerRange
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.votes import Vote

WHOLE = LayerRange(0, 4)


class Voted:
    """What a quorum left behind."""

    def __init__(
        self,
        tokens: tuple[int, ...],
        claims: tuple[HopClaim, ...],
        votes: tuple[Vote, ...],
        attempts: int,
    ) -> None:
        self.tokens, self.claims, self.votes, self.attempts = tokens, claims, votes, attempts

    @property
    def outcomes(self) -> list[str]:
        return [vote.outcome for vote in self.votes]

    def of(self, node: str) -> Vote:
        (found,) = (vote for vote in self.votes if node in vote.nodes)
        return found


async def opened(net: TinyNetwork, request: GenerationRequest, quorum: int) -> QuorumAnswer:
    answer = await net.swarm.open(request, quorum=quorum)
    assert isinstance(answer, QuorumAnswer)
    return answer


async def voted(
    net: TinyNetwork,
    request: GenerationRequest | None = None,
    quorum: int = 3,
    *,
    on_token: Any = None,
) -> Voted:
    request = request or request_for(net.model)
    answer = await opened(net, request, quorum)
    tokens: list[int] = []
    try:
        async for token in answer:
            assert token.position == len(request.prompt) + len(tokens)
            tokens.append(token.token)
            if on_token is not None:
                on_token(len(tokens))
        claims = await answer.finish(len(tokens))
    finally:
        await answer.cancel()
    return Voted(tuple(tokens), claims, answer.votes, answer.attempts)


@pytest.fixture(scope="module")
def right(tiny_models: TinyModels) -> tuple[int, ...]:
    async def run() -> tuple[int, ...]:
        async with tiny_network(tiny_models.llama, 1) as net:
            return (await net.answer(request_for(net.model))).tokens

    return asyncio.run(run())


@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_three_replicas_agree_and_each_signs(tiny_models: TinyModels, sampling: str) -> None:
    async with tiny_network(tiny_models.llama, [WHOLE], spares=2) as net:
        request = with_sampling(request_for(net.model), sampling)
        alone = await net.answer(request)
        both = await voted(net, request)
        assert both.tokens == alone.tokens
        assert both.outcomes == ["agreed"] * 3
        assert {vote.nodes for vote in both.votes} == {(n.identity.node_id,) for n in net.nodes}
        assert {vote.tokens for vote in both.votes} == {tokens_root(both.tokens)}
        assert both.claims == both.votes[0].hops
        assert both.attempts == 1
        await net.idle()
        assert net.unburdened()
        assert net.swarm.running == 0


async def test_a_replica_that_says_another_token_is_named_blamed_and_ended(
    tiny_models: TinyModels, right: tuple[int, ...]
) -> None:
    async with tiny_network(
        tiny_models.llama, [WHOLE], spares=2, make={1: cheat(WrongToken)}
    ) as net:
        found = await voted(net)
        assert found.tokens == right
        liar = net.nodes[1]
        vote = found.of(liar.identity.node_id)
        assert found.outcomes == ["agreed", "agreed", "dissented"]
        assert vote.count == 1
        assert vote.said is not None
        assert vote.said != right[0]
        assert vote.tokens == tokens_root([vote.said])
        assert vote.hops[0].signature_is_good()
        assert vote.hops[0].tokens == vote.tokens
        assert f"said token {vote.said} where the others say {right[0]}" in vote.reason
        reputation = net.swarm.experience.reputation
        assert [reputation.banned(n.worker.record()) for n in net.nodes] == [False, True, False]
        await net.idle()
        assert net.unburdened()
