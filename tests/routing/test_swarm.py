"""Answers over chains of nodes: what is opened, refused, lost and replaced."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest

from tests.conftest import TinyModels
from tests.scenarios.network import (
    PROMPT,
    SAMPLINGS,
    TinyNetwork,
    TinyNode,
    WrongToken,
    cheat,
    request_for,
    tiny_network,
    with_sampling,
)
from unisono.clock import SystemClock
from unisono.errors import (
    AnswerInterrupted,
    CapacityMissing,
    CoverageMissing,
    PeerGone,
    PeerRefused,
    UnisonoError,
)
from unisono.execution.worker import PeerLost, Worker
from unisono.routing.answer import HEDGE_SECONDS, MAX_ATTEMPTS
from unisono.types import LayerRange, ModelId, SampledToken
from unisono.wire.link import Link
from unisono.wire.messages import Open, Opened, Tokens


class Hasty(SystemClock):
    """Sleeps a hundred times shorter than it says, and remembers how long it was to."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(seconds / 100)


class Full(Worker):
    """Announces room that it does not have."""

    def _admit(self, link: Link, opened: Open, body: bytes) -> Any:
        raise PeerRefused("no room, whatever the record says", "capacity")


class FullOnce(Worker):
    """Has room when it is asked again."""

    asked = 0

    def _admit(self, link: Link, opened: Open, body: bytes) -> Any:
        type(self).asked += 1
        if type(self).asked == 1:
            raise PeerRefused("a moment please", "capacity")
        return super()._admit(link, opened, body)


@pytest.fixture
async def undisturbed(tiny_models: TinyModels) -> dict[str, tuple[int, ...]]:
    async with tiny_network(tiny_models.llama, 1) as net:
        request = request_for(net.model)
        return {s: (await net.answer(with_sampling(request, s))).tokens for s in SAMPLINGS}


async def test_an_answer_has_a_claim_of_every_hop_that_fits_the_next(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 3) as net:
        answered = await net.answer(request_for(net.model))
        claims = answered.claims
        assert [c.node for c in claims] == [n.identity.node_id for n in net.nodes]
        assert [c.layers for c in claims] == [n.layers for n in net.nodes]
        assert [c.hop for c in claims] == [0, 1, 2]
        assert {c.positions for c in claims} == {len(PROMPT) + len(answered.tokens) - 1}
        assert claims[0].rows_out == claims[1].rows_in
        assert claims[1].rows_out == claims[2].rows_in
        assert answered.attempts == 1
        await net.idle()


