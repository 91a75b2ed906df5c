"""Whatever is guessed, the answer is the same: its tokens, what they are worth, and all claims."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import TinyModels
from tests.routing.test_swarm import killer
from tests.scenarios.network import (
    PROMPT,
    SAMPLINGS,
    TinyNetwork,
    request_for,
    tiny_network,
)
from unisono.execution.draft import Drafter, Guess
from unisono.execution.pace import MAX_AHEAD
from unisono.execution.session import HopSession
from unisono.models.store import StoredModel
from unisono.types import GenerationRequest, SampledToken

VOCABULARY = 320
SOURCE = (False, 1)

Say = Callable[[int], int | None]
"""The guess for a position, if there is one."""


class Guesser:
    """Takes the place of `Drafter.guess`: says what it was told to, with a chance of its choice."""

    def __init__(self, say: Say, chance: float = 0.99) -> None:
        self._say = say
        self._chance = chance
        self.asked = 0

    def guess(self, drafter: Drafter, guesses: Sequence[int]) -> Guess | None:
        self.asked += 1
        token = self._say(len(drafter._tokens) + len(guesses))
        return None if token is None else Guess(token, SOURCE, self._chance)


class Heard:
    """All of an answer that anybody can see."""

    def __init__(self, tokens: Sequence[SampledToken], claims: Sequence[Any], attempts: int):
        self.tokens = tuple(tokens)
        self.claims = [
            (c.hop, c.layers, c.positions, c.rows_in, c.rows_out, c.out_tags, c.tokens)
            for c in claims
        ]
        self.attempts = attempts

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Heard)
        return not self.differences(other)

    def differences(self, other: Heard) -> list[str]:
        """Where two answers differ."""
        found = [
            f"token {i}"
            for i, pair in enumerate(zip_longest(self.tokens, other.tokens))
            if pair[0] != pair[1]
        ]
        for mine, its in zip_longest(self.claims, other.claims):
            names = ("hop", "layers", "positions", "rows_in", "rows_out", "out_tags", "tokens")
            for name, a, b in zip(names, mine, its, strict=True):
                if a != b:
                    tags = [i for i in range(0, len(a), 3) if a[i : i + 3] != b[i : i + 3]]
                    first = tags[0] // 3 if name == "out_tags" else ""
                    found.append(f"{name} {first} of hop {mine[0]}")
        return found

    __hash__ = None  # type: ignore[assignment]


async def hear(
    net: TinyNetwork,
    request: GenerationRequest,
    top: int = -1,
    *,
    on_token: Callable[[int], None] | None = None,
    stop_after: int | None = None,
) -> Heard:
    """An answer with its log probabilities and claims, perhaps cut short."""
    answer = await net.swarm.open(request, top_logprobs=top)
    tokens: list[SampledToken] = []
    try:
        async for token in answer:
            tokens.append(token)
            if on_token is not None:
                on_token(len(tokens))
            if len(tokens) == stop_after:
                break
        claims = await answer.finish(len(tokens))
    finally:
        await answer.cancel()
    await net.idle()
    return Heard(tokens, claims, answer.attempts)


@contextmanager
def not_drafting(net: TinyNetwork) -> Iterator[None]:
    """Nobody guesses for the answers that are opened now."""
    usual = net.swarm.settings
    net.swarm.settings = replace(usual, draft=False)
    try:
        yield
    finally:
        net.swarm.settings = usual


async def undrafted(net: TinyNetwork, request: GenerationRequest, top: int = -1) -> Heard:
    """The same answer when nobody guesses."""
    with not_drafting(net):
        return await hear(net, request, top)


@asynccontextmanager
async def guessing(say: Say, chance: float = 0.99) -> Any:
    """Hops guess what `say` says, and think that it is as likely as `chance`."""
    guesser = Guesser(say, chance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafter, "guess", lambda d, guesses: guesser.guess(d, guesses))
        yield guesser


def passes_of(net: TinyNetwork, index: int) -> list[int]:
    """Counts the passes of a node from now on: the rows of each."""
    rows: list[int] = []
    compute = net.nodes[index].engine._compute

    def counted(batch: list[Any]) -> Any:
        rows.append(sum(part.count for part in batch))
        return compute(batch)

    net.nodes[index].engine._compute = counted  # type: ignore[method-assign]
    return rows


def strategies_of(truth: Sequence[int], start: int, seed: int = 0) -> dict[str, Say]:
    """Ways to guess, given the answer's tokens and the position of the first."""
    draw = random.Random(seed)
    noise = [draw.randrange(VOCABULARY) for _ in range(4096)]
    periods = [draw.random() < 0.7 for _ in range(4096)]

    def right(position: int) -> int | None:
        i = position - start
        return truth[i] if i < len(truth) else None

    def wrong(position: int) -> int:
        known = right(position)
        return 0 if known is None else (known + 1) % VOCABULARY

    return {
        "always right": right,
        "right beyond the end": lambda p: right(p) or 7,
        "always wrong": wrong,
        "random": lambda p: noise[p],
        "right now and then": lambda p: right(p) if periods[p] else noise[p],
        "wrong every fourth time": lambda p: wrong(p) if p % 4 == 0 else right(p),
        "wrong every ninth time": lambda p: wrong(p) if p % 9 == 0 else right(p),
        "right, and then nothing": lambda p: right(p) if p % 5 else None,
        "always the same": lambda p: truth[0],
    }


