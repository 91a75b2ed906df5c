"""Disputes on a chain about every step, between real processes: gas, moves and seconds of each.

    python -m bench.disputes [--ledger embedded|anvil] [--model NAME] [STEP ...]

Per ledger, for every kind of step: a node process that lies there, and a challenger, as
`unisono dispute demo` has them; then a wrong weight, and an honest node that is challenged. Seconds
are from the bond to the last payment and depend on what else the machine does; the last column is
whether all were paid as they should. A row that is not ends the program with status 1. Figures of
ledgers and steps that are not asked for stay as they are in the file.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from bench.machine import RESULTS, publish
from unisono.compose.crooked import WEIGHTS
from unisono.compose.dispute_demo import HONEST, MOVE_SECONDS, Shown, demonstration
from unisono.compose.trial_model import trial_model
from unisono.errors import UnisonoError
from unisono.models.store import ModelStore
from unisono.settlement.ledger.anvil import find_anvil
from unisono.verification.adversaries.lying import kinds_of

LARGE_MOVE_SECONDS = 180
NAME = "disputes"


def row_of(model: str, ledger: str, conduct: str, shown: Shown) -> dict[str, Any]:
    """One row of the table."""
    plays = shown.outcome.plays
    steps = [x.gas for x in plays if x.what == "prove"]
    return {
        "model": model,
        "ledger": ledger,
        "lie": conduct or "none (false challenge)",
        "transactions": len(plays),
        "gas": shown.outcome.gas,
        "most gas of one step": max(steps, default=0),
        "seconds": round(shown.seconds, 1),
        "lost by": "node" if shown.outcome.challenger_won else "challenger",
        "right": shown.is_right,
    }


def kept_rows() -> list[dict[str, Any]]:
    """Those of earlier runs."""
    path = RESULTS / f"{NAME}.json"
    if not path.exists():
        return []
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]).get("rows", [])


async def measured(name: str, ledgers: list[str], conducts: list[str]) -> list[dict[str, Any]]:
    """A row for each ledger and conduct that the model has a step for."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trial = name == "trial"
        model = trial_model(Path(folder)) if trial else ModelStore().ensure(name)
        seconds = MOVE_SECONDS if trial else LARGE_MOVE_SECONDS
        for ledger in ledgers:
            async with demonstration(model, ledger, seconds) as demo:
                for conduct in conducts:
                    try:
                        shown = await demo.show(conduct)
                    except UnisonoError as error:
                        print(f"{conduct} on {ledger}: {error}", flush=True)
                        continue
                    if shown is not None:
                        rows.append(row_of(name, ledger, conduct, shown))
                        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ledger", choices=("embedded", "anvil"))
    parser.add_argument("--model", default="trial")
    parser.add_argument("steps", nargs="*")
    asked = parser.parse_args()
    ledgers = [asked.ledger] if asked.ledger else ["embedded"]
    if not asked.ledger and find_anvil():
        ledgers.append("anvil")
    conducts: list[str] = []
    for step in asked.steps or ["all", WEIGHTS, "honest"]:
        if step in (WEIGHTS, "honest"):
            conducts.append(WEIGHTS if step == WEIGHTS else HONEST)
        else:
            conducts += kinds_of(step)
    rows = asyncio.run(measured(asked.model, ledgers, list(dict.fromkeys(conducts))))
    key = ("model", "ledger", "lie")
    new = {tuple(row[k] for k in key) for row in rows}
    kept = [row for row in kept_rows() if tuple(row[k] for k in key) not in new]
    publish(NAME, sorted((*kept, *rows), key=lambda r: tuple(r[k] for k in key)))
    if not all(row["right"] for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
