"""Sessions over chains of blocks that begin with pages of earlier sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import TinyModels
from tests.execution.test_worker import SESSION, between, opened, rows_of
from tests.routing.test_chain import same
from tests.routing.test_ensemble import given as given_together
from tests.routing.test_ensemble import together
from tests.scenarios.network import (
    SAMPLINGS,
    Answered,
    TinyNetwork,
    TinyNode,
    request_for,
    tiny_network,
    tokens_body,
)
from unisono.execution.kept import KeptRows
from unisono.execution.outlet import RowsOutlet
from unisono.execution.pages import row_names, split_names, token_names
from unisono.execution.worker import Worker
from unisono.models.cache import layer_groups, page_bytes
from unisono.models.rows import hash_of
from unisono.models.store import StoredModel
from unisono.routing.swarm import Swarm
from unisono.types import LayerRange
from unisono.verification.form import check_form
from unisono.verification.replay import verify
from unisono.wire.claims import rows_root
from unisono.wire.identity import Identity
from unisono.wire.messages import Failed, Pages, Rows, Spared

LONG = tuple((13 * i * i + 5 * i + 1) % 300 for i in range(200))
OTHER = tuple((t + 1) % 300 for t in LONG)
PAGES = 3
"""Complete pages of either."""


class Watched:
    """A network that counts the rows which each node computes and the pages that are spared."""

    def __init__(self, net: TinyNetwork) -> None:
        self.net = net
        self.rows: dict[str, int] = {}
        self.spared: list[int] = []
        for node in net.nodes:
            self._count(node)
        trial = net.swarm.experience.trial

        def watched(*arguments: Any, **named: Any) -> Any:
            made = trial(*arguments, **named)
            spared = made.spared

            def told(pages: int) -> None:
                self.spared.append(pages)
                spared(pages)

            made.spared = told  # type: ignore[method-assign]
            return made

        net.swarm.experience.trial = watched  # type: ignore[method-assign]

    def _count(self, node: TinyNode) -> None:
        forward, name = node.engine.decoder.forward, node.identity.node_id

        def counted(rows: Any, segments: Any) -> Any:
            self.rows[name] = self.rows.get(name, 0) + len(rows)
            return forward(rows, segments)

        node.engine.decoder.forward = counted  # type: ignore[method-assign]

    async def answer(self, request: Any, **options: Any) -> Answered:
        self.rows.clear()
        self.spared.clear()
        return await self.net.answer(request, **options)


async def fresh(model: StoredModel, hops: int, request: Any) -> Answered:
    """The answer of nodes that have read nothing before."""
    async with tiny_network(model, hops) as net:
        return await net.answer(request)


# --- names --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 299), min_size=64, max_size=300), st.data())
def test_a_name_stands_for_everything_up_to_the_end_of_its_page(
    tokens: list[int], data: st.DataObject
) -> None:
    count = len(tokens) // 64
    hashes = [hash_of(bytes([t % 256, t // 256])) for t in tokens]
    for make, what, other in ((token_names, tokens, 300), (row_names, hashes, hash_of(b"x"))):
        names = make(what, count)  # type: ignore[operator]
        assert len(set(names)) == len(names) == count
        known = data.draw(st.integers(0, count))
        assert make(what, count, names[:known]) == names  # type: ignore[operator]
        assert list(split_names(b"".join(names))) == names
        at = data.draw(st.integers(0, 64 * count - 1))
        changed = [*what[:at], other, *what[at + 1 :]]
        differ = [a != b for a, b in zip(make(changed, count), names, strict=True)]  # type: ignore[operator]
        assert differ == [page >= at // 64 for page in range(count)]


# --- hits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["greedy", "penalised"])
@pytest.mark.parametrize("hops", [2, 3, 4])
@pytest.mark.parametrize("family", ["llama", "gemma"])
async def test_a_second_answer_over_the_same_hops_reads_only_what_is_new(
    tiny_models: TinyModels, family: str, hops: int, sampling: str
) -> None:
    model: StoredModel = getattr(tiny_models, family)
    request = request_for(model, prompt=LONG, sampling=SAMPLINGS[sampling])
    longer = request_for(model, prompt=(*LONG, *OTHER[:70]), sampling=SAMPLINGS[sampling])
    if family == "gemma" and hops == 4:
        hops = 6
    async with tiny_network(model, hops) as net:
        watched = Watched(net)
        first = await watched.answer(request)
        assert watched.spared == []
        second = await watched.answer(request)
        assert watched.spared == [PAGES]
        assert set(watched.rows) == {node.identity.node_id for node in net.nodes}
        # what is left of the prompt, an answer of 12 tokens, and guesses
        assert all(rows < 64 for rows in watched.rows.values())
        third = await watched.answer(longer)
        assert watched.spared == [PAGES]
        await net.idle()
    same(second, first)
    verdict = await asyncio.to_thread(verify, second.receipt(), tiny_models.store)
    assert verdict.verdict == "VALID", verdict
    expected = await fresh(model, hops, longer)
    same(third, expected)
    assert (await fresh(model, 1, request)).tokens == second.tokens


async def test_the_pages_of_an_answer_serve_the_next_turn(tiny_models: TinyModels) -> None:
    model = tiny_models.llama
    async with tiny_network(model, 3) as net:
        watched = Watched(net)
        first = await watched.answer(request_for(model, prompt=LONG[:100], max_tokens=200))
        turn = request_for(model, prompt=(*LONG[:100], *first.tokens, 5, 6, 7))
        second = await watched.answer(turn)
        # of 300 positions; the last 64 may have been guesses for all that the second hop knows
        assert watched.spared == [3]
    same(second, await fresh(model, 3, turn))


async def test_the_chains_of_an_ensemble_begin_with_pages_each_of_its_own(
    tiny_models: TinyModels,
) -> None:
    models = tiny_models.llama, tiny_models.gemma
    request = together(models, prompt=LONG)
    async with tiny_network(models[0], 2, others=[(models[1], 3)]) as net:
        watched = Watched(net)
        first = await given_together(net, request)
        second = await given_together(net, request)
        assert watched.spared == [PAGES, PAGES]
        assert second.tokens == first.tokens
        for one, two in zip(first.claims, second.claims, strict=True):
            assert (one.rows_in, one.rows_out) == (two.rows_in, two.rows_out)
            assert one.distributions == two.distributions


async def test_another_gateway_has_the_hits_too(tiny_models: TinyModels) -> None:
    request = request_for(tiny_models.llama, prompt=LONG)
    async with tiny_network(tiny_models.llama, 3) as net:
        first = await net.answer(request)
        identity = Identity.generate()
        transport = net.hub.transport(identity)
        await transport.bind()
        counts = {net.model.id: net.model.layer_count}
        net.swarm = Swarm(transport, identity.node_id, net.members, counts, net.clock)
        watched = Watched(net)
        second = await watched.answer(request)
        assert watched.spared == [PAGES]
        assert second.claims[0].gateway == identity.node_id != first.claims[0].gateway
        same(second, first)
        await transport.close()


@pytest.mark.parametrize("left", [0, 1, 2])
@pytest.mark.parametrize("hop", [0, 1, 2])
async def test_what_one_hop_has_given_up_all_read_again(
    tiny_models: TinyModels, hop: int, left: int
) -> None:
    request = request_for(tiny_models.llama, prompt=LONG)
    async with tiny_network(tiny_models.llama, 3) as net:
        first = await net.answer(request)
        await net.idle()
        store = net.nodes[hop].engine.decoder.store
        for key in list(store._prefixes)[: PAGES - left]:  # ends are the first to go
            store._give_up(key)
        watched = Watched(net)
        second = await watched.answer(request)
        # a first hop without any asks nobody, and the chain is as fast as it was
        assert watched.spared == ([] if hop == 0 and not left else [left])
        assert all(rows > 200 - 64 * left for rows in watched.rows.values())
        third = await watched.answer(request)
        assert watched.spared == [PAGES]
        await net.idle()
        # pages that were held and not begun with are given back
        for node in net.nodes:
            kept = node.engine.decoder.store
            await node.engine.adopt(node.engine.decoder.new_cache(1), [])
            assert kept.used == kept.kept * sum(kept.bytes)
    same(second, first)
    same(third, first)


async def test_pages_held_for_a_session_that_ends_at_once_are_given_back(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        await net.answer(request_for(tiny_models.llama, prompt=LONG))
        await net.idle()
        hop = await between(net, 0, tokens_body(*LONG), **ROOM)
        assert isinstance(await hop.before.message(), Pages)  # and nobody answers
        await hop.control.close()
        await net.idle()
        node = net.nodes[0]
        await node.engine.adopt(node.engine.decoder.new_cache(1), [])
        store = node.engine.decoder.store
        assert store.used == store.kept * sum(store.bytes)


# --- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [(0,), (1,), (2,), (0, 2)], ids=str)
async def test_a_hop_lost_in_an_answer_with_a_hit_changes_no_token(
    tiny_models: TinyModels, lost: tuple[int, ...]
) -> None:
    request = request_for(tiny_models.llama, prompt=LONG, max_tokens=24)
    async with tiny_network(tiny_models.llama, 3, spares=1) as net:
        first = await net.answer(request)
        watched = Watched(net)

        def on_token(count: int) -> None:
            if count == 9:
                (answer,) = net.swarm._answers
                assert answer.chain is not None
                names = [answer.chain.hops[i].node for i in lost]
                for node in net.nodes:
                    if node.identity.node_id in names:
                        node.kill()

        async with asyncio.timeout(20):
            second = await watched.answer(request, on_token=on_token)
        assert watched.spared[0] == PAGES
        assert second.attempts > 1
        same(second, first)
        verdict = await asyncio.to_thread(verify, second.receipt(), tiny_models.store)
        assert verdict.verdict == "VALID", verdict
        await net.idle()


@pytest.mark.parametrize("moment", [Pages, Spared])
@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_hop_lost_while_pages_are_agreed_on_changes_no_token(
    tiny_models: TinyModels, moment: type[Any], victim: int
) -> None:
    request = request_for(tiny_models.llama, prompt=LONG, max_tokens=24)
    async with tiny_network(tiny_models.llama, 3, spares=1) as net:
        first = await net.answer(request)
        await net.idle()
        hops = [c.node for c in first.claims]
        (doomed,) = [n for n in net.nodes if n.identity.node_id == hops[victim]]
        killed: list[bool] = []
        for node in net.nodes:
            receive = node.worker._receive

            def watching(
                link: Any, message: Any, body: Any, receive: Callable[..., None] = receive
            ) -> None:
                if isinstance(message, moment) and not killed:
                    killed.append(True)
                    doomed.kill()
                receive(link, message, body)

            node.worker._receive = watching  # type: ignore[method-assign]
            node.worker._links._receive = watching
            for link in node.worker._links.links():
                link._receive = watching
        async with asyncio.timeout(20):
            second = await net.answer(request)
        assert killed
        assert second.tokens == first.tokens
        assert [c.rows_out for c in second.claims] == [c.rows_out for c in first.claims]
        await net.idle()


# --- lies ---------------------------------------------------------------------------------------


class Misnaming(Worker):
    """A first hop that names pages of other rows than those of its session."""

    names = b""

    def _admit(self, link: Any, opened: Any, body: bytes) -> Any:
        session = super()._admit(link, opened, body)
        if isinstance(session.outlet, RowsOutlet) and session.is_first:
            ask = session.outlet.ask
            session.outlet.ask = lambda names: ask(self.names or names)  # type: ignore[method-assign]
        return session


async def test_a_first_hop_that_names_pages_of_other_rows_is_caught_by_its_claim(
    tiny_models: TinyModels,
) -> None:
    model = tiny_models.llama
    asked, other = (request_for(model, prompt=p) for p in (LONG, OTHER))
    async with tiny_network(model, [LayerRange(2, 4)]) as net:
        liar = await net.add(LayerRange(0, 2), worker=Misnaming)
        expected = [await net.answer(asked), await net.answer(other)]
        await net.idle()
        session_names = row_names(_rows_in(net.nodes[0], other, liar), PAGES)
        liar.worker.names = b"".join(session_names)  # type: ignore[attr-defined]
        watched = Watched(net)
        misled = await watched.answer(asked)
        assert watched.spared == [PAGES]
        # what the second hop signs as rows in are the rows that were named to it, and no others
        assert misled.claims[1].rows_in != misled.claims[0].rows_out
        problem = check_form(misled.receipt())
        assert problem is not None
        assert {misled.claims[0].node, misled.claims[1].node} == set(problem.suspects)
        # names that nobody has are worth nothing
        liar.worker.names = bytes(32 * PAGES)  # type: ignore[attr-defined]
        same(await watched.answer(asked), expected[0])
        assert watched.spared == [0]
        # and nothing of it stays
        liar.worker.names = b""  # type: ignore[attr-defined]
        for request, right in zip((asked, other), expected, strict=True):
            same(await watched.answer(request), right)
            assert watched.spared == [PAGES]


def _rows_in(second: TinyNode, request: Any, first: TinyNode) -> list[bytes]:
    """Hashes of the rows that a prompt has between two nodes, as anyone can compute them."""
    decoder = first.engine.decoder
    prefixes = decoder.store.find(token_names(request.prompt, PAGES))
    assert len(prefixes) == PAGES
    assert len(second.engine.decoder.store.find(row_names(_out(prefixes), PAGES))) == PAGES
    return _out(prefixes)


def _out(prefixes: Any) -> list[bytes]:
    return [h for prefix in prefixes for h in prefix.hashes[1]]


ROOM = {"prompt": 200, "start": 200, "positions": 210, "max_tokens": 10}


async def test_made_up_rows_of_one_session_are_in_no_page_of_another(
    tiny_models: TinyModels,
) -> None:
    """Whoever opens a session may send a later hop any rows; they spoil nothing for others."""
    request = request_for(tiny_models.llama, prompt=LONG)
    expected = await fresh(tiny_models.llama, 2, request)
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1, tokens_body(*LONG), **ROOM | {"resume": 200})
        await hop.send_rows(rows_of(0, 200))
        await hop.has_computed(200)
        await hop.control.close()
        await net.idle()
        assert net.nodes[1].engine.decoder.store.kept == PAGES
        watched = Watched(net)
        same(await watched.answer(request), expected)
        same(await watched.answer(request), expected)
        assert watched.spared == [PAGES]


async def test_rows_that_were_replaced_are_in_no_name_of_what_followed(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        node = net.nodes[1]
        hop = await between(net, 1, tokens_body(*LONG), **ROOM | {"resume": 200})
        (session,) = node.worker._sessions.values()
        await hop.send_rows(rows_of(0, 128))
        await hop.has_computed(128)
        before = list(session.in_hashes)
        message, body = rows_of(65, 136)
        await hop.send_rows((msgspec.structs.replace(message, position=64), body))
        await hop.has_computed(200)
        after = list(session.in_hashes)
        assert before[:64] == after[:64]
        assert before[64] != after[64]
        await hop.control.close()
        await net.idle()
        found = [
            await _found(node, row_names(hashes, PAGES))
            for hashes in (after, before + after[128:200], [bytes(32), *after[1:]])
        ]
        assert found == [3, 2, 0]


async def _found(node: TinyNode, names: list[bytes]) -> int:
    cache = node.engine.decoder.new_cache(200)
    found = await node.engine.adopt(cache, names)
    node.engine.release(cache)
    return len(found)


async def test_names_count_from_the_hop_before_only_and_come_before_rows(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        stranger = await (await net.connect()).link(net.nodes[1])
        hop = await between(net, 1, tokens_body(*LONG), **ROOM | {"resume": 200})
        await stranger.send(Pages(SESSION, 1), bytes(64))
        await hop.ignores()
        await hop.before.send(Pages(SESSION, 7), bytes(64))
        assert await hop.before.message() == Spared(SESSION, 7, 0)
        await hop.send_rows(rows_of(0, 20))
        await hop.has_computed(20)
        await hop.before.send(Pages(SESSION, 8), bytes(64))
        await hop.fails("peer_lost", "named after rows had come")


@pytest.mark.parametrize("size", [31, 33, 32 * 4])
async def test_names_are_of_pages_that_the_session_can_have(
    tiny_models: TinyModels, size: int
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        hop = await between(net, 1, tokens_body(*LONG), **ROOM | {"resume": 200})
        await hop.before.send(Pages(SESSION, 1), bytes(size))
        await hop.fails("peer_lost", f"{size} bytes of names for 210 positions")


@pytest.mark.parametrize(("at", "problem"), [(192, None), (64, None), (0, None), (100, "was next")])
async def test_rows_begin_with_a_page_that_was_spared_or_before(
    tiny_models: TinyModels, at: int, problem: str | None
) -> None:
    """The hop before may make less of an answer than it could, and no more."""
    async with tiny_network(tiny_models.llama, 2) as net:
        for session in (SESSION, "6f" * 16):
            part = ROOM | {"resume": 200, "session": session}
            hop = await between(net, 1, tokens_body(*LONG), **part)
            if session == SESSION:
                await hop.before.send(*rows_of(0, 200))
                await hop.has_computed(200)
                (first,) = net.nodes[1].worker._sessions.values()
                names = row_names(first.in_hashes, PAGES)
                out = list(first.out_hashes)
                await hop.control.close()
                await net.idle()
        await hop.before.send(Pages("6f" * 16, 3), b"".join(names))  # type: ignore[arg-type]
        assert await hop.before.message() == Spared("6f" * 16, 3, PAGES)  # type: ignore[arg-type]
        message, body = rows_of(at, 200 - at, session="6f" * 16)
        await hop.before.send(message, body)
        if problem is None:
            await hop.has_computed(200)
            (second,) = net.nodes[1].worker._sessions.values()
            assert second.out_hashes == out
            await hop.control.close()
            await net.idle()
        else:
            failed = await hop.control.message()
            assert isinstance(failed, Failed)
            assert problem in failed.message
            assert failed.peer == hop.neighbour.node_id


async def test_an_answer_that_is_not_to_the_question_is_ignored_and_never_more_than_was_asked(
    tiny_models: TinyModels,
) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        await net.answer(request_for(tiny_models.llama, prompt=LONG))
        await net.idle()
        hop = await between(net, 0, tokens_body(*LONG), **ROOM | {"resume": 0})
        named, body = await hop.before.receive()
        assert isinstance(named, Pages)
        assert len(body) == 32 * PAGES
        stranger = await (await net.connect()).link(net.nodes[0])
        await stranger.send(Spared(SESSION, named.turn, 1))
        await hop.before.send(Spared(SESSION, named.turn + 1, 1))
        assert await hop.before.is_quiet()
        await hop.before.send(Spared(SESSION, named.turn, 99))
        assert await hop.control.message() == Spared(SESSION, 0, PAGES)
        rows = await hop.before.message()
        assert isinstance(rows, Rows)
        assert rows.position == 64 * PAGES
        await hop.control.close()
        await net.idle()


# --- audits -------------------------------------------------------------------------------------


class Keeping(Worker):
    """Keeps rows that came in for those who ask about its claims."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.rows = KeptRows(named["clock"])
        super().__init__(*arguments, **named, kept=self.rows)


