from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unisono.errors import PeerCheating, PeerRefused
from unisono.execution.session import HopSession
from unisono.types import LayerRange, Sampling
from unisono.wire.claims import row_hash, rows_root, tokens_root
from unisono.wire.identity import Identity

NODE = Identity.from_seed(b"\x01" * 32)
PROMPT = [5, 6, 7]


def session(
    hop: int,
    hops: int = 3,
    computed: int = 0,
    answer: tuple[int, ...] = (),
    sampling: Sampling = Sampling(seed=3),
) -> HopSession:
    """A session whose prompt has 3 tokens and whose answer may have 4."""
    opened: Any = SimpleNamespace(
        session="5e" * 16,
        request_hash="4e" * 32,
        gateway="6a" * 32,
        model="7b" * 32,
        layers=LayerRange(hop, hop + 1),
        hop=hop,
        hops=hops,
        prompt=3,
        positions=7,
        max_tokens=4,
        stop_tokens=(99,),
        sampling=sampling,
        top_logprobs=-1,
    )
    tokens = [*PROMPT, *answer] if hop in (0, hops - 1) else []
    made = HopSession(opened, tokens, cache=None, control=None)  # type: ignore[arg-type]
    made.in_hashes = [row_hash(bytes([1, i])) for i in range(computed)]
    made.out_hashes = [row_hash(bytes([2, i])) for i in range(computed)]
    return made


def test_a_claim_covers_what_gave_the_accepted_tokens_and_no_more() -> None:
    hop = session(2, computed=6, answer=(10, 11, 12, 13))
    claim = hop.claim(2, NODE)
    assert claim.positions == 4  # three of the prompt, and the first token, which gave the second
    assert claim.rows_in == rows_root(hop.in_hashes[:4])
    assert claim.rows_out == rows_root(hop.out_hashes[:4])
    assert claim.out_tags == b"".join(h[:3] for h in hop.out_hashes[:4])
    assert claim.tokens == tokens_root((10, 11))
    assert claim.node == NODE.node_id
    assert claim.signature_is_good()


@pytest.mark.parametrize("hop", [0, 1])
def test_only_the_last_hop_signs_tokens(hop: int) -> None:
    assert session(hop, computed=6, answer=(10, 11, 12, 13)).claim(2, NODE).tokens == ""


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("tokens", [0, -1, 3])
def test_nothing_is_signed_that_was_not_computed(hop: int, tokens: int) -> None:
    with pytest.raises(PeerRefused) as refusal:
        session(hop, computed=4, answer=(10, 11)).claim(tokens, NODE)
    assert refusal.value.code == "not_computed"


def test_a_row_whose_token_was_not_sampled_is_not_signed_as_an_answer() -> None:
    with pytest.raises(PeerRefused, match="only 1 tokens were sampled"):
        session(2, computed=4, answer=(10,)).claim(2, NODE)


def test_an_answer_ends_with_a_stop_token_or_at_its_length() -> None:
    assert not session(0).ended
    assert not session(0, answer=(1, 2, 3)).ended
    assert session(0, answer=(1, 2, 3, 4)).ended
    assert session(0, answer=(1, 99)).ended
    assert not session(0, answer=(99, 1)).ended


def test_only_the_last_hop_draws_and_only_after_the_last_known_token() -> None:
    last = session(2, answer=(10,))
    draw = last.draw_after(3)
    assert draw is not None
    assert len(draw.tokens) == 0  # nothing looks at them without a penalty
    penalised = session(2, answer=(10,), sampling=Sampling(frequency_penalty=9)).draw_after(3)
    assert penalised is not None
    assert (penalised.prompt, penalised.tokens.tolist()) == (3, [5, 6, 7, 10])
    assert last.draw_after(2) is None
    assert session(0, answer=(10,)).draw_after(3) is None
    assert session(0, hops=1, answer=(10,)).draw_after(3) is not None


@pytest.mark.parametrize(
    ("hop", "position", "count", "problem"),
    [
        (1, 3, 1, "when position 2 was next"),
        (1, 0, 1, "when position 2 was next"),
        (1, 2, 6, "in a session of 7 positions"),
        (2, 2, 3, "position 4 before its token"),
    ],
)
def test_rows_out_of_order_out_of_bounds_or_too_early_are_cheating(
    hop: int, position: int, count: int, problem: str
) -> None:
    with pytest.raises(PeerCheating, match=problem):
        session(hop, computed=2, answer=(10,)).check_rows(position, count)


def test_rows_in_order_are_fine() -> None:
    session(1, computed=2).check_rows(2, 5)
    session(2, computed=2, answer=(10,)).check_rows(2, 2)
