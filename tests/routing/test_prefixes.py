from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.routing.records import KEYS
from unisono.clock import VirtualClock
from unisono.routing.prefixes import KEPT_SECONDS, MAX_HOLDERS, Prefixes, prefix_keys

NODES = [k.node_id for k in KEYS]
tokens = st.lists(st.integers(0, 3), max_size=300)


@given(tokens, tokens, st.integers(0, 300))
def test_keys_are_equal_exactly_as_far_as_whole_pieces_are(
    one: list[int], other: list[int], shared: int
) -> None:
    a, b = one, one[:shared] + other
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    common = min(len(a), len(b)) if same is None else same
    keys = prefix_keys(a), prefix_keys(b)
    equal = sum(x == y for x, y in zip(*keys, strict=False))
    assert keys[0][:equal] == keys[1][:equal]
    assert equal == min(common // 64, *(max(0, len(p) - 1) // 64 for p in (a, b)))


def test_the_piece_with_the_last_token_has_no_key() -> None:
    assert [len(prefix_keys(range(n))) for n in (0, 1, 64, 65, 128, 129)] == [0, 0, 0, 1, 1, 2]


def test_a_node_holds_what_it_read_from_the_beginning_on() -> None:
    prefixes = Prefixes(VirtualClock())
    long, short = prefix_keys(range(1000)), prefix_keys(range(200))
    prefixes.read(NODES[0], long)
    prefixes.read(NODES[1], short)
    assert prefixes.held(long) == {NODES[0]: 960, NODES[1]: 192}
    assert prefixes.held(short) == {NODES[0]: 192, NODES[1]: 192}
    assert prefixes.held(prefix_keys([9, *range(1000)])) == {}


def test_a_gap_ends_what_is_held() -> None:
    prefixes = Prefixes(VirtualClock())
    keys = prefix_keys(range(1000))
    prefixes.read(NODES[0], keys)
    prefixes.lost(NODES[0], keys[2:3])
    assert prefixes.held(keys) == {NODES[0]: 128}
    prefixes.lost(NODES[0], keys)
    assert prefixes.held(keys) == {}


async def test_what_nobody_asked_for_in_long_is_not_relied_on() -> None:
    clock = VirtualClock()
    prefixes, keys = Prefixes(clock), prefix_keys(range(100))
    prefixes.read(NODES[0], keys)
    await clock.advance(KEPT_SECONDS - 1)
    assert prefixes.held(keys)
    await clock.advance(2)
    assert not prefixes.held(keys)


def test_memory_of_prefixes_is_bounded_and_beginnings_stay_longest() -> None:
    prefixes = Prefixes(VirtualClock(), limit=10)
    keys = prefix_keys(range(64 * 20 + 1))
    for node in NODES:
        prefixes.read(node, keys)
    assert len(prefixes._seen) == 10
    assert prefixes.held(keys) == {NODES[-1]: 640}
    roomy = Prefixes(VirtualClock())
    for node in NODES:
        roomy.read(node, keys)
    assert roomy.held(keys) == dict.fromkeys(NODES[-MAX_HOLDERS:], 1280)
