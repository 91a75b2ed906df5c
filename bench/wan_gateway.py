"""The gateway of the wide-area bench, which asks its own network: run by `bench.wan`.

Prints its address as the first line; then answers jobs, one JSON object per line of its input,
with one JSON object per line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

from unisono.compose.gateway import Front, FrontSettings
from unisono.models.tokenizer import Tokenizer
from unisono.routing.swarm import Swarm
from unisono.types import GenerationRequest, ModelId, Sampling

MODEL = "gemma-3-270m"


async def answer(swarm: Swarm, request: GenerationRequest) -> dict[str, Any]:
    """One answer: its tokens, and when the first and the last of them came."""
    begun = time.perf_counter()
    answer = await swarm.open(request)
    tokens: list[int] = []
    first = last = begun
    try:
        async for token in answer:
            last = time.perf_counter()
            first = first if tokens else last
            tokens.append(token.token)
    finally:
        await answer.cancel()
    return {"tokens": tokens, "first": first - begun, "seconds": last - first}


async def work(job: dict[str, Any], swarm: Swarm, tokenizer: Tokenizer, model: ModelId) -> Any:
    """What a job asks for: every prompt after the other, or all at once."""
    swarm.settings = replace(swarm.settings, draft=job["draft"])
    requests = [
        GenerationRequest(
            model=model,
            prompt=tuple(tokenizer.encode(text)),
            max_tokens=job["max_tokens"],
            sampling=Sampling(temperature=job.get("temperature", 0), seed=7),
        )
        for text in job["prompts"]
    ]
    begun = time.perf_counter()
    if job["together"]:
        answers = await asyncio.gather(*(answer(swarm, r) for r in requests))
    else:
        answers = [await answer(swarm, r) for r in requests]
    wall = time.perf_counter() - begun
    for a, r in zip(answers, requests, strict=True):
        a["prompt"] = len(r.prompt)
    return {"answers": answers, "wall": wall}


async def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    bind = sys.argv[1]
    front = Front(FrontSettings(MODEL, transport="tcp", bind=bind, port=0))
    print(await front.bind(), flush=True)
    await front.start()
    assert front.swarm is not None
    assert front.model is not None
    tokenizer = Tokenizer.from_files(front.model.tokenizer_files())
    await front.wait_for_coverage(120)
    print("ready", flush=True)
    try:
        while line := await asyncio.to_thread(sys.stdin.readline):
            done = await work(json.loads(line), front.swarm, tokenizer, front.model.id)
            print(json.dumps(done), flush=True)
    finally:
        await front.close()


def rate(done: dict[str, Any]) -> float:
    """Tokens per second after the first token, of all answers of a job that ran in turn."""
    answers = done["answers"]
    return sum(len(a["tokens"]) - 1 for a in answers) / sum(a["seconds"] for a in answers)


def first_token(done: dict[str, Any]) -> float:
    """Median seconds to the first token."""
    return statistics.median(a["first"] for a in done["answers"])


if __name__ == "__main__":
    asyncio.run(main())
