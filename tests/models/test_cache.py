"""Pages: who holds them, what is shared, what is given up, and that no answer depends on it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.tiny_weights import tiny_config, tiny_weights
from unisono.errors import UnisonoError
from unisono.models.cache import (
    PAGE,
    REACH_BACK,
    OutOfPages,
    PageStore,
    Prefix,
    SessionCache,
    layer_groups,
    page_bytes,
)
from unisono.models.config import DecoderConfig
from unisono.models.decoder import Decoder, Rows, Segment
from unisono.models.native_decoder import NativeDecoder
from unisono.models.torch_decoder import TorchDecoder
from unisono.types import LayerRange

WINDOWS = (0, 3, 65, 0, 130)
NO_HASHES: tuple[tuple[bytes, ...], tuple[bytes, ...]] = ((), ())


def _config(*windows: int) -> DecoderConfig:
    return tiny_config("llama", layer_count=len(windows), windows=windows)


def _store(budget: int, *windows: int, memory: bool = False) -> PageStore:
    """A store for `budget` pages of its first group."""
    config = _config(*windows)
    layers = LayerRange(0, len(windows))
    largest = page_bytes(config, layer_groups(config, layers)[0])
    store = PageStore(config, layers, budget * largest)
    if memory:
        store.memory = FakeMemory()
    return store


class FakeMemory:
    """Pages that hold one number per position. What was given back is garbage."""

    def __init__(self) -> None:
        self.pages: dict[tuple[int, int], list[int]] = {}

    def at(self, group: int, page: int) -> list[int]:
        return self.pages.setdefault((group, page), [-1] * PAGE)

    def read_page(self, group: int, page: int) -> bytes:
        return np.array(self.at(group, page)).tobytes()

    def write_page(self, group: int, page: int, data: bytes) -> None:
        self.pages[group, page] = np.frombuffer(data, dtype=np.int64).tolist()

    def discard_page(self, group: int, page: int) -> None:
        self.pages.pop((group, page), None)


# --- a store and its sessions, step by step -----------------------------------------------------


def _keys(contents: list[int]) -> list[bytes]:
    """A name for each complete page, by all that is written up to its end."""
    ends = range(PAGE, len(contents) + 1, PAGE)
    return [np.array(contents[:end]).tobytes() for end in ends]


@dataclass(eq=False)
class Writer:
    """A session and what it should read."""

    cache: SessionCache
    contents: list[int] = field(default_factory=list)
    furthest: int = 0


class Pages(RuleBasedStateMachine):
    """Sessions that write numbers into their positions, and must read them again."""

    sessions: list[Writer]

    @initialize(
        windows=st.sampled_from([(0,), (0, 65), (0, 3, 0), (130, 0)]), equally=st.booleans()
    )
    def start(self, windows: tuple[int, ...], equally: bool) -> None:
        self.store = _store(12, *windows, memory=True)
        if equally:
            self.store.share_equally()
        assert isinstance(self.store.memory, FakeMemory)
        self.memory = self.store.memory
        self.sessions = []
        self.written = 0

    def _any(self, data: st.DataObject, moved_out: bool = False) -> Writer | None:
        some = [s for s in self.sessions if s.cache.moved_out == moved_out]
        return data.draw(st.sampled_from(some)) if some else None

    @precondition(lambda self: len(self.sessions) < 4)
    @rule(capacity=st.sampled_from([1, 64, 100, 300, 700]))
    def begin(self, capacity: int) -> None:
        self.sessions.append(Writer(SessionCache(self.store, capacity)))

    @precondition(lambda self: 0 < len(self.sessions) < 5)
    @rule(data=st.data())
    def begin_with_kept_pages(self, data: st.DataObject) -> None:
        model = self._any(data)
        if model is None:
            return
        keys = _keys(model.contents)
        found = self.store.find(keys)
        assert all(not self.store.find([key]) for key in keys[len(found) : len(found) + 1])
        cache = SessionCache(self.store, model.cache.capacity)
        cache.adopt(found)
        assert cache.length == len(found) * PAGE
        if data.draw(st.booleans()):  # while it waits to hear how many it begins with
            cache.move_out()
        cache.begin(data.draw(st.integers(0, len(found))))
        self.sessions.append(Writer(cache, model.contents[: cache.length], cache.length))

    @rule(
        data=st.data(),
        count=st.sampled_from([1, 20, 64, 64, 100, 200]),
        back=st.sampled_from([0, 0, 0, 0, 1, 2, 60, 300]),
        keep=st.booleans(),
    )
    def write(self, data: st.DataObject, count: int, back: int, keep: bool) -> None:
        session = self._any(data)
        if session is None:
            return
        cache = session.cache
        start = max(0, cache.length - back)
        stop = min(start + count, cache.capacity)
        if not self._reserved(session, start, stop):
            return
        self.written += 1
        session.contents[start:] = [self.written * 1000 + i for i in range(stop - start)]
        for group in range(len(self.store.groups)):
            for position in range(start, stop):
                page = int(cache.tables[group, position // PAGE])
                assert not self.store.is_shared(group, page)
                self.memory.at(group, page)[position % PAGE] = session.contents[position]
        cache.advance(stop)
        session.furthest = max(session.furthest, stop)
        if keep:
            for i, key in enumerate(_keys(session.contents)):
                pages = cache.page(i)
                if pages is not None:
                    self.store.keep([key], Prefix(pages, NO_HASHES))

    def _reserved(self, session: Writer, start: int, stop: int) -> bool:
        cache, behind = session.cache, session.cache.length - start
        held = cache.held
        # as far back as from the furthest that it has ever been
        allowed = start >= session.furthest - REACH_BACK
        try:
            cache.reserve(start, stop)
        except OutOfPages:
            assert self.store.kept == 0
            assert cache.held == held
            session.contents = session.contents[:start]
            cache.advance(start)
            return False
        except UnisonoError:
            # going back was too far: a position that `start` sees is no longer held
            assert behind > 0
            assert not allowed
            assert any(
                layers.window and cache.tables[group, max(0, start - layers.window + 1) // PAGE] < 0
                for group, layers in enumerate(self.store.groups)
            )
            return False
        return True

    @rule(data=st.data())
    def move_out(self, data: st.DataObject) -> None:
        session = self._any(data)
        if session is not None:
            session.cache.move_out()
            assert session.cache.held == 0

    @rule(data=st.data())
    def move_in(self, data: st.DataObject) -> None:
        session = self._any(data, moved_out=True)
        if session is None:
            return
        try:
            session.cache.move_in()
        except OutOfPages:
            assert self.store.kept == 0
            assert session.cache.moved_out

    @precondition(lambda self: len(self.sessions) > 2)
    @rule(data=st.data(), moved_out=st.booleans())
    def close(self, data: st.DataObject, moved_out: bool) -> None:
        session = self._any(data, moved_out)
        if session is not None:
            session.cache.close()
            session.cache.close()
            assert session.cache.held == 0
            self.sessions.remove(session)

    @rule()
    def forget(self) -> None:
        self.store.forget()
        assert self.store.kept == 0

    def _holders(self) -> dict[tuple[int, int], int]:
        """How many sessions and kept prefixes hold each page."""
        out: dict[tuple[int, int], int] = {}
        for session in self.sessions:
            for group, table in enumerate(session.cache.tables.tolist()):
                for page in table:
                    if page >= 0:
                        out[group, page] = out.get((group, page), 0) + 1
        for prefix in self.store._prefixes.values():
            for group, page in enumerate(prefix.pages):
                out[group, page] = out.get((group, page), 0) + 1
        return out

    @invariant()
    def a_page_with_two_holders_is_shared_and_used_bytes_are_those_of_all_held(self) -> None:
        holders = self._holders()
        for (group, page), count in holders.items():
            assert self.store.is_shared(group, page) == (count > 1)
            assert 0 <= page < self.store.limits[group]
        assert self.store.used == sum(self.store.bytes[group] for group, _ in holders)
        assert self.store.used <= self.store.budget

    @invariant()
    def every_session_reads_what_it_wrote_as_far_as_it_sees(self) -> None:
        for session in self.sessions:
            length = session.cache.length
            assert length == len(session.contents)
            if session.cache.moved_out:
                continue
            for group, layers in enumerate(self.store.groups):
                first = max(0, length - layers.window + 1) if layers.window else 0
                for position in range(first, length):
                    page = int(session.cache.tables[group, position // PAGE])
                    read = self.memory.at(group, page)[position % PAGE]
                    assert read == session.contents[position]

    @invariant()
    def windows_hold_no_page_that_nothing_sees_from_as_far_back_as_a_session_goes(self) -> None:
        for session in self.sessions:
            for group, layers in enumerate(self.store.groups):
                if layers.window:
                    first = max(0, session.cache.length - REACH_BACK - layers.window + 1)
                    assert (session.cache.tables[group, : first // PAGE] < 0).all()

    def teardown(self) -> None:
        if not hasattr(self, "sessions"):
            return
        for session in self.sessions:
            session.cache.close()
        self.store.forget()
        assert self.store.used == 0


Pages.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestPages = Pages.TestCase


# --- a store alone ------------------------------------------------------------------------------


def test_layers_that_see_equally_far_share_their_pages() -> None:
    groups = layer_groups(_config(*WINDOWS), LayerRange(1, 5))
    assert [(g.window, g.layers) for g in groups] == [(0, (3,)), (3, (1,)), (65, (2,)), (130, (4,))]
    store = _store(8, 0, 0, 5)
    assert store.bytes[0] == 2 * store.bytes[1]
    assert store.limits == (8, 16)


@given(st.sampled_from([1, 3, 63, 64, 65, 66, 128, 129, 130]), st.integers(1, 400))
def test_a_session_that_decodes_holds_as_many_pages_as_were_foreseen(
    window: int, length: int
) -> None:
    store = _store(100, 0, window)
    cache, most = SessionCache(store, length), np.zeros(2, dtype=np.int64)
    for position in range(length):
        cache.reserve(position, position + 1)
        most = np.maximum(most, (cache.tables >= 0).sum(1))
        cache.advance(position + 1)
    assert most[0] == store.pages_for(length)[0]
    assert most[1] <= store.pages_for(length)[1]
    assert store.bytes_for(length) >= int(most @ np.array(store.bytes))
    cache.close()
    assert store.used == 0


def test_a_session_that_can_never_fit_is_known_beforehand() -> None:
    store = _store(4, 0, 3)
    longest = max(n for n in range(1, 400) if store.fits(n))
    assert longest == 128  # two pages, and two of the window: all that it reaches back to
    assert not store.fits(longest + 1)
    cache = SessionCache(store, longest)
    for position in range(longest):
        cache.reserve(position, position + 1)
        cache.advance(position + 1)
    store = _store(4, 0, 3)
    store.share_equally()
    assert store.limits == (2, 2)
    assert [store.fits(n) for n in (64, 128, 129)] == [True, True, False]


def test_a_group_that_has_all_of_its_pages_is_out_of_them_though_bytes_are_left() -> None:
    store = _store(8, 0, 3)
    store.share_equally()
    cache = SessionCache(store, 1000)
    for start in range(0, 256, 64):
        cache.reserve(start, start + 64)
        cache.advance(start + 64)
    with pytest.raises(OutOfPages):
        cache.reserve(256, 257)
    assert store.used < store.budget
    assert cache.held == 6  # two of the window: it may go back a page's length


def test_nothing_is_taken_before_it_is_needed() -> None:
    store = _store(100, 0, 3)
    cache = SessionCache(store, 1000)
    assert (store.used, cache.held) == (0, 0)
    cache.reserve(0, 65)
    assert cache.held == 4


def test_a_sliding_window_gives_back_the_pages_that_nothing_sees() -> None:
    store = _store(100, 3)
    cache = SessionCache(store, 1000)
    cache.reserve(0, 130)
    assert store.used == 3 * store.bytes[0]
    cache.advance(130)  # position 66, as far back as the session may go, sees 64 and 65
    assert (cache.tables[0, :4] >= 0).tolist() == [False, True, True, False]
    assert store.used == 2 * store.bytes[0]


def test_a_session_may_go_back_as_far_as_its_windows_are_held() -> None:
    store = _store(100, 0, 3)
    cache = SessionCache(store, 1000)
    cache.reserve(0, 130)
    cache.advance(130)
    cache.reserve(130 - REACH_BACK, 130)
    with pytest.raises(UnisonoError, match=r"position 65 sees positions that .* given up"):
        cache.reserve(65, 130)
    cache.reserve(130, 200)
    cache.advance(200)
    cache.reserve(200 - REACH_BACK, 196)
    cache.reserve(130, 131)  # sees 128 and 129, of a page that is held
    with pytest.raises(UnisonoError, match="is at position 200"):
        cache.reserve(129, 130)
    cache.advance(150)  # to go back does not bring back what was given up
    with pytest.raises(UnisonoError, match="position 129 sees positions"):
        cache.reserve(129, 130)


@given(st.sampled_from([1, 3, 63, 64, 65, 130]), st.integers(1, 600))
def test_from_wherever_it_is_a_session_can_go_back_as_far_as_was_promised(
    window: int, length: int
) -> None:
    store = _store(100, 0, window)
    cache = SessionCache(store, length)
    cache.reserve(0, length)
    cache.advance(length)
    cache.reserve(max(0, length - REACH_BACK), length)


def test_without_windows_a_session_may_begin_anew() -> None:
    store = _store(100, 0)
    cache = SessionCache(store, 200)
    cache.reserve(0, 200)
    cache.advance(200)
    held = cache.tables.copy()
    cache.reserve(0, 200)
    assert np.array_equal(cache.tables, held)


def test_a_gap_and_what_lies_beyond_the_capacity_are_refused_and_take_nothing() -> None:
    store = _store(100, 0)
    cache = SessionCache(store, 100)
    with pytest.raises(UnisonoError, match="position 1 of a session came before position 0"):
        cache.reserve(1, 2)
    with pytest.raises(UnisonoError, match="position 100 does not fit a session of 100"):
        cache.reserve(0, 101)
    assert store.used == 0


def test_out_of_pages_says_how_much_memory_there_is_and_more_sessions_close_it() -> None:
    store = _store(2, 0)
    one, two = SessionCache(store, 128), SessionCache(store, 128)
    one.reserve(0, 100)
    with pytest.raises(OutOfPages, match="the memory for keys and values"):
        two.reserve(0, 1)
    one.close()
    two.reserve(0, 128)
    assert store.used == store.budget


def _filled(store: PageStore, pages: int) -> SessionCache:
    cache = SessionCache(store, pages * PAGE)
    cache.reserve(0, pages * PAGE)
    cache.advance(pages * PAGE)
    return cache


def _keep(store: PageStore, cache: SessionCache, name: str, hold: Callable[[int], int]) -> None:
    """Keep a session's pages under `name` and their number, in some order, and close it."""
    count = cache.tables.shape[1]
    for i in sorted(range(count), key=hold):
        pages = cache.page(i)
        assert pages is not None
        store.keep([f"{name}{k}".encode() for k in range(i + 1)], Prefix(pages, NO_HASHES))
    cache.close()