async def test_a_hop_can_show_the_rows_of_pages_that_it_took_over(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for(tiny_models.llama, prompt=LONG)
    async with tiny_network(tiny_models.llama, 3, worker=Keeping) as net:
        await net.answer(request)
        watched = Watched(net)
        second = await watched.answer(request)
        assert watched.spared == [PAGES]
        hidden = tiny_models.llama.manifest.config.hidden_size
        for node, claim in list(zip(net.nodes, second.claims, strict=True))[1:]:
            rows = node.worker.rows.rows(claim)  # type: ignore[attr-defined]
            assert rows is not None
            assert rows_root([_hash(row, hidden) for row in rows]) == claim.rows_in
        # a session whose rows have no room leaves nothing: who takes it over could show none
        for node in net.nodes[1:]:
            node.engine.decoder.store.forget()
            monkeypatch.setattr(node.worker.rows, "_limit", 1000)  # type: ignore[attr-defined]
            monkeypatch.setattr(node.worker.rows, "_claims", {})  # type: ignore[attr-defined]
        await watched.answer(request)
        assert [node.engine.decoder.store.kept for node in net.nodes] == [PAGES, 0, 0]


def _hash(row: Any, hidden: int) -> bytes:
    width = len(row) // hidden
    return hash_of(np.frombuffer(row, f"<i{width}").astype("<i8").tobytes())


async def test_what_overtakes_its_session_is_answered(tiny_models: TinyModels) -> None:
    async with tiny_network(tiny_models.llama, 2) as net:
        neighbour, node = await net.connect(), net.nodes[1]
        before = await neighbour.link(node)
        await before.send(Pages(SESSION, 5), bytes(96))
        address = await neighbour.transport.bind()
        place = {"hop": 1, "hops": 2, "previous": neighbour.node_id, "next": address}
        control = await opened(
            net, node, await net.connect(), tokens_body(*LONG), **place, **ROOM, resume=200
        )
        assert await before.message() == Spared(SESSION, 5, 0)
        await control.close()
        await net.idle()


@pytest.mark.parametrize("pages", [7, 14])
@pytest.mark.parametrize("family", ["llama", "gemma"])
async def test_sessions_that_share_beginnings_and_too_little_memory_answer_as_if_alone(
    tiny_models: TinyModels, family: str, pages: int
) -> None:
    model: StoredModel = getattr(tiny_models, family)
    beginnings = LONG[:130], OTHER[:70]
    prompts = [(*b, *LONG[at : at + 25]) for b in beginnings for at in (7, 50)]
    requests = [request_for(model, prompt=p, max_tokens=20) for p in (*prompts, LONG)]
    expected = {r.prompt: await fresh(model, 3, r) for r in requests}
    config = model.manifest.config
    blocks = [LayerRange(0, 2), LayerRange(2, 3), LayerRange(3, model.layer_count)]
    per_page = max(sum(page_bytes(config, g) for g in layer_groups(config, b)) for b in blocks)
    options = {"kv_bytes": pages * per_page, "overcommit": 100.0}
    async with tiny_network(model, blocks, **options) as net:
        watched = Watched(net)
        for at_once in (5, 2, 3):
            turns = asyncio.Semaphore(at_once)

            async def answered(request: Any, turns: asyncio.Semaphore = turns) -> Answered:
                async with turns:
                    return await net.answer(request)

            for each in await asyncio.gather(*(answered(r) for r in requests)):
                same_rows(each, expected[each.request.prompt])
        assert any(watched.spared)
        await net.idle()
        for node in net.nodes:
            store = node.engine.decoder.store
            await node.engine.adopt(node.engine.decoder.new_cache(1), [])
            assert store.used == store.kept * sum(store.bytes) <= store.budget


def same_rows(found: Answered, expected: Answered) -> None:
    """The same tokens and, where their blocks end alike, the same rows."""
    assert found.tokens == expected.tokens
    ends = {c.layers.stop: (c.rows_out, c.out_tags, c.tokens) for c in expected.claims}
    for claim in found.claims:
        if claim.layers.stop in ends:
            assert (claim.rows_out, claim.out_tags, claim.tokens) == ends[claim.layers.stop]
