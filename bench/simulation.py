"""Scenarios and ways to choose paths, side by side in the same simulated world.

    python -m bench.simulation [NODES [HOURS]]

Two tables: every scenario with best paths, and every policy in the steady scenario and with slow
nodes. "Watched" is the share of the same twentieth of the nodes among the hops of new chains: they
are honest in every scenario but that of liars. Times on the network are virtual; only the last
column is time of this machine.
"""

from __future__ import annotations

import sys
import time

from bench.machine import publish
from unisono.simulation.run import simulate
from unisono.simulation.settings import Policy, Regions, Scenario, Settings

NODES, HOURS = 2000, 0.25


def row(name: str, settings: Settings) -> dict[str, object]:
    """One run as a line of a table."""
    start = time.perf_counter()
    report = simulate(settings)
    failed = sum(report.failed.values())
    watched = [p.marked_share for p in report.series]
    first, rest = watched[:6], watched[6:]
    return {
        "run": name,
        "asked": report.requests,
        "answered": report.completed,
        "failed": failed,
        "failed %": round(100 * failed / max(1, report.requests), 3),
        "retries": report.retries,
        "most retries": report.most_retries,
        "tokens/s": report.tokens_per_second,
        "first token p50 ms": round(report.first_token_ms.p50),
        "p95 ms": round(report.first_token_ms.p95),
        "per token p50 ms": round(report.answer_token_ms.p50),
        "per token p95 ms": round(report.answer_token_ms.p95),
        "hops": report.hops,
        "pause p50 ms": round(report.pause_ms.p50),
        "pause p95 ms": round(report.pause_ms.p95),
        "availability %": round(100 * report.availability, 2),
        "utilisation %": round(100 * report.utilisation, 2),
        "control KB/s": round(sum(report.control.values()) / 1000, 2),
        "watched, first minute %": round(100 * sum(first) / max(1, len(first)), 2),
        "watched, after %": round(100 * sum(rest) / max(1, len(rest)), 2),
        "run s": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Run all of them, one after another."""
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else NODES
    hours = float(sys.argv[2]) if len(sys.argv) > 2 else HOURS
    base = Settings(nodes=nodes, hours=hours).checked()

    def settings(scenario: Scenario, policy: Policy, regions: Regions = Regions.HASH) -> Settings:
        return Settings(
            nodes=base.nodes, hours=base.hours, scenario=scenario, policy=policy, regions=regions
        )

    scenarios = [row(s.value, settings(s, Policy.BEST_PATH)) for s in Scenario]
    near = settings(Scenario.STEADY, Policy.BEST_PATH, Regions.DISTANCE)
    scenarios.append(row("steady, regions by distance", near))
    publish("simulation-scenarios", scenarios, nodes=nodes, hours=hours, seed=base.seed)
    policies = [
        row(f"{scenario.value}, {policy.value}", settings(scenario, policy))
        for scenario in (Scenario.STEADY, Scenario.SLOW)
        for policy in Policy
    ]
    publish("simulation-policies", policies, nodes=nodes, hours=hours, seed=base.seed)


if __name__ == "__main__":
    main()
