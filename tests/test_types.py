"""The shared vocabulary: addresses, canonical bytes, and virtual time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisono.clock import SystemClock, VirtualClock
from unisono.errors import ConfigurationError
from unisono.types import (
    GenerationRequest,
    LayerRange,
    ModelId,
    NodeId,
    PeerAddress,
    canonical,
    digest,
    is_hex,
    request_hash,
)

NODE = NodeId("ab" * 32)


@given(
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.sampled_from(["tcp", "iroh", "memory"]),
    st.lists(
        st.sampled_from(["127.0.0.1:1", "[::1]:65535", "example.org:443"]), min_size=1, max_size=4
    ),
)
def test_an_address_is_read_as_it_was_written(
    node: str, transport: str, addresses: list[str]
) -> None:
    address = PeerAddress(NodeId(node), transport, tuple(addresses))
    assert PeerAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp://",
        f"tcp://{NODE}",
        f"tcp://{NODE}@",
        f"{NODE}@127.0.0.1:1",
        f"tcp://{NODE.upper()}@127.0.0.1:1",
        f"tcp://{NODE[:-1]}@127.0.0.1:1",
        "tcp://127.0.0.1:1",
    ],
)
def test_what_is_no_address_is_a_configuration_error_that_shows_the_form(text: str) -> None:
    with pytest.raises(ConfigurationError, match="TRANSPORT://NODE_ID@HOST:PORT"):
        PeerAddress.parse(text)


@given(st.text(max_size=10))
def test_hex_is_lowercase_and_of_one_length(text: str) -> None:
    assert is_hex(text, 2) == (len(text) == 4 and all(c in "0123456789abcdef" for c in text))


def test_a_layer_range_counts_without_its_stop() -> None:
    assert LayerRange(3, 9).count == 6
    assert str(LayerRange(3, 9)) == "3:9"


def test_a_digest_separates_domains_and_parts() -> None:
    digests = [
        digest("a", b"xy"),
        digest("b", b"xy"),
        digest("a", b"x", b"y"),
        digest("a", b"xy", b""),
    ]
    assert len(set(digests)) == 4


def test_the_request_hash_covers_every_field() -> None:
    request = GenerationRequest(ModelId("cd" * 32), (1, 2), 5)
    others = [
        GenerationRequest(ModelId("cd" * 32), (1, 2), 6),
        GenerationRequest(ModelId("cd" * 32), (1,), 5),
        GenerationRequest(ModelId("cd" * 32), (1, 2), 5, stop=("x",)),
        GenerationRequest(ModelId("cd" * 32), (1, 2), 5, stop_tokens=(1,)),
    ]
    assert len({request_hash(r) for r in [request, *others]}) == 5
    assert canonical(request) == canonical(GenerationRequest(ModelId("cd" * 32), (1, 2), 5))


async def test_virtual_sleepers_wake_in_order_of_their_due_time() -> None:
    clock = VirtualClock()
    start = clock.monotonic()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic() - start))

    tasks = [asyncio.create_task(sleeper(n, s)) for n, s in (("c", 30), ("a", 1), ("b", 2))]
    await asyncio.sleep(0)
    await clock.advance(0.5)
    assert woken == []
    await clock.advance(9.5)
    assert woken == [("a", 1.0), ("b", 2.0)]
    assert clock.now() == clock.monotonic() == start + 10
    await clock.advance(20)
    assert woken[-1] == ("c", 30.0)
    await asyncio.gather(*tasks)


async def test_a_sleeper_that_sleeps_again_is_woken_within_the_same_advance() -> None:
    clock = VirtualClock()
    ticks: list[float] = []

    async def ticker() -> None:
        while True:
            await clock.sleep(1)
            ticks.append(clock.now())

    task = asyncio.create_task(ticker())
    await asyncio.sleep(0)
    await clock.advance(5)
    assert len(ticks) == 5
    task.cancel()
    await clock.advance(5)
    assert len(ticks) == 5


async def test_the_system_clock_moves_forward() -> None:
    clock = SystemClock()
    before, wall = clock.monotonic(), clock.now()
    await clock.sleep(0.01)
    assert clock.monotonic() - before >= 0.009
    assert abs(clock.now() - wall) < 60