def _kept(store: PageStore) -> list[str]:
    """Names of what is kept, found one by one; this does not change the order of giving up."""
    return [key.decode() for key in store._prefixes]


def test_kept_pages_make_room_oldest_first_and_only_then_memory_is_out() -> None:
    store = _store(4, 0)
    for name in ("a", "b", "c"):
        _keep(store, _filled(store, 1), name, int)
    assert (store.kept, store.used) == (3, 3 * store.bytes[0])
    cache = SessionCache(store, 1000)
    cache.reserve(0, 64)
    assert _kept(store) == ["a0", "b0", "c0"]  # there was room
    cache.advance(64)
    assert len(store.find([b"a0"])) == 1  # now the youngest
    for stop, left in ((65, ["c0", "a0"]), (129, ["a0"]), (193, [])):
        cache.reserve(cache.length, stop)
        cache.advance(stop)
        assert _kept(store) == left
    with pytest.raises(OutOfPages):
        cache.reserve(193, 257)
    assert store.used == store.budget


def test_finding_a_prefix_lets_its_end_be_given_up_before_its_start() -> None:
    store = _store(3, 0)
    _keep(store, _filled(store, 3), "a", int)
    keys = [b"a0", b"a1", b"a2", b"a3"]
    assert len(store.find(keys)) == 3
    cache = SessionCache(store, 1000)
    for stop, left in ((64, 2), (128, 1), (192, 0)):
        cache.reserve(cache.length, stop)
        cache.advance(stop)
        assert len(store.find(keys)) == left


