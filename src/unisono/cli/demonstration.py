"""`unisono dispute demo`: disputes on a chain of this machine, shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unisono.cli.court import outcome_report, print_report, status
from unisono.cli.money import coins

if TYPE_CHECKING:
    from unisono.compose.dispute_demo import Shown
    from unisono.models.store import StoredModel

DEMO = "demo"
TRIAL = "trial"
"""The demonstration's own model."""
LARGE_MOVE_SECONDS = 180
"""For a move about a model that is not the demonstration's own."""


def demonstrate(operator: str, ledger: str, model: str, *, as_json: bool) -> None:
    """Show disputes about a node that lies in each of an operator's steps, then about an honest
    one. Ends the verb: 0 if all end as they should, else 1.

    Raises:
        UnisonoError: the operator is none, or something does not start.
    """
    import asyncio

    from unisono.compose.crooked import WEIGHTS
    from unisono.errors import ConfigurationError
    from unisono.verification.adversaries.lying import kinds_of

    if ledger not in ("embedded", "anvil"):
        raise ConfigurationError(f"--ledger {ledger[:40]}: expected embedded or anvil")
    conducts = (WEIGHTS,) if operator == WEIGHTS else kinds_of(operator)
    if operator == "all":
        conducts = (*conducts, WEIGHTS)
    shown = asyncio.run(_demonstrate(conducts, ledger, model, as_json=as_json))
    if as_json:
        right = all(x.is_right for x in shown)
        print_report({"ledger": ledger, "right": right, "disputes": [_shown(x) for x in shown]})
    told = bool(shown) and all(x.is_right for x in shown)
    raise typer.Exit(0 if told else 1)


async def _demonstrate(
    conducts: tuple[str, ...], ledger: str, name: str, *, as_json: bool
) -> list[Shown]:
    import tempfile

    from unisono.cli.terminal import note
    from unisono.compose.dispute_demo import HONEST, MOVE_SECONDS, demonstration

    found: list[Shown] = []
    with tempfile.TemporaryDirectory(prefix="unisono-demo-") as folder:
        seconds = MOVE_SECONDS if name == TRIAL else LARGE_MOVE_SECONDS
        with status(as_json) as told:
            told("preparing the model")
            model = _model(name, Path(folder))
            async with demonstration(model, ledger, seconds, told) as demo:
                for conduct in (*conducts, HONEST):
                    shown = await demo.show(conduct, told)
                    if shown is None:
                        if not as_json:
                            note(f"{conduct}: the model has no such step")
                        continue
                    found.append(shown)
                    if not as_json:
                        _show(shown)
    return found


def _model(name: str, folder: Path) -> StoredModel:
    if name == TRIAL:
        from unisono.compose.trial_model import trial_model

        return trial_model(folder)
    from unisono.models.store import ModelStore

    return ModelStore().ensure(name)


def _show(shown: Shown) -> None:
    from unisono.cli.terminal import out

    outcome = shown.outcome
    who = f"A node that lies in '{shown.conduct}'" if shown.conduct else "An honest node"
    out.print(f"{who}: {'as it should' if shown.is_right else 'NOT AS IT SHOULD'}", soft_wrap=True)
    step = f", judged: one step of '{shown.judged}'" if shown.judged else ""
    ended = "the node lost" if outcome.challenger_won else "the challenger lost"
    moves = len(outcome.plays) - 2
    out.print(
        f"  {ended} after {moves} moves, {outcome.gas:,} gas, {shown.seconds:.0f} s{step}",
        soft_wrap=True,
    )
    out.print(
        f"  stake       {coins(shown.stake_before)} → {coins(shown.stake_after)}", soft_wrap=True
    )
    for name, gain in (
        ("challenger", shown.challenger_gain),
        ("payer", shown.payer_gain),
        ("node", shown.node_gain),
    ):
        out.print(f"  {name:10}  {'+' if gain > 0 else ''}{coins(gain)}", soft_wrap=True)


def _shown(shown: Shown) -> dict[str, Any]:
    return {
        "conduct": shown.conduct or "honest",
        "right": shown.is_right,
        "judged": shown.judged,
        "seconds": round(shown.seconds, 1),
        "stake_before": shown.stake_before,
        "stake_after": shown.stake_after,
        "challenger": shown.challenger_gain,
        "payer": shown.payer_gain,
        "node": shown.node_gain,
        **outcome_report(shown.outcome),
    }