async def test_an_answer_that_is_cut_short_has_claims_for_what_was_accepted(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        whole = await net.answer(request_for(net.model))
        answer = await net.swarm.open(request_for(net.model))
        stream = aiter(answer)
        tokens = [(await anext(stream)).token for _ in range(3)]
        claims = await answer.finish(3)
        assert tuple(tokens) == whole.tokens[:3]
        assert {c.positions for c in claims} == {len(PROMPT) + 2}
        await net.idle()


async def test_a_stop_token_ends_the_answer_and_is_part_of_it(
    tiny_models: TinyModels, undisturbed: dict[str, tuple[int, ...]]
) -> None:
    tokens = undisturbed["seeded"]
    stop = next(t for i, t in enumerate(tokens) if i >= 3 and t not in tokens[:i])
    async with tiny_network(tiny_models.llama, 3) as net:
        answered = await net.answer(request_for(net.model, stop_tokens=(stop,)))
        assert answered.tokens == tokens[: tokens.index(stop) + 1]


async def test_a_model_that_is_not_served_and_a_layer_that_is_not_held_are_named(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, [LayerRange(0, 2)]) as net:
        other = msgspec.structs.replace(request_for(net.model), model=ModelId("11" * 32))
        with pytest.raises(CoverageMissing, match="is not served here"):
            await net.swarm.open(other)
        with pytest.raises(CoverageMissing, match="no live node holds layer 2"):
            await net.swarm.open(request_for(net.model))


async def test_nodes_without_room_are_missing_capacity_not_coverage(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2, kv_bytes=1000) as net:
        with pytest.raises(CapacityMissing, match="32 positions are needed"):
            await net.swarm.open(request_for(net.model))


async def test_a_hop_that_refuses_for_lack_of_room_is_missing_capacity(
    tiny_models: TinyModels,
) -> None:
    clock = Hasty()
    async with tiny_network(tiny_models.llama, [LayerRange(0, 2)], clock=clock) as net:
        await net.add(LayerRange(2, 4), worker=Full)
        with pytest.raises(CapacityMissing, match="no room, whatever the record says"):
            await net.swarm.open(request_for(net.model))
        backed_off = [s for s in clock.slept if s not in (1.0, HEDGE_SECONDS)]
        assert len(backed_off) == MAX_ATTEMPTS - 1
        assert backed_off == sorted(backed_off)
        await net.idle()
        assert net.unburdened()


async def test_a_hop_that_refuses_is_passed_over_at_once_if_another_can_do_it(
    tiny_models: TinyModels,
) -> None:
    clock = Hasty()
    async with tiny_network(tiny_models.llama, [LayerRange(0, 2)], clock=clock) as net:
        for _ in range(3):
            await net.add(LayerRange(2, 4), worker=Full)
        busy = await net.add(LayerRange(2, 4))
        net.burden(busy)  # the last choice
        answered = await net.answer(request_for(net.model))
        assert answered.claims[1].node == busy.identity.node_id
        assert not [s for s in clock.slept if s not in (1.0, HEDGE_SECONDS)]


async def test_a_hop_that_refuses_is_asked_again_later(tiny_models: TinyModels) -> None:
    FullOnce.asked = 0
    async with tiny_network(tiny_models.llama, 2, clock=Hasty(), worker=FullOnce) as net:
        assert len((await net.answer(request_for(net.model))).tokens) == 12


@pytest.mark.parametrize("dead", [0, 1, 2])
async def test_a_hop_that_cannot_be_reached_is_replaced_before_the_answer_begins(
    tiny_models: TinyModels, undisturbed: dict[str, tuple[int, ...]], dead: int
) -> None:
    async with tiny_network(tiny_models.llama, 3, spares=1) as net:
        net.nodes[dead].kill()
        net.burden(net.nodes[dead + 3])
        answered = await net.answer(request_for(net.model))
        assert answered.tokens == undisturbed["seeded"]
        assert answered.attempts == 1
        assert answered.claims[dead].node == net.nodes[dead + 3].identity.node_id
        assert net.nodes[dead].identity.node_id not in [r.node for r in net.members.records()]


def killer(net: TinyNetwork, victims: list[int], after: int) -> Any:
    """Kills the nodes that serve some hops once there are `after` tokens."""

    def on_token(count: int) -> None:
        if count == after:
            (chain,) = [a.chain for a in net.swarm._answers]
            assert chain is not None
            doomed = [chain.hops[v].node for v in victims]
            for node in net.nodes:
                if node.identity.node_id in doomed:
                    node.kill()

    return on_token


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("victims", [[0], [1], [2], [0, 2], [0, 1, 2]], ids=str)
async def test_hops_killed_in_the_middle_are_replaced_and_no_token_changes(
    tiny_models: TinyModels,
    undisturbed: dict[str, tuple[int, ...]],
    victims: list[int],
    sampling: str,
) -> None:
    after = random.Random(f"{victims}{sampling}").randint(1, 11)
    async with tiny_network(tiny_models.llama, 3, spares=1) as net:
        request = with_sampling(request_for(net.model), sampling)
        answered = await net.answer(request, on_token=killer(net, victims, after))
        assert answered.tokens == undisturbed[sampling], f"killed after {after} tokens"
        assert answered.attempts >= 2
        dead = {
            node.identity.node_id for node in net.nodes if node.identity.node_id in net.hub._dead
        }
        assert len(dead) == len(victims)
        assert not dead & {c.node for c in answered.claims}
        await net.idle()


async def test_an_answer_survives_one_loss_after_another(
    tiny_models: TinyModels, undisturbed: dict[str, tuple[int, ...]]
) -> None:
    async with tiny_network(tiny_models.llama, 2, spares=3) as net:
        kills = [killer(net, [i % 2], after) for i, after in enumerate((2, 5, 8))]

        def on_token(count: int) -> None:
            for kill in kills:
                kill(count)

        answered = await net.answer(request_for(net.model), on_token=on_token)
        assert answered.tokens == undisturbed["seeded"]
        assert answered.attempts == 4
        await net.idle()


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_hop_killed_before_it_signs_is_replaced_for_its_claim(
    tiny_models: TinyModels, undisturbed: dict[str, tuple[int, ...]], victim: int
) -> None:
    async with tiny_network(tiny_models.llama, 3, spares=1) as net:
        answered = await net.answer(
            request_for(net.model), before_finish=lambda: killer(net, [victim], 0)(0)
        )
        assert answered.tokens == undisturbed["seeded"]
        assert answered.attempts == 2
        assert all(c.signature_is_good() for c in answered.claims)
        assert {c.session for c in answered.claims} == {answered.claims[0].session}
        await net.idle()


class Unsigning(Worker):
    """Vanishes when it is to sign."""

    node: TinyNode

    def _finish(self, session: Any, tokens: int) -> None:
        self._transport._network.kill(self._identity.node_id)  # type: ignore[attr-defined]


async def test_a_hop_that_vanishes_while_the_others_sign_is_replaced(
    tiny_models: TinyModels, undisturbed: dict[str, tuple[int, ...]]
) -> None:
    async with tiny_network(tiny_models.llama, [LayerRange(0, 2)]) as net:
        await net.add(LayerRange(2, 4), worker=Unsigning)
        spare = await net.add(LayerRange(2, 4))
        net.burden(spare)
        answered = await net.answer(request_for(net.model))
        assert answered.attempts == 2
        assert answered.tokens == undisturbed["seeded"]
        assert answered.claims[1].node == spare.identity.node_id
        await net.idle()


class Mute(Worker):
    """Never signs, and stays."""

    def _finish(self, session: Any, tokens: int) -> None:
        return


async def test_a_hop_that_does_not_sign_in_time_is_replaced(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.routing.chain.CLAIM_SECONDS", 0.1)
    async with tiny_network(tiny_models.llama, [LayerRange(0, 2)]) as net:
        await net.add(LayerRange(2, 4), worker=Mute)
        spare = await net.add(LayerRange(2, 4))
        net.burden(spare)
        answered = await net.answer(request_for(net.model))
        assert answered.claims[1].node == spare.identity.node_id


class Forger(Worker):
    """Signs a claim to more than it did."""

    def _finish(self, session: Any, tokens: int) -> None:
        claim = session.claim

        def longer(tokens: int, identity: Any) -> Any:
            honest = claim(tokens, identity)
            return msgspec.structs.replace(honest, request="00" * 32).signed_by(identity)

        session.claim = longer
        super()._finish(session, tokens)


async def test_a_hop_that_signs_something_else_is_replaced(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, [LayerRange(0, 2)]) as net:
        forger = await net.add(LayerRange(2, 4), worker=Forger)
        spare = await net.add(LayerRange(2, 4))
        net.burden(spare)
        answered = await net.answer(request_for(net.model))
        assert answered.claims[1].node == spare.identity.node_id
        assert forger.identity.node_id not in [r.node for r in net.members.records()]


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_loss_that_nobody_can_replace_interrupts_the_answer_and_ends_it_everywhere(
    tiny_models: TinyModels, victim: int
) -> None:
    async with tiny_network(tiny_models.llama, 3) as net:
        with pytest.raises(AnswerInterrupted, match="lost after 4 tokens and none replaces it"):
            await net.answer(request_for(net.model), on_token=killer(net, [victim], 4))
        await net.idle()
        assert net.unburdened()
        assert not net.swarm._answers


async def test_a_replacement_that_computes_other_tokens_does_not_go_unnoticed(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, [LayerRange(0, 4)]) as net:
        liar = await net.add(LayerRange(0, 4), make=cheat(WrongToken))
        net.burden(liar)
        with pytest.raises(AnswerInterrupted, match="another last token"):
            await net.answer(request_for(net.model), before_finish=net.nodes[0].kill)
        await net.idle()


class Breaking(Worker):
    """Its engine fails after the prompt."""

    def _open(self, link: Link, opened: Open, body: bytes) -> None:
        def broken(*_: Any) -> Any:
            raise RuntimeError("out of memory")

        self._engine._compute = broken  # type: ignore[method-assign]
        super()._open(link, opened, body)


@pytest.mark.parametrize("block", [LayerRange(0, 2), LayerRange(2, 4)], ids=str)
async def test_a_hop_with_a_defect_of_its_own_is_replaced(
    tiny_models: TinyModels, undisturbed: dict[str, tuple[int, ...]], block: LayerRange
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        (same,) = [node for node in net.nodes if node.layers == block]
        net.burden(same)
        broken = await net.add(block, worker=Breaking)
        answered = await net.answer(request_for(net.model))
        assert answered.tokens == undisturbed["seeded"]
        assert answered.attempts == 2
        assert broken.identity.node_id not in [r.node for r in net.members.records()]


class Slanderer(Worker):
    """Blames a node that has nothing to do with it."""

    victim: Any = None

    def _report(self, session: Any, error: UnisonoError) -> None:
        super()._report(session, PeerLost(self.victim, PeerGone("it was the other one")))

    def _open(self, link: Link, opened: Open, body: bytes) -> None:
        self._engine._compute = lambda *_: 1 / 0  # type: ignore[method-assign]
        super()._open(link, opened, body)


async def test_a_hop_cannot_blame_a_node_outside_its_chain(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, [LayerRange(0, 4)]) as net:
        (honest,) = net.nodes
        Slanderer.victim = honest.identity.node_id
        net.burden(honest)
        slanderer = await net.add(LayerRange(0, 4), worker=Slanderer)
        answered = await net.answer(request_for(net.model))
        assert answered.claims[0].node == honest.identity.node_id
        assert [r.node for r in net.members.records()] == [honest.identity.node_id]
        assert slanderer.worker.sessions == 0


class Eager(Worker):
    """Tells the gateway a token that was not its turn."""

    def _open(self, link: Link, opened: Open, body: bytes) -> None:
        link.post(Opened(opened.session))
        link.post(Tokens(opened.session, (SampledToken(opened.start + 1, 5),)))


async def test_a_token_that_skips_a_position_loses_the_hop_its_place(
    tiny_models: TinyModels, undisturbed: dict[str, tuple[int, ...]]
) -> None:
    async with tiny_network(tiny_models.llama, 1) as net:
        net.burden(net.nodes[0])
        await net.add(LayerRange(0, 4), worker=Eager)
        answered = await net.answer(request_for(net.model))
        assert answered.tokens == undisturbed["seeded"]
        assert answered.attempts == 2


class Frozen(Worker):
    """Opens a session and then does not even answer pings."""

    def _open(self, link: Link, opened: Open, body: bytes) -> None:
        link.post(Opened(opened.session))
        link.post = lambda *_: None  # type: ignore[method-assign]


async def test_a_hop_that_answers_no_ping_is_replaced(
    tiny_models: TinyModels,
    undisturbed: dict[str, tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unisono.wire.link.PING_SECONDS", 0.05)
    monkeypatch.setattr("unisono.wire.link.SILENT_SECONDS", 0.4)
    async with tiny_network(tiny_models.llama, 1) as net:
        net.burden(net.nodes[0])
        await net.add(LayerRange(0, 4), worker=Frozen)
        answered = await net.answer(request_for(net.model))
        assert answered.tokens == undisturbed["seeded"]
        assert answered.attempts == 2


async def test_closing_the_swarm_ends_what_runs(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        answers = [await net.swarm.open(request_for(net.model, max_tokens=900)) for _ in range(3)]
        assert net.sessions == 6
        await net.swarm.close()
        await net.idle()
        assert len(answers) == 3


async def test_an_opening_that_is_given_up_leaves_no_session(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Worker):
        def _open(self, link: Link, opened: Open, body: bytes) -> None:
            asyncio.get_running_loop().call_later(0.5, super()._open, link, opened, body)

    async with tiny_network(tiny_models.llama, [LayerRange(2, 4)]) as net:
        await net.add(LayerRange(0, 2), worker=Slow)
        opening = asyncio.create_task(net.swarm.open(request_for(net.model)))
        await asyncio.sleep(0.1)
        assert net.sessions == 1
        opening.cancel()
        await asyncio.sleep(0)
        await asyncio.wait({opening})
        await net.idle()
        assert net.unburdened()


async def test_answers_spread_over_nodes_that_hold_the_same(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 1, spares=2) as net:
        answers = [await net.swarm.open(request_for(net.model)) for _ in range(6)]
        assert [node.worker.sessions for node in net.nodes] == [2, 2, 2]
        for answer in answers:
            await answer.cancel()


async def test_a_busy_node_does_not_keep_the_others_of_its_chains_from_sharing_the_work(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, [LayerRange(0, 2)]) as net:
        many = [await net.add(LayerRange(2, 4)) for _ in range(3)]
        answers = [await net.swarm.open(request_for(net.model)) for _ in range(6)]
        assert [node.worker.sessions for node in many] == [2, 2, 2]
        for answer in answers:
            await answer.cancel()


async def test_the_state_of_every_node_can_be_seen(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        net.members.suspect(net.nodes[1].identity.node_id)
        status = {s.node: s for s in net.swarm.nodes()}
        first, second = (status[n.identity.node_id] for n in net.nodes)
        assert (first.alive, second.alive) == (True, False)
        assert (first.layers, second.layers) == (LayerRange(0, 2), LayerRange(2, 4))
        assert first.address == str(net.nodes[0].address)
        assert first.free_positions == net.nodes[0].worker.free_positions


async def test_a_node_that_leaves_hands_its_answers_over_and_no_token_changes(
    tiny_models: TinyModels, undisturbed: dict[str, tuple[int, ...]]
) -> None:
    async with tiny_network(tiny_models.llama, 3, spares=1) as net:
        leavers: list[asyncio.Task[None]] = []

        def on_token(count: int) -> None:
            if count == 2:
                (chain,) = [a.chain for a in net.swarm._answers]
                assert chain is not None
                (node,) = [n for n in net.nodes if n.identity.node_id == chain.hops[1].node]
                leavers.append(asyncio.create_task(node.worker.drain(20)))

        request = request_for(net.model, max_tokens=200)
        whole = (await net.answer(request)).tokens
        answered = await net.answer(request, on_token=on_token)
        assert answered.tokens == whole
        await net.idle()
        (leaver,) = leavers
        await asyncio.wait_for(leaver, 5)


class Late(Worker):
    """Gives its first token only after long."""

    def _open(self, link: Link, opened: Open, body: bytes) -> None:
        link.post(Opened(opened.session))


async def test_a_late_first_token_is_asked_of_other_nodes_too(
    tiny_models: TinyModels,
    undisturbed: dict[str, tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unisono.routing.answer.HEDGE_SECONDS", 0.2)
    async with tiny_network(tiny_models.llama, 1) as net:
        assert (await net.answer(request_for(net.model))).tokens == undisturbed["seeded"]
        net.burden(net.nodes[0])
        await net.add(LayerRange(0, 4), worker=Late)
        answered = await net.answer(request_for(net.model))
        assert answered.tokens == undisturbed["seeded"]
        assert answered.claims[0].node == net.nodes[0].identity.node_id
        await asyncio.sleep(0.01)
        assert net.swarm.hedged == 0
