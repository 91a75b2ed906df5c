"""What a replay costs beside the answer that it checks, and what audits add to a network's work.

    nice .venv/bin/python -m bench.replay [--threads N]

An answer of 256 tokens to a prompt of 64 is produced at batch 1, 8 and 32 (prompt, decoding,
sampling, hashing), then replayed as a committee member does it, alone and eight to a batch.
The default model; seconds are of the whole node, so at batch 32 an answer's are 1/32 of a run's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import numpy as np

from bench.machine import publish
from bench.ours import decoder
from unisono.models.decoder import Decoder, Draw, Segment
from unisono.models.rows import row_hashes
from unisono.types import LayerRange, ModelId, Sampling
from unisono.verification.policy import DEFAULT_RATE, DEFAULT_SEATS
from unisono.verification.stakes.lottery import LotteryKey, verify_lot
from unisono.verification.stakes.work import ReplayWork, replay
from unisono.wire.claims import rows_root, tokens_root
from unisono.wire.identity import Identity

PROMPT = 64
TOKENS = 256
BATCHES = (1, 8, 32)
SAMPLING = Sampling()


@dataclass
class Produced:
    """Answers of one run, and what they took."""

    seconds: float
    work: list[ReplayWork]
    roots: list[tuple[str, str]]


def produce(made: Decoder, batch: int) -> Produced:
    """Answer `batch` prompts side by side, one token of each per pass, and sign for the rows."""
    chance = np.random.default_rng(batch)
    prompts = chance.integers(10, 100_000, (batch, PROMPT)).tolist()
    caches = [made.new_cache(PROMPT + TOKENS) for _ in range(batch)]
    known = [np.array(p, dtype=np.int32) for p in prompts]
    hashes: list[list[bytes]] = [[] for _ in range(batch)]
    start = time.perf_counter()
    for i in range(batch):
        rows = made.forward(made.embed(prompts[i]), [Segment(caches[i], 0, PROMPT)])
        hashes[i] += row_hashes(rows)
        choice = made.choose(rows, [(PROMPT - 1, PROMPT, Draw(SAMPLING, known[i], PROMPT))])
        known[i] = np.append(known[i], np.int32(choice[0].token))
    for at in range(PROMPT, PROMPT + TOKENS - 1):
        rows = made.embed([int(k[-1]) for k in known])
        out = made.forward(rows, [Segment(cache, at, 1) for cache in caches])
        for i, row_hash in enumerate(row_hashes(out)):
            hashes[i].append(row_hash)
        draws = [(i, at + 1, Draw(SAMPLING, k, PROMPT)) for i, k in enumerate(known)]
        for i, choice in enumerate(made.choose(out, draws)):
            known[i] = np.append(known[i], np.int32(choice.token))
    roots = [
        (rows_root(h), tokens_root([int(t) for t in k[PROMPT:]]))
        for h, k in zip(hashes, known, strict=True)
    ]
    seconds = time.perf_counter() - start
    for cache in caches:
        cache.close()
    work = [
        ReplayWork(
            audit="00" * 32,
            model=ModelId("00" * 32),
            layers=LayerRange(0, made.config.layer_count),
            prompt=PROMPT,
            tokens=tuple(int(t) for t in k[:-1]),
            rows=None,
            sampling=SAMPLING,
            sampled=(3, 99, 150, 300),
        )
        for k in known
    ]
    return Produced(seconds, work, roots)


def replayed(made: Decoder, produced: Produced, together: int) -> float:
    """Seconds to replay the first `together` answers in one batch, which must give their roots."""
    start = time.perf_counter()
    results = replay(made, produced.work[:together])
    seconds = time.perf_counter() - start
    for result, roots in zip(results, produced.roots, strict=False):
        assert (result.rows_out, result.tokens) == roots, "an honest answer did not replay"
    return seconds


def lottery_ms() -> dict[str, float]:
    """Milliseconds of one lot and of its check."""
    key = LotteryKey(Identity.from_seed(bytes(32)))
    inputs = [i.to_bytes(32, "little") for i in range(300)]
    start = time.perf_counter()
    proofs = [key.draw(i) for i in inputs]
    drawn = time.perf_counter()
    assert all(verify_lot(key.public, i, p) for i, p in zip(inputs, proofs, strict=True))
    checked = time.perf_counter()
    return {
        "draw ms": (drawn - start) / len(inputs) * 1e3,
        "verify ms": (checked - drawn) / len(inputs) * 1e3,
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    rows: list[dict[str, object]] = []
    with decoder(options.threads) as made:
        for batch in BATCHES:
            taken: list[tuple[float, float, float]] = []
            for _ in range(options.repeat):
                produced = produce(made, batch)
                alone = replayed(made, produced, 1)
                together = min(8, batch)
                shared = replayed(made, produced, together) / together
                taken.append((produced.seconds / batch, alone, shared))
            answer, alone, shared = (statistics.median(t) for t in zip(*taken, strict=True))
            rows.append(
                {
                    "batch": batch,
                    "answer s": answer,
                    "replay s": alone,
                    "replay of 8 s": shared,
                    "replay / answer": alone / answer,
                    "replay of 8 / answer": shared / answer,
                    "network overhead %": 100
                    * DEFAULT_RATE
                    / 1e6
                    * DEFAULT_SEATS
                    * shared
                    / answer,
                }
            )
    publish(
        "replay",
        rows,
        prompt=PROMPT,
        tokens=TOKENS,
        threads=options.threads,
        rate_per_million=DEFAULT_RATE,
        seats=DEFAULT_SEATS,
        lottery=lottery_ms(),
    )


if __name__ == "__main__":
    main()
