from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unisono.routing.recent import Recent

writes = st.lists(st.tuples(st.integers(0, 9), st.integers(), st.booleans()), max_size=60)


@given(writes, st.integers(1, 5))
def test_the_latest_writes_stay_and_no_more_than_the_limit(
    done: list[tuple[int, int, bool]], limit: int
) -> None:
    table: Recent[int, int] = Recent(limit)
    expected: dict[int, int] = {}
    for key, value, dropped in done:
        expected.pop(key, None)
        if dropped:
            table.drop(key)
        else:
            table.put(key, value)
            expected[key] = value
            while len(expected) > limit:
                del expected[next(iter(expected))]
        assert list(table.items()) == list(expected.items())
        assert len(table) == len(expected)
        assert (key in table) == (key in expected)
        assert table.get(key) == expected.get(key)
