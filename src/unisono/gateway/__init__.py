"""The front door: an OpenAI-compatible HTTP interface over a network of nodes.

A composer makes a `GatewayService`, wraps it with `create_app`, and runs that with `serve`.
"""

from unisono.gateway.app import create_app
from unisono.gateway.fallback import (
    Fallback,
    ModelFallback,
    RemoteFallback,
    ReplicaFallback,
    fallback_models,
    parse_fallbacks,
    wants_replica,
)
from unisono.gateway.metrics import GatewayMetrics
from unisono.gateway.receipts import ReceiptStore
from unisono.gateway.served import ServedModel
from unisono.gateway.server import GatewayServer, serve
from unisono.gateway.service import GatewayService
from unisono.gateway.settings import GatewaySettings

__all__ = [
    "Fallback",
    "GatewayMetrics",
    "GatewayServer",
    "GatewayService",
    "GatewaySettings",
    "ModelFallback",
    "ReceiptStore",
    "RemoteFallback",
    "ReplicaFallback",
    "ServedModel",
    "create_app",
    "fallback_models",
    "parse_fallbacks",
    "serve",
    "wants_replica",
]