def test_a_prefix_that_nobody_found_yet_is_also_given_up_from_its_end() -> None:
    store = _store(3, 0)
    _keep(store, _filled(store, 3), "a", int)
    SessionCache(store, 64).reserve(0, 64)
    assert len(store.find([b"a0", b"a1", b"a2"])) == 2


def test_a_page_kept_twice_is_held_once_and_becomes_the_youngest() -> None:
    store = _store(8, 0)
    cache = _filled(store, 1)
    pages = cache.page(0)
    assert pages is not None
    store.keep([b"a"], Prefix(pages, NO_HASHES))
    store.keep([b"b"], Prefix(pages, NO_HASHES))
    store.keep([b"a"], Prefix((99,), NO_HASHES))  # no effect: it is there
    assert _kept(store) == ["b", "a"]
    cache.close()
    assert store.used == store.bytes[0]
    store.forget()
    assert store.used == 0


def test_rows_of_kept_pages_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unisono.models.cache.PREFIX_ROWS_BYTES", 250)
    store = _store(8, 0)
    cache = _filled(store, 3)
    for i, left in enumerate((["a"], ["a", "b"], ["b", "c"])):
        pages = cache.page(i)
        assert pages is not None
        rows = (memoryview(bytes(40)), memoryview(bytes(60)))
        store.keep([b"abc"[i : i + 1]], Prefix(pages, NO_HASHES, rows))
        assert _kept(store) == left
    store.forget()
    store.keep([b"d"], Prefix((0,), NO_HASHES, (memoryview(bytes(250)),)))
    assert _kept(store) == ["d"]  # what was given up no longer counts