NAMES = tuple(strategies_of((1,), 0))


@pytest.fixture(autouse=True)
def guesses_are_always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unisono.execution.pace.Pace.smallest_chance", lambda *_: 1e-9)


@pytest.mark.parametrize("hops", [1, 2, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS)
async def test_no_way_of_guessing_changes_an_answer(
    tiny_models: TinyModels, sampling: str, hops: int
) -> None:
    request = request_for(tiny_models.llama, max_tokens=24, sampling=SAMPLINGS[sampling])
    async with tiny_network(tiny_models.llama, hops) as net:
        expected = await undrafted(net, request, 3)
        truth = [t.token for t in expected.tokens]
        assert len(truth) == 24
        for name, say in strategies_of(truth, len(PROMPT)).items():
            async with guessing(say) as guesser:
                assert await hear(net, request, 3) == expected, name
            assert guesser.asked > 0


@pytest.mark.parametrize("hops", [1, 2, 3])
async def test_no_way_of_guessing_changes_a_long_answer_over_sliding_windows(
    tiny_models: TinyModels, hops: int
) -> None:
    model = tiny_models.gemma  # windows of eight: pages are given back after 136 positions
    request = request_for(model, max_tokens=140, sampling=SAMPLINGS["penalised"])
    async with tiny_network(model, hops) as net:
        expected = await undrafted(net, request)
        truth = [t.token for t in expected.tokens]
        ways = strategies_of(truth, len(PROMPT), hops)
        for name in ("always right", "wrong every ninth time", "random"):
            async with guessing(ways[name]):
                assert await hear(net, request) == expected, name


@pytest.mark.parametrize("hops", [1, 3])
@pytest.mark.parametrize("where", [1, 7, 12])
async def test_an_answer_that_a_stop_token_ends_is_the_same(
    tiny_models: TinyModels, hops: int, where: int
) -> None:
    async with tiny_network(tiny_models.llama, hops) as net:
        whole = await undrafted(net, request_for(net.model, max_tokens=30))
        tokens = [t.token for t in whole.tokens]
        stop = next(t for i, t in enumerate(tokens) if i >= where and t not in tokens[:i])
        request = request_for(net.model, max_tokens=30, stop_tokens=(stop,))
        expected = await undrafted(net, request)
        assert [t.token for t in expected.tokens] == tokens[: tokens.index(stop) + 1]
        for name, say in strategies_of(tokens, len(PROMPT)).items():
            async with guessing(say):
                assert await hear(net, request) == expected, name


@pytest.mark.parametrize("hops", [1, 2, 3])
async def test_an_answer_that_is_cut_short_while_guesses_are_on_the_way_has_the_same_claims(
    tiny_models: TinyModels, hops: int
) -> None:
    request = request_for(tiny_models.llama, max_tokens=40)
    async with tiny_network(tiny_models.llama, hops) as net:
        truth = [t.token for t in (await undrafted(net, request)).tokens]
        for count in (1, 6):
            with not_drafting(net):
                expected = await hear(net, request, stop_after=count)
            for name in ("always right", "right now and then", "always wrong"):
                async with guessing(strategies_of(truth, len(PROMPT))[name]):
                    assert await hear(net, request, stop_after=count) == expected, name


@st.composite
def scripts(draw: st.DrawFn) -> list[int]:
    """For each position how the guess differs from the truth; 0: right; -1: no guess."""
    return draw(st.lists(st.sampled_from([0, 0, 0, 0, 1, 5, -1]), min_size=8, max_size=40))


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_whatever_the_guesses_are_answers_are_equal(tiny_models: TinyModels, hops: int) -> None:
    truths: dict[str, Heard] = {}

    @settings(
        max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        st.sampled_from(["llama", "gemma"]),
        st.sampled_from([*SAMPLINGS]),
        scripts(),
        st.integers(-1, 4),
        st.integers(1, 12),
        st.integers(1, 24),
    )
    def check(
        name: str, sampling: str, script: list[int], top: int, rows: int, length: int
    ) -> None:
        asyncio.run(compare(getattr(tiny_models, name), sampling, script, top, rows, length))

    async def compare(
        model: StoredModel, sampling: str, script: list[int], top: int, rows: int, length: int
    ) -> None:
        request = request_for(model, max_tokens=length, sampling=SAMPLINGS[sampling])
        async with tiny_network(model, hops) as net:
            key = f"{model.id}{sampling}{top}{length}"
            if key not in truths:
                truths[key] = await undrafted(net, request, top)
            expected = truths[key]

            def say(position: int) -> int | None:
                i = position - len(PROMPT)
                if i >= len(expected.tokens):
                    return script[i % len(script)]
                change = script[i % len(script)]
                return None if change < 0 else (expected.tokens[i].token + change) % VOCABULARY

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("unisono.execution.flow.DECODE_ROWS", rows)
                async with guessing(lambda p: None if (t := say(p)) is None else abs(t)):
                    assert await hear(net, request, top) == expected

    check()


@pytest.mark.parametrize("hops", [1, 2, 3])
async def test_right_guesses_save_passes_and_rounds(tiny_models: TinyModels, hops: int) -> None:
    request = request_for(tiny_models.llama, max_tokens=64)
    async with tiny_network(tiny_models.llama, hops) as net:
        plain = passes_of(net, hops - 1)
        expected = await undrafted(net, request)
        one_by_one = len(plain)
        assert one_by_one >= 64
        truth = [t.token for t in expected.tokens]
        async with guessing(strategies_of(truth, len(PROMPT))["always right"]):
            plain.clear()
            assert await hear(net, request) == expected
            # a window of rows to a pass, where one row was before
            assert len(plain) <= one_by_one / 4
            assert sum(plain) == len(PROMPT) + 63
        async with guessing(strategies_of(truth, len(PROMPT))["always wrong"]):
            plain.clear()
            assert await hear(net, request) == expected
            # a wrong guess costs rows, and no round more than without
            assert len(plain) <= one_by_one + 8


async def test_right_guesses_take_fewer_round_trips_over_a_slow_network(
    tiny_models: TinyModels,
) -> None:
    request = request_for(tiny_models.llama, max_tokens=40)
    async with tiny_network(tiny_models.llama, 2) as net:
        expected = await undrafted(net, request)
        truth = [t.token for t in expected.tokens]
        first, last = (node.identity.node_id for node in net.nodes)
        net.hub.set_delay(first, last, 0.01)
        loop = asyncio.get_running_loop()
        begun = loop.time()
        assert await undrafted(net, request) == expected
        one_by_one = loop.time() - begun
        assert one_by_one > 40 * 0.02
        async with guessing(strategies_of(truth, len(PROMPT))["always right"]):
            begun = loop.time()
            assert await hear(net, request) == expected
            assert loop.time() - begun < one_by_one / 3


async def test_no_more_is_guessed_ahead_than_sessions_may_go_back(
    tiny_models: TinyModels,
) -> None:
    request = request_for(tiny_models.llama, max_tokens=200)
    furthest = 0
    usable = HopSession.usable

    def watched(session: HopSession, arrived: Any) -> Any:
        nonlocal furthest
        ahead = arrived.position + arrived.count - len(session.tokens)
        furthest = max(furthest, ahead)
        return usable(session, arrived)

    async with tiny_network(tiny_models.llama, 2) as net:
        expected = await undrafted(net, request)
        first, last = (node.identity.node_id for node in net.nodes)
        net.hub.set_delay(first, last, 0.01)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HopSession, "usable", watched)
            async with guessing(lambda _: 5):
                short = msgspec.structs.replace(request, max_tokens=12)
                assert (await hear(net, short)).tokens == expected.tokens[:12]
            truth = [t.token for t in expected.tokens]
            async with guessing(strategies_of(truth, len(PROMPT))["wrong every ninth time"]):
                assert await hear(net, request) == expected
    assert 1 < furthest <= MAX_AHEAD


