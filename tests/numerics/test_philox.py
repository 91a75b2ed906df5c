import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.numerics.drawn import some, tensor
from unisono.numerics import scalar
from unisono.numerics.philox import philox

ONES = 0xFFFFFFFF

# from kat_vectors of Random123, the authors' library
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_specification_gives_the_published_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert scalar.philox4x32(counter, key) == words


@some
@given(
    st.lists(st.integers(0, ONES), min_size=1, max_size=8),
    st.integers(0, ONES),
    st.integers(0, (1 << 64) - 1),
)
def test_the_generator_equals_the_specification(ids: list[int], position: int, seed: int) -> None:
    got = philox(tensor(ids), position, seed)
    assert got.tolist() == [scalar.philox(i, position, seed) for i in ids]


def test_the_generator_gives_the_published_answer_for_zeros() -> None:
    assert philox(tensor([0]), 0, 0).tolist() == [0x6627E8D5]


def test_a_token_s_word_does_not_depend_on_the_other_tokens() -> None:
    words = philox(torch.arange(1000), 17, 5)
    chosen = tensor([999, 0, 512])
    assert torch.equal(philox(chosen, 17, 5), words[chosen])