def test_a_found_prefix_ends_at_the_first_page_that_is_not_kept() -> None:
    store = _store(8, 0)
    _keep(store, _filled(store, 3), "a", int)
    assert len(store.find([b"a0", b"x", b"a2"])) == 1
    assert store.find([b"x", b"a0"]) == []
    assert store.find([]) == []


def test_a_kept_page_of_a_running_session_stays_when_the_prefix_is_given_up() -> None:
    store = _store(2, 0, memory=True)
    cache = _filled(store, 1)
    pages = cache.page(0)
    assert pages is not None
    store.keep([b"a"], Prefix(pages, NO_HASHES))
    other = SessionCache(store, 128)
    other.reserve(0, 64)
    with pytest.raises(OutOfPages):
        other.reserve(0, 128)
    assert store.kept == 0
    assert cache.page(0) == pages
    assert not store.is_shared(0, pages[0])


def test_writing_into_a_shared_page_copies_it_and_leaves_the_others_alone() -> None:
    store = _store(8, 0, memory=True)
    memory = store.memory
    assert isinstance(memory, FakeMemory)
    first = _filled(store, 2)
    for i in range(2):
        memory.at(0, int(first.tables[0, i]))[:] = range(PAGE * i, PAGE * i + PAGE)
    second = SessionCache(store, 200)
    pages = [first.page(i) for i in range(2)]
    second.adopt([Prefix(p, NO_HASHES) for p in pages if p is not None])
    second.begin(2)
    assert store.used == 2 * store.bytes[0]
    second.reserve(70, 71)
    assert store.used == 3 * store.bytes[0]
    assert second.tables[0, 0] == first.tables[0, 0]
    copy = int(second.tables[0, 1])
    assert copy != first.tables[0, 1]
    assert memory.at(0, copy) == list(range(64, 128))
    memory.at(0, copy)[6] = -5
    assert memory.at(0, int(first.tables[0, 1])) == list(range(64, 128))


