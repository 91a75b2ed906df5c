"""Hours in minutes: many streams that come, go and are cancelled, with too little memory.

    python -m bench.soak [MINUTES] [STREAMS]

Streams of the default model with random prompts and lengths run side by side on one engine whose
pages do not suffice for all of them. Every answer that is not cancelled must equal the one
computed alone; at the end no page may be in use and memory must have stayed where it was.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from dataclasses import dataclass, field

import numpy as np

from bench.machine import publish
from bench.ours import stored
from unisono.execution.engine import Engine
from unisono.models.cache import PAGE
from unisono.models.decoder import Draw, make_decoder
from unisono.models.loading import load_block
from unisono.observe import speed
from unisono.observe.machine import resident_bytes
from unisono.types import LayerRange, Sampling

PAGES = 20
"""Pages of each group: 16 streams of some 200 positions need up to four each."""
SHAPES = 24
LONGEST = 160


@dataclass(slots=True)
class Tally:
    """What happened."""

    answers: int = 0
    cancelled: int = 0
    wrong: int = 0
    tokens: int = 0
    resident: list[int] = field(default_factory=lambda: [])


def draw_of(tokens: list[int], prompt: int) -> Draw:
    """Sampled with a penalty, so that everything before it matters."""
    sampling = Sampling(temperature=52429, repetition_penalty=72000, seed=5)
    return Draw(sampling, np.array(tokens, dtype=np.int32), prompt)


async def answer(engine: Engine, prompt: list[int], count: int, give_up: int | None) -> list[int]:
    """Tokens of one answer; cut short after `give_up`."""
    cache = engine.decoder.new_cache(len(prompt) + count)
    tokens, position = list(prompt), 0
    try:
        while len(tokens) < len(prompt) + count:
            part = tuple(tokens[position:])
            result = await engine.step(cache, position, part, draw_of(tokens, len(prompt)))
            position += len(part)
            assert result.token is not None
            tokens.append(result.token.token)
            if give_up is not None and len(tokens) - len(prompt) >= give_up:
                break
        return tokens[len(prompt) :]
    finally:
        engine.release(cache)


async def soak(minutes: float, streams: int) -> Tally:
    """Run until the time is over."""
    model = stored()
    block = load_block(model, LayerRange(0, model.layer_count))
    decoder = make_decoder(model.manifest.config, block)
    decoder.store.budget = PAGES * sum(decoder.store.bytes)
    del block
    engine, draw, tally = Engine(decoder), random.Random(7), Tally()
    shapes = [
        (speed.prompt_of(decoder, draw.randint(5, 120), n), draw.randint(8, LONGEST))
        for n in range(SHAPES)
    ]
    expected = [await answer(engine, prompt, count, None) for prompt, count in shapes]
    until = time.monotonic() + minutes * 60

    async def stream() -> None:
        while time.monotonic() < until:
            number = draw.randrange(SHAPES)
            prompt, count = shapes[number]
            give_up = draw.randint(1, count) if draw.random() < 0.25 else None
            got = await answer(engine, prompt, count, give_up)
            tally.tokens += len(got)
            tally.wrong += got != expected[number][: len(got)]
            tally.cancelled += give_up is not None
            tally.answers += give_up is None

    async def watch() -> None:
        while time.monotonic() < until:
            await asyncio.sleep(5)
            tally.resident.append(resident_bytes())

    await asyncio.gather(watch(), *(stream() for _ in range(streams)))
    await engine.adopt(decoder.new_cache(PAGE), [])  # after all that was told before
    assert decoder.store.used == 0, f"{decoder.store.used} bytes of pages are still held"
    await engine.close()
    return tally


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    streams = int(sys.argv[2]) if len(sys.argv) > 2 else 16
    tally = asyncio.run(soak(minutes, streams))
    settled = tally.resident[len(tally.resident) // 4 :]
    row: dict[str, object] = {
        "minutes": minutes,
        "streams": streams,
        "answers": tally.answers,
        "cancelled": tally.cancelled,
        "other than alone": tally.wrong,
        "tokens": tally.tokens,
        "resident MB": settled[-1] / 1e6,
        "growth %": (max(settled) / settled[0] - 1) * 100,
    }
    publish("soak", [row])
    assert tally.wrong == 0, f"{tally.wrong} answers differ from those computed alone"


if __name__ == "__main__":
    main()
