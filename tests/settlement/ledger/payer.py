"""A process that works through its outbox until it is killed: for tests of kills.

    python -m tests.settlement.ledger.payer FOLDER URL COIN COUNT

Mints 1, 10, 100 … of the coin to itself, each once, and prints `done N` when all are final.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from unisono.settlement.artifacts import artifact
from unisono.settlement.ledger.contract import Contract
from unisono.settlement.ledger.delivery import OutboxSettings
from unisono.settlement.ledger.fees import FeeRule
from unisono.settlement.ledger.intents import Intent
from unisono.settlement.ledger.outbox import Outbox
from unisono.settlement.ledger.rpc import connected
from unisono.settlement.signature import SettlementKey
from unisono.types import EvmAddress

KEY = SettlementKey(b"\x51" * 32)


async def work(folder: Path, url: str, coin: str, count: int) -> None:
    ledger = await connected(url, wait_seconds=30)
    settings = OutboxSettings(poll_seconds=0.02, fees=FeeRule(wait_seconds=5), in_flight=3)
    path = folder / "outbox.sqlite"
    outbox = await Outbox.open(path, ledger, KEY, settings=settings, locks=folder)
    worker = asyncio.create_task(outbox.run())
    contract = Contract(EvmAddress(coin), artifact("stablecoin").abi)
    names = [
        await outbox.submit(Intent(contract.address, contract.encode("mint", KEY.address, 10**n)))
        for n in range(count)
    ]
    sys.stdout.write("working\n")
    sys.stdout.flush()
    for name in names:
        waiting = asyncio.create_task(outbox.final(name))
        await asyncio.wait({waiting, worker}, return_when=asyncio.FIRST_COMPLETED)
        if worker.done():
            worker.result()
        await waiting
    sys.stdout.write(f"done {len(names)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))