async def test_a_request_not_to_guess_is_followed(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net, guessing(lambda _: 5) as guesser:
        await undrafted(net, request_for(net.model))
        assert guesser.asked == 0
        await hear(net, request_for(net.model))
        assert guesser.asked > 0


async def test_a_guess_that_is_not_worth_its_row_is_not_sent(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.execution.pace.Pace.smallest_chance", lambda *_: 0.5)
    async with tiny_network(tiny_models.llama, 2) as net:
        expected = await undrafted(net, request_for(net.model))
        rows = passes_of(net, 0)
        async with guessing(lambda _: 5, chance=0.49):
            assert await hear(net, request_for(net.model)) == expected
            assert sum(rows) == len(PROMPT) + 11
        async with guessing(lambda _: 5, chance=0.7):  # one is, two are not
            assert await hear(net, request_for(net.model)) == expected
            assert max(r for r in rows if r < len(PROMPT)) == 2


@pytest.mark.parametrize("name", ["always right", "random", "wrong every fourth time"])
@pytest.mark.parametrize("victims", [[0], [1], [2], [0, 2], [1, 2]], ids=str)
async def test_hops_that_are_killed_while_guesses_are_on_the_way_change_nothing(
    tiny_models: TinyModels, name: str, victims: list[int]
) -> None:
    after = random.Random(f"{name}{victims}").randint(1, 28)
    sampling = random.Random(f"{victims}{name}").choice([*SAMPLINGS])
    request = request_for(tiny_models.llama, max_tokens=40, sampling=SAMPLINGS[sampling])
    async with tiny_network(tiny_models.llama, 3, spares=1) as net:
        expected = await undrafted(net, request, 2)
        truth = [t.token for t in expected.tokens]
        # slow enough that there is something on the way
        for node in net.nodes:
            for other in net.nodes:
                if node is not other:
                    net.hub.set_delay(node.identity.node_id, other.identity.node_id, 0.003)
        async with guessing(strategies_of(truth, len(PROMPT))[name]):
            heard = await hear(net, request, 2, on_token=killer(net, victims, after))
        assert heard == expected, f"killed after {after} tokens"
        assert heard.attempts >= 2


@pytest.mark.parametrize("victims", [[0], [1], [0, 1], [0, 2]], ids=str)
@pytest.mark.parametrize("model", ["llama", "gemma"])
async def test_a_gateway_that_hears_late_of_tokens_mends_a_chain_that_is_far_ahead(
    tiny_models: TinyModels, model: str, victims: list[int]
) -> None:
    stored: StoredModel = getattr(tiny_models, model)
    request = request_for(stored, max_tokens=180)
    async with tiny_network(stored, 3, spares=1) as net:
        expected = await undrafted(net, request)
        truth = [t.token for t in expected.tokens]
        for node in net.nodes[2::3]:  # whoever may be the last hop
            net.hub.set_delay(net.gateway.node_id, node.identity.node_id, 0.15)
        async with guessing(strategies_of(truth, len(PROMPT))["wrong every ninth time"]):
            heard = await hear(net, request, on_token=killer(net, victims, 20))
        assert not heard.differences(expected)
        assert 2 <= heard.attempts <= 1 + len(victims)


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_hop_that_is_killed_in_a_long_answer_over_windows_changes_nothing(
    tiny_models: TinyModels, victim: int
) -> None:
    model = tiny_models.gemma
    request = request_for(model, max_tokens=150)
    async with tiny_network(model, 3, spares=1) as net:
        expected = await undrafted(net, request)
        truth = [t.token for t in expected.tokens]
        async with guessing(strategies_of(truth, len(PROMPT))["wrong every ninth time"]):
            heard = await hear(net, request, on_token=killer(net, [victim], 110))
        assert heard == expected
        assert heard.attempts >= 2


async def test_sessions_that_guess_side_by_side_do_not_disturb_each_other(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        requests = [
            request_for(net.model, prompt=PROMPT[: 4 + i], max_tokens=20 + i, sampling=sampling)
            for i, sampling in enumerate((*SAMPLINGS.values(), *SAMPLINGS.values()))
        ]
        with not_drafting(net):
            alone = [await net.answer(r) for r in requests]
        noise = [random.Random(2).randrange(VOCABULARY) for _ in range(64)]
        async with guessing(lambda p: alone[p % 8].tokens[p % 20] if p % 3 else noise[p]):
            together = await asyncio.gather(*(net.answer(r) for r in requests))
        assert [a.tokens for a in together] == [a.tokens for a in alone]
        assert [[c.rows_out for c in a.claims] for a in together] == [
            [c.rows_out for c in a.claims] for a in alone
        ]


async def test_an_answer_that_was_given_before_is_guessed_and_takes_fewer_passes(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        request = request_for(net.model, max_tokens=40)
        rows = passes_of(net, 1)
        first = await hear(net, request)
        before = len(rows)
        rows.clear()
        assert await hear(net, request) == first
        assert len(rows) < before / 2
