from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.errors import ConfigurationError
from unisono.routing.placement import even_blocks


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_even_blocks_cover_each_layer_once_and_differ_by_one_at_most(cut: tuple[int, int]) -> None:
    count, parts = cut
    blocks = even_blocks(count, parts)
    assert len(blocks) == parts
    assert [i for b in blocks for i in range(b.start, b.stop)] == [*range(count)]
    assert {b.count for b in blocks} <= {count // parts, -(-count // parts)}


@pytest.mark.parametrize("parts", [0, -1, 7])
def test_more_blocks_than_layers_or_none_are_a_configuration_error(parts: int) -> None:
    with pytest.raises(ConfigurationError, match="choose between 1 and 6 nodes"):
        even_blocks(6, parts)
