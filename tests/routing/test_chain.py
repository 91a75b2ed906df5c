"""A chain as its gateway sees it: opened, mended, and told apart from hops that were replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from tests.conftest import TinyModels
from tests.routing.records import MODEL, record
from tests.routing.test_swarm import killer
from tests.scenarios.network import Answered, TinyNetwork, TinyNode, request_for, tiny_network
from unisono.errors import AnswerInterrupted, PeerCheating, PeerGone, WireError
from unisono.execution.worker import Worker
from unisono.routing.chain import Chain
from unisono.routing.replies import HopLost, HopRefused
from unisono.types import (
    GenerationRequest,
    LayerRange,
    NodeId,
    PeerAddress,
    SampledToken,
    SessionId,
)
from unisono.wire.frames import encode_frame
from unisono.wire.messages import (
    Close,
    Failed,
    Finish,
    Message,
    Open,
    Opened,
    Pong,
    Refused,
    Rewire,
    Rewired,
    Rows,
    Tokens,
)
from unisono.wire.records import NodeRecord

GATEWAY = NodeId("6a" * 32)
REQUEST = GenerationRequest(MODEL, (1, 2, 3, 4), max_tokens=8, stop_tokens=(99,))


# --- with scripted hops -------------------------------------------------------------------------


class Hop:
    """A link with a hop that answers as it is told to: at once, in the way it is written here."""

    def __init__(self, world: World, node: NodeId) -> None:
        self.peer = node
        self.problem: WireError | None = None
        self.users: set[Any] = set()
        self.posted: list[tuple[Message, bytes]] = []
        self.wanted = 0
        self.earliest = 0
        """What it says when it is rewired."""
        self.reply: Callable[[Message], Message | None] = self._reply
        self._world = world

    def _reply(self, message: Message) -> Message | None:
        if isinstance(message, Open):
            return Opened(message.session)
        if isinstance(message, Rewire):
            return Rewired(message.session, self.wanted, self.earliest)
        return None

    def post(self, message: Message, body: bytes = b"") -> None:
        if self.problem is not None:
            return
        encode_frame(message, body)  # within the bounds of messages
        self.posted.append((message, body))
        reply = self.reply(message)
        if reply is not None:
            asyncio.get_running_loop().call_soon(self.say, reply)

    def say(self, message: Message, body: bytes = b"") -> None:
        """The gateway receives a message of this hop."""
        if self.problem is None:
            self._world.chain.take(self, message, memoryview(body))  # type: ignore[arg-type]

    def lose(self) -> None:
        """The link is gone."""
        self.problem = PeerGone("it vanished")
        self._world.chain.lost_link(self)  # type: ignore[arg-type]

    def take(self) -> list[Message]:
        """What was posted since the last time."""
        found = [m for m, _ in self.posted]
        self.posted.clear()
        return found


class World:
    """A chain of scripted hops, with a spare for each."""

    def __init__(self, hops: int, generated: Sequence[int] = ()) -> None:
        self.records = [record(i, i % hops, i % hops + 1) for i in range(2 * hops)]
        self.hops: dict[NodeId, Hop] = {r.node: Hop(self, r.node) for r in self.records}
        self.unreachable: set[NodeId] = set()
        self.chain = Chain(
            self,  # type: ignore[arg-type]
            GATEWAY,
            self.records[:hops],
            REQUEST,
            generated,
            2,
        )

    @property
    def session(self) -> SessionId:
        return self.chain.session

    def __getitem__(self, index: int) -> Hop:
        return self.hops[self.records[index].node]

    def spare(self, index: int) -> NodeRecord:
        return self.records[len(self.records) // 2 + index]

    async def to(self, address: PeerAddress) -> Hop:
        """What `Links.to` does."""
        await asyncio.sleep(0)
        if address.node in self.unreachable:
            raise PeerGone("nobody answers")
        return self.hops[address.node]

    async def mend(self, *lost: int) -> None:
        """Replace hops by their spares, and forget what was said before."""
        for hop in self.hops.values():
            hop.take()
        await self.chain.replace({i: self.spare(i) for i in lost})

    def say_tokens(self, index: int, first: int, *tokens: int) -> None:
        self[index].say(
            Tokens(self.session, tuple(SampledToken(first + i, t) for i, t in enumerate(tokens)))
        )


async def opened(hops: int, generated: Sequence[int] = ()) -> World:
    world = World(hops, generated)
    await world.chain.open()
    return world


async def test_a_chain_is_opened_as_a_ring() -> None:
    world = await opened(3, (5, 6))
    opens = [world[i].take()[0] for i in range(3)]
    for i, message in enumerate(opens):
        assert isinstance(message, Open)
        assert (message.hop, message.hops) == (i, 3)
        assert message.previous == world[(i - 1) % 3].peer
        assert message.next == world.records[(i + 1) % 3].address
        assert (message.prompt, message.start, message.positions) == (4, 6, 12)
        assert message.resume == (6 if i == 2 else 0)
        assert message.draft
        assert message.top_logprobs == (2 if i == 2 else -1)
    assert all(world.chain in world[i].users for i in range(3))
    world.chain.close()
    world.chain.close()
    assert [world[i].take() for i in range(3)] == [[Close(world.session)]] * 3
    assert not any(world[i].users for i in range(3))


async def test_a_lone_hop_has_no_neighbours_and_is_not_mended_but_lost() -> None:
    world = await opened(1)
    (message,) = world[0].take()
    assert isinstance(message, Open)
    assert (message.previous, message.next) == (None, None)
    world.say_tokens(0, 4, 5)
    assert (await world.chain.next()).token == 5
    world[0].lose()
    with pytest.raises(HopLost, match="vanished"):
        await world.chain.next()
    assert set(world.chain.lost) == {0}


@pytest.mark.parametrize("index", [0, 1, 2])
async def test_who_refuses_or_cannot_be_reached_or_says_nothing_is_named(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unisono.routing.chain.OPEN_SECONDS", 0.05)
    world = World(3)
    hop = world[index]
    hop.reply = lambda m: Refused("capacity", "full", world.session)
    with pytest.raises(HopRefused, match="full") as refused:
        await world.chain.open()
    assert (refused.value.node, refused.value.code) == (hop.peer, "capacity")
    world = World(3)
    world.unreachable.add(hop.peer)
    with pytest.raises(HopLost, match="nobody answers") as lost:
        await world.chain.open()
    assert lost.value.node == hop.peer
    world = World(3)
    world[index].reply = lambda m: None
    with pytest.raises(HopLost, match="did not open the session") as lost:
        await world.chain.open()
    assert lost.value.node == hop.peer


async def test_a_hop_that_is_lost_while_the_chain_opens_is_noticed_at_once() -> None:
    world = World(3)
    world[1].reply = lambda m: world[1].lose()
    with pytest.raises(HopLost) as lost:
        async with asyncio.timeout(2):
            await world.chain.open()
    assert lost.value.node == world[1].peer


async def test_a_listener_hears_what_waited_and_then_everything_at_once() -> None:
    world = await opened(2)
    world.say_tokens(1, 4, 5)
    heard: list[object] = []
    world.chain.listen(heard.append)
    world.say_tokens(1, 5, 6, 7)
    assert [event.token for event in heard if isinstance(event, SampledToken)] == [5, 6, 7]
    world[0].lose()
    assert isinstance(heard[-1], HopLost)


async def test_tokens_come_in_order_once_and_from_the_last_hop_only() -> None:
    world = await opened(2)
    world.say_tokens(1, 4, 5, 6)
    world.say_tokens(1, 4, 5, 6)  # again: known
    world.say_tokens(1, 5, 6, 7)
    assert [(await world.chain.next()).token for _ in range(3)] == [5, 6, 7]
    for position, token in ((8, 1), (4, 6), (2, 9)):
        with pytest.raises(PeerCheating, match=f"token for position {position}"):
            world.say_tokens(1, position, token)
    with pytest.raises(PeerCheating, match="not the last"):
        world.say_tokens(0, 7, 1)
    world.say_tokens(1, 7, 99)
    assert world.chain.ended
    with pytest.raises(PeerCheating, match="position 8"):
        world.say_tokens(1, 8, 1)


async def test_what_was_not_asked_for_is_cheating() -> None:
    world = await opened(2)
    rows = Rows(world.session, 0, b"\x04", (), 3, 0)
    for message in (Rewired(world.session, 3), rows, Pong(1), Finish(world.session, 1)):
        with pytest.raises(PeerCheating):
            world[0].say(message)
    world[0].say(Opened(world.session))  # once more, which nobody waits for


# where a ring of four is cut, and who then gets new neighbours
LOST = [(0,), (1,), (3,), (0, 1), (1, 2), (2, 3), (0, 3), (0, 2), (1, 3), (0, 1, 3), (1, 2, 3)]


@pytest.mark.parametrize("lost", LOST, ids=str)
async def test_lost_hops_are_replaced_and_only_their_neighbours_are_rewired(
    lost: tuple[int, ...],
) -> None:
    world = await opened(4)
    world.say_tokens(3, 4, 5, 6, 7)  # tokens 4 to 6 are known
    links = [world[i] for i in range(4)]
    for i in range(4):
        links[i].wanted = 7 if i == 0 else 9  # a first hop wants tokens, others have guesses too
    for i in lost:
        links[i].lose()
    assert set(world.chain.lost) == set(lost)
    await world.mend(*lost)
    assert world.chain.lost == {}
    nodes = [hop.node for hop in world.chain.hops]
    assert nodes == [(world.spare(i).node if i in lost else links[i].peer) for i in range(4)]
    for i in range(4):
        before, after = (i - 1) % 4, (i + 1) % 4
        link = world.hops[nodes[i]]
        said = link.take()
        if i in lost:
            (message,) = said
            assert isinstance(message, Open)
            assert message.session == world.session
            assert (message.hop, message.start) == (i, 7)
            assert message.previous == nodes[before]
            assert message.next == world.chain.hops[after].address
            # rows behind the last known token may have been guesses: they are sent again
            fresh = 7 if after == 0 else 0
            kept = 7 if after == 0 else 6
            assert message.resume == (fresh if after in lost else kept)
            continue
        expected: list[Message] = []
        if before in lost:
            expected.append(Rewire(world.session, nodes[before], None, 0))
        if after in lost:
            address = world.chain.hops[after].address
            # a new first hop was given the tokens that were known
            expected.append(Rewire(world.session, None, address, 7 if after == 0 else 0))
        assert said == expected
    for i in lost:
        assert world.chain not in links[i].users
        assert world.chain in world.hops[nodes[i]].users
    world.say_tokens(4 + 3 if 3 in lost else 3, 7, 8)
    assert [(await world.chain.next()).token for _ in range(4)] == [5, 6, 7, 8]


async def test_rows_that_a_hop_lacks_are_sent_from_where_it_lacks_them() -> None:
    world = await opened(3)
    world.say_tokens(2, 4, 5, 6, 7)
    world[1].lose()
    world[2].wanted = 2  # still with the prompt
    await world.mend(1)
    (message,) = world[4].take()
    assert isinstance(message, Open)
    assert message.resume == 2
    world = await opened(3)
    world.say_tokens(2, 4, 5, 6, 7)
    world[2].lose()
    world[0].wanted = 5  # has not heard of all the tokens that the gateway knows
    await world.mend(2)
    (message,) = world[5].take()
    assert isinstance(message, Open)
    assert message.resume == 5


async def test_rows_that_a_hop_has_for_good_are_not_sent_again_to_one_that_is_far_ahead() -> None:
    world = World(4)
    request = msgspec.structs.replace(REQUEST, max_tokens=300)
    world.chain = Chain(world, GATEWAY, world.records[:4], request, (), -1)  # type: ignore[arg-type]
    await world.chain.open()
    world.say_tokens(3, 4, 5, 6, 7)
    world[1].lose()
    world[2].wanted = 200  # the gateway knows seven tokens, since it hears of them late
    world[2].earliest = 150
    await world.mend(1)
    (message,) = world[5].take()
    assert isinstance(message, Open)
    assert (message.start, message.resume) == (7, 150)


async def test_late_messages_of_a_hop_that_was_replaced_are_ignored() -> None:
    world = await opened(3)
    world.say_tokens(2, 4, 5)
    old = world[2]
    world.chain.lose(2, HopLost("it computed too slowly", old.peer))  # its link is as good as ever
    await world.mend(2)
    assert old.take() == [Close(world.session)]
    for message in (
        Tokens(world.session, (SampledToken(5, 77),)),
        Tokens(world.session, (SampledToken(9, 77),)),
        Failed(world.session, "failed", "late", None),
        Failed(world.session, "peer_lost", "late", world[1].peer),
        Refused("unknown_session", "late", world.session),
        Opened(world.session),
        Rewired(world.session, 3),
    ):
        old.say(message)
    old.lose()
    # nor does it matter who still complains of it
    world[0].say(Failed(world.session, "peer_lost", "it is gone", old.peer))
    world[1].say(Failed(world.session, "peer_lost", "it is gone", old.peer))
    assert world.chain.lost == {}
    world.say_tokens(5, 5, 6)
    assert [(await world.chain.next()).token for _ in range(2)] == [5, 6]


async def test_a_hop_that_is_blamed_is_replaced_if_it_is_in_the_chain_and_the_speaker_if_not() -> (
    None
):
    world = await opened(3)
    world[1].say(Failed(world.session, "peer_lost", "bad rows", world[0].peer))
    assert set(world.chain.lost) == {0}
    world = await opened(3)
    world[1].say(Failed(world.session, "peer_lost", "bad rows", world[4].peer))
    assert set(world.chain.lost) == {1}
    world = await opened(3)
    world[1].say(Failed(world.session, "failed", "a defect", None))
    assert set(world.chain.lost) == {1}
    world[1].say(Failed(world.session, "failed", "again", None))
    with pytest.raises(HopLost, match="a defect"):
        await world.chain.next()


@pytest.mark.parametrize("victim", [0, 2, 3])
@pytest.mark.parametrize("moment", ["rewiring", "reaching", "opening", "rewiring the other side"])
async def test_one_more_loss_while_a_chain_is_mended_is_noticed_at_once(
    moment: str, victim: int
) -> None:
    world = await opened(4)
    world[1].lose()
    doomed = world[victim]
    if moment == "rewiring":
        world[2].reply = lambda m: doomed.lose()
    elif moment == "reaching":

        async def to(address: PeerAddress) -> Hop:
            doomed.lose()
            await asyncio.sleep(0)
            return world.hops[address.node]

        world.to = to  # type: ignore[method-assign]
    elif moment == "opening":
        world.hops[world.spare(1).node].reply = lambda m: doomed.lose()
    else:
        world[0].reply = lambda m: doomed.lose()

    async def go_on() -> None:
        async with asyncio.timeout(2):
            await world.mend(1)
            await world.chain.next()

    with pytest.raises(HopLost) as error:
        await go_on()
    assert error.value.node == doomed.peer
    assert world.chain.lost[victim].node == doomed.peer
    # both can be replaced now, whatever came of the first attempt
    for hop in world.hops.values():
        hop.reply = hop._reply
    async with asyncio.timeout(2):
        await world.mend(*world.chain.lost)
    assert world.chain.lost == {}


async def test_a_replacement_that_refuses_is_named_and_its_place_is_still_to_be_filled() -> None:
    world = await opened(3)
    world[0].lose()
    world[2].lose()
    world[3].reply = lambda m: Refused("capacity", "full", world.session)
    with pytest.raises(HopRefused) as refused:
        await world.mend(0, 2)
    assert refused.value.node == world[3].peer
    assert set(world.chain.lost) == {0, 2}
    at_fault = {i for i, lost in world.chain.lost.items() if lost.at_fault}
    assert at_fault == {0}  # the other only could not take its place


async def test_a_journal_that_is_gone_is_beyond_repair() -> None:
    world = await opened(3)
    world[1].lose()
    world[0].reply = lambda m: Failed(world.session, "journal_gone", "begins at 100", None)
    with pytest.raises(HopLost, match="begins at 100"):
        await world.mend(1)
    assert world.chain.beyond_repair


# --- with real ones -----------------------------------------------------------------------------


async def reference(tiny_models: TinyModels, **changes: Any) -> Answered:
    """The answer that nothing disturbs."""
    async with tiny_network(tiny_models.llama, 4) as net:
        return await net.answer(request_for(net.model, **changes))


def same(found: Answered, expected: Answered) -> None:
    """The same tokens and rows."""
    assert found.tokens == expected.tokens
    parts = [
        [(c.positions, c.rows_in, c.rows_out, c.out_tags, c.tokens) for c in a.claims]
        for a in (found, expected)
    ]
    assert parts[0] == parts[1]


def chain_of(net: TinyNetwork) -> Chain:
    (answer,) = net.swarm._answers
    assert answer.chain is not None
    return answer.chain


def node_at(net: TinyNetwork, index: int) -> TinyNode:
    """Who serves a hop of the only answer."""
    (node,) = [n for n in net.nodes if n.identity.node_id == chain_of(net).hops[index].node]
    return node


@pytest.mark.parametrize("lost", [(0, 1), (1, 2), (3, 0), (0, 2), (1, 3), (0, 1, 2)], ids=str)
async def test_several_hops_lost_at_once_are_mended_and_the_others_keep_what_they_have(
    tiny_models: TinyModels, lost: tuple[int, ...]
) -> None:
    expected = await reference(tiny_models, max_tokens=24)
    async with tiny_network(tiny_models.llama, 4, spares=1) as net:
        kill = killer(net, list(lost), 9)
        before: list[Any] = []

        def on_token(count: int) -> None:
            if count == 9:
                before.extend((chain_of(net).session, [h.node for h in chain_of(net).hops]))
            kill(count)

        answered = await net.answer(request_for(net.model, max_tokens=24), on_token=on_token)
        same(answered, expected)
        session, nodes = before
        assert {c.session for c in answered.claims} == {session}  # mended, not begun anew
        kept = [i for i in range(4) if answered.claims[i].node == nodes[i]]
        assert kept == [i for i in range(4) if i not in lost]
        await net.idle()


def dying(moment: type[Message], doomed: Callable[[], TinyNode]) -> type[Worker]:
    """A worker whose network loses a node when it is told something."""

    class Dying(Worker):
        done = False

        def _receive(self, link: Any, message: Message, body: memoryview) -> None:
            if isinstance(message, moment) and not Dying.done:
                Dying.done = True
                doomed().kill()
            super()._receive(link, message, body)

    return Dying


@pytest.mark.parametrize("second", [0, 2, 3, "the replacement"])
@pytest.mark.parametrize("moment", [Open, Rewire])
async def test_a_loss_while_another_is_mended_changes_nothing(
    tiny_models: TinyModels, moment: type[Message], second: Any
) -> None:
    expected = await reference(tiny_models, max_tokens=24)
    async with tiny_network(tiny_models.llama, 4) as net:
        blocks = [LayerRange(i, i + 1) for i in range(4)]
        net_nodes: list[TinyNode] = []

        def doomed() -> TinyNode:
            return spare if second == "the replacement" else net_nodes[second]

        if moment is Open:  # the replacement learns of the session, and then another goes
            spare = await net.add(blocks[1], worker=dying(Open, doomed))
        else:
            spare = await net.add(blocks[1])
        for block in blocks:
            net.burden(await net.add(block), 20)
        net.burden(spare, 10)

        def on_token(count: int) -> None:
            if count != 9:
                return
            net_nodes.extend(node_at(net, i) for i in range(4))
            if moment is Rewire:
                watcher = dying(Rewire, doomed)
                hop = net_nodes[2]
                receive = hop.worker._receive

                def watched(link: Any, message: Message, body: memoryview) -> None:
                    if isinstance(message, Rewire) and not watcher.done:  # type: ignore[attr-defined]
                        watcher.done = True  # type: ignore[attr-defined]
                        doomed().kill()
                    receive(link, message, body)

                hop.worker._receive = watched  # type: ignore[method-assign]
                for link in hop.worker._links.links():
                    link._receive = watched
            net_nodes[1].kill()

        answered = await net.answer(request_for(net.model, max_tokens=24), on_token=on_token)
        same(answered, expected)
        assert len(net.hub._dead) == 2
        await net.idle()


async def test_when_a_journal_is_gone_a_whole_new_chain_goes_on(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await reference(tiny_models, max_tokens=24)
    monkeypatch.setattr("unisono.execution.outlet.JOURNAL_BYTES", 2000)
    async with tiny_network(tiny_models.llama, 4) as net:
        await net.add(LayerRange(1, 2))  # a spare for the hop that is lost, and for no other
        sessions: list[str] = []

        def on_token(count: int) -> None:
            if count == 9:
                sessions.append(chain_of(net).session)
                node_at(net, 1).kill()

        answered = await net.answer(request_for(net.model, max_tokens=24), on_token=on_token)
        same(answered, expected)
        assert answered.claims[0].session not in sessions
        assert answered.attempts >= 2
        await net.idle()


async def test_a_lone_hop_that_is_lost_is_replaced_by_a_new_chain(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 1, spares=1) as net:
        expected = await net.answer(request_for(net.model, max_tokens=24))
        answered = await net.answer(
            request_for(net.model, max_tokens=24), on_token=killer(net, [0], 9)
        )
        same(answered, expected)
        assert answered.attempts == 2
        with pytest.raises(AnswerInterrupted):
            await net.answer(request_for(net.model), on_token=killer(net, [0], 3))
        await net.idle()


class Cheat(Worker):
    """Sends rows that leave a gap, once it has sent as many messages of an answer."""

    def _admit(self, link: Any, opened: Open, body: bytes) -> Any:
        session = super()._admit(link, opened, body)
        add = session.outlet.add

        def skipping(position: int, *rest: Any) -> None:
            add(position, *rest)
            out = session.outlet.link
            if position > opened.prompt + 4 and out is not None:
                out.post(Rows(opened.session, position + 30, b"\x04", (1,), 3, 0), bytes(256))

        session.outlet.add = skipping  # type: ignore[method-assign]
        return session


async def test_a_hop_that_sends_bad_rows_is_replaced_and_the_one_after_it_is_kept(
    tiny_models: TinyModels,
) -> None:
    expected = await reference(tiny_models, max_tokens=24)
    async with tiny_network(tiny_models.llama, [LayerRange(i, i + 1) for i in (0, 2, 3)]) as net:
        cheat = await net.add(LayerRange(1, 2), worker=Cheat)
        spare = await net.add(LayerRange(1, 2))
        net.burden(spare)
        async with asyncio.timeout(10):
            answered = await net.answer(request_for(net.model, max_tokens=24))
        same(answered, expected)
        assert answered.claims[1].node == spare.identity.node_id
        assert cheat.identity.node_id not in [r.node for r in net.members.records()]
        assert len(net.members.records()) == 4
        await net.idle()
