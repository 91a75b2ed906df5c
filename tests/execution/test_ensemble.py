"""A last hop that tells distributions and is given tokens."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from tests.conftest import TinyModels
from tests.execution.test_worker import GIVEN, SESSION, one_node, opened, serves
from tests.scenarios.network import Line, tiny_network, tokens_body
from unisono.models.cache import PAGE
from unisono.wire.claims import HopClaim, tokens_root
from unisono.wire.ensemble import Given, Weighed, distribution_hash, distributions_root
from unisono.wire.messages import Claimed, Close, Failed, Finish, Refused, Tokens


async def weighed(line: Line, position: int) -> Weighed:
    message = await line.message()
    assert isinstance(message, Weighed)
    assert message.position == position
    return message


async def signed(line: Line, tokens: int) -> HopClaim:
    await line.send(Finish(SESSION, tokens))
    message, body = await line.receive()
    assert isinstance(message, Claimed)
    return message.joined(body)


async def driven(line: Line, tokens: list[int]) -> list[Weighed]:
    """Give a hop its tokens, the first at position 4; returns what it told."""
    said: list[Weighed] = []
    for position, token in enumerate(tokens, 4):
        said.append(await weighed(line, position))
        await line.send(Given(SESSION, position, token))
        message = await line.message()
        assert isinstance(message, Tokens)
        assert [(t.position, t.token) for t in message.tokens] == [(position, token)]
    return said


async def test_a_hop_goes_on_with_the_tokens_that_it_is_given_and_signs_what_it_told(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer, weigh=True, draft=False, max_tokens=3)
        said = await driven(line, [9, 8, 7])
        assert await line.is_quiet()
        claim = await signed(line, 3)
        assert claim.tokens == tokens_root([9, 8, 7])
        hashes = [distribution_hash(each.distribution) for each in said]
        assert claim.distributions == distributions_root(hashes)
        assert len({*hashes}) == 3
        await line.send(Close(SESSION))
        await serves(net)


@pytest.mark.parametrize("known", [1, 2, 3])
async def test_a_hop_that_is_given_the_answer_so_far_signs_the_same(
    tiny_models: TinyModels, known: int
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        tokens = [9, 8, 7]
        line = await opened(net, node, peer, weigh=True, draft=False, max_tokens=3)
        said = await driven(line, tokens)
        whole = await signed(line, 3)
        await line.close()
        await net.idle()
        again = await net.connect()
        line = await opened(
            net,
            node,
            again,
            GIVEN + tokens_body(*tokens[:known]),
            session="5f" * 16,
            weigh=True,
            draft=False,
            max_tokens=3,
            start=4 + known,
            resume=4 + known,
        )
        for position, token in enumerate(tokens[known:], 4 + known):
            message = await weighed(line, position)
            assert message.distribution == said[position - 4].distribution
            await line.send(Given("5f" * 16, position, token))  # type: ignore[arg-type]
            assert isinstance(await line.message(), Tokens)
        await line.send(Finish("5f" * 16, 3))  # type: ignore[arg-type]
        message, body = await line.receive()
        assert isinstance(message, Claimed)
        assert message.joined(body).distributions == whole.distributions


async def test_pages_that_an_earlier_prompt_left_change_nothing(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        prompt = tokens_body(*(i % 300 for i in range(PAGE)))
        said: list[str] = []
        for session in ("51" * 16, "52" * 16):
            shape: dict[str, Any] = {
                "session": session,
                "prompt": PAGE,
                "start": PAGE,
                "resume": PAGE,
                "positions": PAGE + 8,
            }
            line = await opened(
                net, node, peer, prompt, weigh=True, draft=False, max_tokens=3, **shape
            )
            for position in range(PAGE, PAGE + 3):
                await weighed(line, position)
                await line.send(Given(session, position, 5))  # type: ignore[arg-type]
                assert isinstance(await line.message(), Tokens)
            await line.send(Finish(session, 3))  # type: ignore[arg-type]
            message, body = await line.receive()
            assert isinstance(message, Claimed)
            claim = message.joined(body)
            assert claim.distributions is not UNSET
            said.append(claim.distributions)
            await line.close()
            await net.idle()
        assert said[0] == said[1]


@pytest.mark.parametrize(
    ("position", "token"), [(5, 9), (4, 320), (3, 0), (40, 9)], ids=["far", "id", "back", "beyond"]
)
async def test_a_token_that_is_not_due_is_refused(
    tiny_models: TinyModels, position: int, token: int
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer, weigh=True, draft=False, max_tokens=3)
        await weighed(line, 4)
        await line.send(Given(SESSION, position, token))
        message = await line.message()
        assert isinstance(message, Failed)
        assert message.code == "malformed"
        assert "4 is next" in message.message
        await line.send(Close(SESSION))
        await serves(net)


async def test_a_token_that_is_known_may_come_again_and_none_comes_after_the_end(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer, weigh=True, draft=False, max_tokens=3)
        await weighed(line, 4)
        for _ in range(2):
            await line.send(Given(SESSION, 4, 9))
        assert isinstance(await line.message(), Tokens)
        await weighed(line, 5)
        assert await line.is_quiet()


async def test_a_hop_that_chooses_is_not_given_tokens(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        node, peer = await one_node(net)
        line = await opened(net, node, peer)
        await line.tokens(8)
        await line.send(Given(SESSION, 4, 9))
        message = await line.message()
        assert isinstance(message, Refused)
        assert message.code == "malformed"
        assert (await signed(line, 8)).distributions is UNSET
        await line.send(Given("11" * 16, 4, 9))  # type: ignore[arg-type]
        message = await line.message()
        assert isinstance(message, Refused)
        assert message.code == "unknown_session"