def test_a_session_that_found_no_memory_keeps_what_it_had() -> None:
    store = _store(3, 0, memory=True)
    first, second = _filled(store, 2), SessionCache(store, 128)
    pages = [first.page(i) for i in range(2)]
    second.adopt([Prefix(p, NO_HASHES) for p in pages if p is not None])
    with pytest.raises(OutOfPages):
        second.reserve(0, 128)  # two copies are needed, and there is room for one
    assert second.length == 128
    assert [second.page(i) for i in range(2)] == pages


def test_moving_in_without_room_changes_nothing() -> None:
    store = _store(3, 0, memory=True)
    memory = store.memory
    assert isinstance(memory, FakeMemory)
    cache = _filled(store, 2)
    for i in range(2):
        memory.at(0, int(cache.tables[0, i]))[:] = [i] * PAGE
    cache.move_out()
    assert (store.used, cache.held, cache.moved_out) == (0, 0, True)
    other = _filled(store, 2)
    with pytest.raises(OutOfPages):
        cache.move_in()
    assert (store.used, cache.held, cache.moved_out) == (2 * store.bytes[0], 0, True)
    other.close()
    cache.move_in()
    assert not cache.moved_out
    assert [memory.at(0, int(page))[0] for page in cache.tables[0]] == [0, 1]


