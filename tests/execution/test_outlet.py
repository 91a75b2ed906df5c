"""What a hop sends on: the receiver ends up with exactly what the hop has in the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisono.errors import PeerRefused
from unisono.execution import outlet as outlet_module
from unisono.execution.outlet import RowsOutlet, TokensOutlet
from unisono.types import SampledToken, SessionId
from unisono.wire.bounds import MAX_DRAFT_ROWS
from unisono.wire.frames import encode_frame
from unisono.wire.messages import Pages, Rows, Tokens
from unisono.wire.packing import unpack
from unisono.wire.rows import encode_rows

SESSION = SessionId("5e" * 16)


class FakeLink:
    """Keeps what is posted; has room for as many messages as it is given."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.posted: list[tuple[Any, bytes]] = []
        self.waiting: list[Any] = []

    @property
    def has_room(self) -> bool:
        return self.room > 0

    def when_room(self, call: Any) -> None:
        self.waiting.append(call)

    def post(self, message: Any, body: bytes = b"") -> None:
        encode_frame(message, body)  # within the bounds of messages
        self.room -= 1
        self.posted.append((message, body))

    def gain(self, room: int) -> None:
        """There is room again, and those who asked are told."""
        self.room = max(0, self.room) + room
        calls, self.waiting = self.waiting, []
        for call in calls:
            call()


def row(position: int, version: int) -> bytes:
    """A row that says what it is; some are wide."""
    wide = 1 << 33 if position % 3 == 0 else 0
    return bytes(encode_rows(np.array([[position, version + wide]], dtype=np.int64))[1][0])


Row = tuple[bytes, int, int | None]


def row_of(position: int, version: int, prompt: int) -> Row:
    """A row as a receiver sees it: bytes, width, and token unless it is of the prompt."""
    token = None if position < prompt else 1000 * version + position
    return row(position, version), len(row(position, version)) // 2, token


def received(link: FakeLink, into: dict[int, Row], prompt: int) -> None:
    """Take what was posted, as the next hop does: rows replace what came behind them before."""
    for message, body in link.posted:
        assert isinstance(message, Rows)
        count = len(message.widths)
        assert message.position <= max(into, default=-1) + 1, "a gap"
        inside = message.position + count <= prompt
        assert inside == (message.tokens == ()), "rows of prompt and answer are apart"
        assert inside or message.position >= prompt
        assert inside or count <= MAX_DRAFT_ROWS
        for position in [p for p in into if p >= message.position]:
            del into[position]
        values = unpack(body, 2 * count, message.low, message.apart).reshape(count, 2)
        widths, encoded = encode_rows(values)
        assert widths == message.widths
        for i, width in enumerate(widths):
            token = message.tokens[i] if message.tokens else None
            into[message.position + i] = bytes(encoded[i]), width, token
    link.posted.clear()


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    kind = st.one_of(
        st.tuples(st.just("add"), st.integers(1, 90)),
        st.tuples(st.just("back"), st.integers(1, 40), st.integers(1, 20)),
        st.tuples(st.just("rewire"), st.floats(0, 1), st.sampled_from([0, 1, 1 << 30])),
        st.tuples(st.just("lose")),
        st.tuples(st.just("room"), st.integers(1, 3)),
    )
    return draw(st.lists(kind, max_size=20))


@settings(max_examples=150, deadline=None)
@given(steps(), st.integers(1, 100), st.sampled_from([40, 300, 1 << 20]))
def test_whatever_happens_the_receiver_has_the_final_rows(
    script: list[tuple[Any, ...]], prompt: int, chunk: int
) -> None:
    journal: list[Row] = []
    outlet = RowsOutlet(SESSION, prompt)
    link: FakeLink | None = None
    got: dict[int, Row] = {}

    def add(position: int, count: int, version: int) -> None:
        new = [row_of(p, version, prompt) for p in range(position, position + count)]
        del journal[position:]
        journal.extend(new)
        tokens = [0 if t is None else t for _, _, t in new]
        outlet.add(position, [r for r, _, _ in new], bytes(w for _, w, _ in new), tokens)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlet_module, "CHUNK_BYTES", chunk)
        for version, step in enumerate(script):
            if step[0] == "add":
                add(len(journal), step[1], version)
            elif step[0] == "back":
                add(max(0, len(journal) - step[1]), step[2], version)
            elif step[0] == "rewire":
                # another hop, which has the rows up to a position, as this hop last had them
                position = round(step[1] * len(journal))
                link = FakeLink(step[2])
                got = dict(enumerate(journal[:position]))
                outlet.rewire(link, position)  # type: ignore[arg-type]
            elif step[0] == "lose":
                link = outlet.link = None
            elif link is not None:
                link.gain(step[1])
            assert outlet.position == len(journal)
            if link is not None:
                received(link, got, prompt)
        if link is None:
            link, got = FakeLink(), {}
            outlet.rewire(link, 0)  # type: ignore[arg-type]
        for _ in range(len(journal) + 1):
            link.gain(1)
        received(link, got, prompt)
        assert [got[p] for p in sorted(got)] == journal
        assert sorted(got) == [*range(len(journal))]
        link.gain(100)
        assert link.posted == []  # and nothing is sent twice


