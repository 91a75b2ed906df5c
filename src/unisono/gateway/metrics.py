"""What a gateway counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from unisono.routing.health import WHOLE, Health
from unisono.routing.network import NodeStatus
from unisono.types import NodeId

PREFIX = "unisono_gateway"
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class GatewayMetrics:
    """One registry per gateway, so that several can live in one process. Times in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}_requests",
            "HTTP requests by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.errors = Counter(
            f"{PREFIX}_errors",
            "Refused or failed requests by kind",
            ["kind"],
            registry=self.registry,
        )
        self.tokens_in = Counter(
            f"{PREFIX}_prompt_tokens",
            "Tokens of admitted prompts",
            ["model"],
            registry=self.registry,
        )
        self.tokens_out = Counter(
            f"{PREFIX}_answer_tokens",
            "Tokens of answers",
            ["model"],
            registry=self.registry,
        )
        self.first_token = Histogram(
            f"{PREFIX}_first_token_seconds",
            "From the start of an answer to its first token",
            ["model"],
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.token = Histogram(
            f"{PREFIX}_token_seconds",
            "Mean time per token of an answer after its first",
            ["model"],
            buckets=TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.hop = Histogram(
            f"{PREFIX}_hop_seconds",
            "Time that one hop takes, as routing sees it",
            ["node"],
            buckets=TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.unsigned = Counter(
            f"{PREFIX}_answers_without_receipt",
            "Answers whose hops did not sign in time",
            registry=self.registry,
        )
        self.attempts = Counter(
            f"{PREFIX}_attempts",
            "Chains of nodes that were opened for answers; beyond one per answer, lost hops",
            ["model"],
            registry=self.registry,
        )
        self.fallbacks = Counter(
            f"{PREFIX}_fallbacks",
            "Requests that a fallback answered, by its kind and by what was wrong",
            ["kind", "reason"],
            registry=self.registry,
        )
        self.fallback_failures = Counter(
            f"{PREFIX}_fallback_failures",
            "Times that a fallback was asked and could not answer",
            ["kind"],
            registry=self.registry,
        )
        self.audits = Counter(
            f"{PREFIX}_audits",
            "Committee replays of hops of answers, by verdict",
            ["verdict"],
            registry=self.registry,
        )
        self.committee_faults = Counter(
            f"{PREFIX}_committee_faults",
            "What members of committees did wrong",
            ["kind"],
            registry=self.registry,
        )
        self.convicted = Gauge(
            f"{PREFIX}_convicted_nodes",
            "Nodes that are proven to have signed something false",
            registry=self.registry,
        )
        self.cases = Counter(
            f"{PREFIX}_cases",
            "Cases about false claims before a chain's committee, by how they ended",
            ["outcome"],
            registry=self.registry,
        )
        self.case_units = Counter(
            f"{PREFIX}_case_units",
            "Units of the coin in these cases: paid for bonds and fees, and got when they ended",
            ["way"],
            registry=self.registry,
        )
        self.open_cases = Gauge(
            f"{PREFIX}_open_cases", "Cases that are not over", registry=self.registry
        )
        self.disconnects = Counter(
            f"{PREFIX}_disconnects",
            "Clients that left before their answer was complete",
            registry=self.registry,
        )
        self.running = Gauge(
            f"{PREFIX}_running_answers", "Answers being computed", registry=self.registry
        )
        self.queued = Gauge(
            f"{PREFIX}_queued_requests", "Requests that wait for a place", registry=self.registry
        )
        self.availability = Gauge(
            f"{PREFIX}_availability",
            "Share of the nodes of a model's placement that answer heartbeats",
            ["model"],
            registry=self.registry,
        )
        self.missing_layers = Gauge(
            f"{PREFIX}_missing_layers",
            "Layers of a model that no live node holds",
            ["model"],
            registry=self.registry,
        )
        self.receipts = Gauge(f"{PREFIX}_receipts", "Receipts stored", registry=self.registry)
        self.free_positions = Gauge(
            f"{PREFIX}_node_free_positions",
            "Free positions of a node's KV cache",
            ["node", "layers"],
            registry=self.registry,
        )

    def observe_hop(self, node: NodeId, seconds: float) -> None:
        """For routing to call: how long `node` took for one step of an answer."""
        self.hop.labels(node).observe(seconds)

    def expose(
        self,
        *,
        nodes: Iterable[NodeStatus],
        health: Mapping[str, Health],
        running: int,
        queued: int,
        receipts: int,
    ) -> bytes:
        """Everything in Prometheus's text format, with the gauges as they are now. `health` is
        per model name."""
        self.running.set(running)
        self.queued.set(queued)
        self.receipts.set(receipts)
        for model, state in health.items():
            self.availability.labels(model).set(state.availability / WHOLE)
            self.missing_layers.labels(model).set(sum(run.count for run in state.missing))
        # From scratch each time, so that a node that left does not linger.
        self.free_positions.clear()
        for each in nodes:
            if each.alive:
                self.free_positions.labels(each.node, str(each.layers)).set(each.free_positions)
        return generate_latest(self.registry)