def test_a_session_that_was_moved_out_has_to_come_in_before_it_goes_on() -> None:
    store = _store(3, 0, memory=True)
    cache = _filled(store, 2)
    cache.move_out()
    for start in (0, 100, 128):
        with pytest.raises(UnisonoError, match="move it in before it goes on"):
            cache.reserve(start, start + 1)
    assert (store.used, cache.held, cache.moved_out) == (0, 0, True)
    cache.move_in()
    cache.reserve(100, 128)


def test_a_session_that_was_moved_out_can_be_closed() -> None:
    store = _store(3, 0, memory=True)
    cache = _filled(store, 2)
    cache.move_out()
    cache.close()
    assert (store.used, cache.moved_out) == (0, False)


# --- with decoders ------------------------------------------------------------------------------

DECODERS = [NativeDecoder, TorchDecoder]
MODELS = {
    "everything": tiny_config("llama"),
    "windows": tiny_config("gemma", layer_count=3, windows=(0, 3, 65)),
}

decoders = pytest.mark.parametrize("kind", DECODERS)
models = pytest.mark.parametrize("model", MODELS)


def _decoder(kind: type[Decoder], model: str, positions: int = 2000) -> Decoder:
    """A decoder with room for that many positions of sessions that see everything."""
    config = MODELS[model]
    weights = tiny_weights(config, seed=3)
    groups = layer_groups(config, weights.layers)
    budget = sum(page_bytes(config, g) for g in groups) * -(-positions // PAGE)
    return kind(config, weights, threads=1, kv_bytes=budget)  # type: ignore[call-arg]


def _tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(50), k=count)


def _go_on(decoder: Decoder, cache: SessionCache, tokens: list[int]) -> Rows:
    """Rows of the tokens that follow what a session has."""
    start = cache.length
    return decoder.forward(decoder.embed(tokens), [Segment(cache, start, len(tokens))])


def _alone(kind: type[Decoder], model: str, tokens: list[int]) -> Rows:
    decoder = _decoder(kind, model)
    return _go_on(decoder, decoder.new_cache(len(tokens)), tokens)