def filled(outlet: RowsOutlet, start: int, stop: int) -> None:
    rows = [bytes([p % 256]) * 12 for p in range(start, stop)]  # three values of four bytes
    outlet.add(start, rows, b"\x04" * len(rows), [*range(start, stop)])


def test_rows_of_a_prompt_go_in_large_parts_and_those_of_an_answer_in_small_ones() -> None:
    outlet, link = RowsOutlet(SESSION, 200), FakeLink()
    filled(outlet, 0, 350)
    outlet.rewire(link, 0)  # type: ignore[arg-type]
    assert [(m.position, len(m.widths)) for m, _ in link.posted] == [
        (0, 200),
        (200, 64),
        (264, 64),
        (328, 22),
    ]
    assert [m.tokens[:1] for m, _ in link.posted] == [(), (200,), (264,), (328,)]


def test_a_link_without_room_gets_nothing_until_it_has_some() -> None:
    outlet, link = RowsOutlet(SESSION, 10), FakeLink(room=0)
    outlet.rewire(link, 0)  # type: ignore[arg-type]
    filled(outlet, 0, 12)
    assert link.posted == []
    filled(outlet, 11, 14)  # replaced before it was sent: nobody sees it
    link.gain(1)
    assert [m.position for m, _ in link.posted] == [0]
    link.gain(5)
    assert [(m.position, m.tokens) for m, _ in link.posted[1:]] == [(10, (10, 11, 12, 13))]


def test_a_link_that_was_replaced_while_it_had_no_room_gets_nothing_any_more() -> None:
    outlet, old, new = RowsOutlet(SESSION, 10), FakeLink(room=0), FakeLink()
    outlet.rewire(old, 0)  # type: ignore[arg-type]
    filled(outlet, 0, 5)
    outlet.rewire(new, 2)  # type: ignore[arg-type]
    old.gain(10)
    assert old.posted == []
    assert [(m.position, len(m.widths)) for m, _ in new.posted] == [(2, 3)]


def test_a_hop_that_catches_up_sends_nothing_before_the_position_that_is_wanted() -> None:
    outlet, link = RowsOutlet(SESSION, 10), FakeLink()
    outlet.rewire(link, 12)  # type: ignore[arg-type]
    for start, stop in ((0, 8), (8, 11), (9, 12)):
        filled(outlet, start, stop)
    assert link.posted == []
    filled(outlet, 12, 15)
    assert [(m.position, len(m.widths)) for m, _ in link.posted] == [(12, 3)]
    filled(outlet, 10, 14)  # its guesses of what the next hop knows were wrong
    assert [(m.position, len(m.widths)) for m, _ in link.posted[1:]] == [(12, 2)]


def test_a_full_journal_forgets_the_oldest_rows_that_were_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outlet_module, "JOURNAL_BYTES", 120)  # ten rows
    outlet, link = RowsOutlet(SESSION, 1000), FakeLink()
    filled(outlet, 0, 30)
    for position in (0, 29):
        outlet.rewire(None, position)  # nothing was sent: all of it is there
    outlet.rewire(link, 0)  # type: ignore[arg-type]
    filled(outlet, 30, 40)
    with pytest.raises(PeerRefused, match="begins at position 30, not at 29") as refused:
        outlet.rewire(link, 29)  # type: ignore[arg-type]
    assert refused.value.code == "journal_gone"
    again = FakeLink()
    outlet.rewire(again, 30)  # type: ignore[arg-type]
    assert [(m.position, len(m.widths)) for m, _ in again.posted] == [(30, 10)]
    filled(outlet, 20, 25)  # replaced from before its beginning: it begins there now
    assert outlet.position == 25
    fresh = FakeLink()
    outlet.rewire(fresh, 20)  # type: ignore[arg-type]
    assert [(m.position, len(m.widths)) for m, _ in fresh.posted] == [(20, 5)]
    with pytest.raises(PeerRefused):
        outlet.rewire(fresh, 19)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 12)), max_size=15))
def test_a_journal_never_holds_much_more_than_it_may(parts: list[tuple[int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlet_module, "JOURNAL_BYTES", 240)
        outlet, link = RowsOutlet(SESSION, 1 << 20), FakeLink()
        outlet.rewire(link, 0)  # type: ignore[arg-type]
        for count, back in parts:
            start = max(0, outlet.position - back)
            filled(outlet, start, start + count)
            assert sum(map(len, outlet._rows)) == outlet._bytes <= 240
            assert len(outlet._rows) == len(outlet._widths) == len(outlet._tokens)
            assert outlet.position == start + count


# --- tokens -------------------------------------------------------------------------------------


def tokens(start: int, count: int) -> list[SampledToken]:
    return [SampledToken(p, 7 * p, -p, ((p, -1),)) for p in range(start, start + count)]


def taken(link: FakeLink) -> list[SampledToken]:
    found: list[SampledToken] = []
    for message, body in link.posted:
        assert isinstance(message, Tokens)
        assert body == b""
        assert len(message.tokens) <= MAX_DRAFT_ROWS
        found += message.tokens
    return found


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 150),
    st.lists(st.one_of(st.integers(1, 150), st.floats(0, 1), st.none()), max_size=12),
)
def test_the_gateway_has_every_token_once_and_any_first_hop_those_from_its_position(
    prompt: int, answered: int, script: list[int | float | None]
) -> None:
    known = [7 * p for p in range(prompt + answered)]
    gateway = FakeLink()
    outlet = TokensOutlet(SESSION, gateway, known, prompt)  # type: ignore[arg-type]
    held = [SampledToken(p, 7 * p) for p in range(prompt, prompt + answered)]
    added: list[SampledToken] = []
    link, position = FakeLink(), prompt
    outlet.rewire(link, prompt)  # type: ignore[arg-type]
    for step in script:
        if step is None:
            link, outlet.link = FakeLink(), None
        elif isinstance(step, float):
            position = prompt + round(step * len(held))
            link = FakeLink()
            outlet.rewire(link, position)  # type: ignore[arg-type]
        else:
            new = tokens(prompt + len(held), step)
            held += new
            added += new
            outlet.add(new)
        if outlet.link is not None:
            assert taken(link) == held[position - prompt :]
    assert taken(gateway) == added
    last = FakeLink()
    outlet.rewire(last, prompt)  # type: ignore[arg-type]
    assert taken(last) == held


def test_tokens_before_those_that_a_last_hop_keeps_are_refused() -> None:
    outlet = TokensOutlet(SESSION, FakeLink(), [1, 2, 3, 4], 3)  # type: ignore[arg-type]
    with pytest.raises(PeerRefused, match="before position 3 are not kept") as refused:
        outlet.rewire(FakeLink(), 2)  # type: ignore[arg-type]
    assert refused.value.code == "journal_gone"


def test_the_next_hop_is_asked_again_when_it_was_replaced_until_rows_are_due() -> None:
    outlet, first, second, third = RowsOutlet(SESSION, 200), *(FakeLink() for _ in range(3))
    outlet.ask(b"names")  # before there is a link
    outlet.rewire(first, 0)  # type: ignore[arg-type]
    outlet.rewire(second, 0)  # type: ignore[arg-type]
    assert outlet.asking
    asked = [link.posted for link in (first, second)]
    assert [body for ((_, body),) in asked] == [b"names", b"names"]
    assert asked[0][0][0].turn != asked[1][0][0].turn == outlet.turn
    outlet.begin(128)
    assert not outlet.asking
    filled(outlet, 128, 150)
    assert [m.position for m, _ in second.posted if not isinstance(m, Pages)] == [128]
    with pytest.raises(PeerRefused, match="begins at position 128"):
        outlet.rewire(third, 0)  # type: ignore[arg-type]
    outlet.rewire(third, 130)  # type: ignore[arg-type]
    assert [(m.position, len(m.widths)) for m, _ in third.posted] == [(130, 20)]