@decoders
@models
def test_a_session_that_begins_with_kept_pages_gives_the_bytes_of_a_whole_one(
    kind: type[Decoder], model: str
) -> None:
    tokens = _tokens(220)
    expected = _alone(kind, model, tokens)
    decoder = _decoder(kind, model)
    first = decoder.new_cache(220)
    for start in range(0, 192, 64):
        _go_on(decoder, first, tokens[start : start + 64])
        pages = first.page(start // PAGE)
        assert pages is not None
        decoder.store.keep([bytes([start // PAGE])], Prefix(pages, NO_HASHES))
    first.close()
    assert decoder.store.used > 0
    for count in (1, 2, 3):
        again = decoder.new_cache(220)
        again.adopt(decoder.store.find([bytes([i]) for i in range(3)]))
        again.begin(count)
        assert again.length == count * PAGE
        assert np.array_equal(
            _go_on(decoder, again, tokens[again.length :]), expected[count * 64 :]
        )
        again.close()
    decoder.store.forget()
    assert decoder.store.used == 0


@decoders
def test_sessions_that_share_pages_do_not_see_what_each_writes_into_them(
    kind: type[Decoder],
) -> None:
    tokens, others = _tokens(150), _tokens(150, seed=1)
    decoder = _decoder(kind, "everything")
    one, two = decoder.new_cache(150), decoder.new_cache(150)
    _go_on(decoder, one, tokens[:128])
    pages = [one.page(i) for i in range(2)]
    two.adopt([Prefix(p, NO_HASHES) for p in pages if p is not None])
    two.begin(2)
    # both go back to the middle of a page that they share
    for cache, rest in ((two, others), (one, tokens)):
        cache.advance(100)
        got = _go_on(decoder, cache, rest[100:140])
        whole = _alone(kind, "everything", [*tokens[:100], *rest[100:140]])
        assert np.array_equal(got, whole[100:])
    for cache, rest in ((two, others), (one, tokens)):
        whole = _alone(kind, "everything", [*tokens[:100], *rest[100:]])
        assert np.array_equal(_go_on(decoder, cache, rest[140:]), whole[140:])


@decoders
@models
def test_sessions_that_were_moved_out_and_in_give_the_bytes_of_those_that_stayed(
    kind: type[Decoder], model: str
) -> None:
    sessions = [_tokens(n, seed=n) for n in (200, 150, 129)]
    expected = [_alone(kind, model, tokens) for tokens in sessions]
    decoder = _decoder(kind, model, positions=256)  # room for one of them at a time
    caches = [decoder.new_cache(len(tokens)) for tokens in sessions]
    for start in range(0, 200, 40):
        for cache, tokens, rows in zip(caches, sessions, expected, strict=True):
            part = tokens[start : start + 40]
            if not part:
                continue
            if cache.moved_out:
                cache.move_in()
            assert np.array_equal(_go_on(decoder, cache, part), rows[start : start + len(part)])
            cache.move_out()
            assert decoder.store.used == 0


@decoders
@models
def test_a_pass_that_found_no_memory_gives_its_bytes_when_there_is_some(
    kind: type[Decoder], model: str
) -> None:
    tokens = _tokens(200)
    expected = _alone(kind, model, tokens)
    decoder = _decoder(kind, model, positions=256)
    one, two = decoder.new_cache(200), decoder.new_cache(200)
    assert np.array_equal(_go_on(decoder, one, tokens[:60]), expected[:60])
    _go_on(decoder, two, _tokens(64, seed=1))
    segments = [Segment(two, 64, 100), Segment(one, 60, 140)]
    rows = decoder.embed([*_tokens(100, seed=2), *tokens[60:]])
    with pytest.raises(OutOfPages):
        decoder.forward(rows, segments)
    assert (one.length, two.length) == (60, 64)
    two.close()
    assert np.array_equal(_go_on(decoder, one, tokens[60:]), expected[60:])


@decoders
def test_pages_that_were_given_back_carry_nothing_into_the_next_session(
    kind: type[Decoder],
) -> None:
    decoder = _decoder(kind, "windows", positions=256)
    for n in (200, 130, 64, 1):
        tokens = _tokens(n, seed=n)
        cache = decoder.new_cache(n)
        assert np.array_equal(_go_on(decoder, cache, tokens), _alone(kind, "windows", tokens))
        cache.close()
    assert decoder.store.used == 0


@decoders
def test_a_page_read_and_written_elsewhere_is_the_same_page(kind: type[Decoder]) -> None:
    decoder = _decoder(kind, "everything")
    cache = decoder.new_cache(64)
    _go_on(decoder, cache, _tokens(64))
    memory, page = decoder.store.memory, int(cache.tables[0, 0])
    assert memory is not None
    data = memory.read_page(0, page)
    assert len(data) == decoder.store.bytes[0]
    other = decoder.store.take(0)
    memory.write_page(0, other, data)
    assert memory.read_page(0, other) == data


def _fill(decoder: Decoder, cache: SessionCache) -> None:
    while cache.length < cache.capacity:
        _go_on(decoder, cache, _tokens(20))


def test_a_device_whose_memory_is_taken_at_once_runs_out_of_pages_in_order() -> None:
    config = MODELS["windows"]
    weights = tiny_weights(config)
    budget = 4 * sum(page_bytes(config, g) for g in layer_groups(config, weights.layers))
    decoder = TorchDecoder(config, weights, "cpu:0", kv_bytes=budget)  # a device that is no "cpu"
    cache = decoder.new_cache(2000)
    with pytest.raises(OutOfPages):
        _fill(decoder, cache)
    assert (cache.tables[0] >= 0).sum() == decoder.store.limits[0]  # all that the group has
    assert decoder.store.used <= budget
