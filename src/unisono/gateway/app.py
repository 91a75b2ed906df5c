"""The HTTP application: routes, errors in OpenAI's form, and a count of every request."""

from __future__ import annotations

import logging
import secrets

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unisono.errors import UnisonoError
from unisono.gateway.errors import kind_of, plain_reply
from unisono.gateway.metrics import GatewayMetrics
from unisono.gateway.routes import api_routes, open_routes, service_of
from unisono.gateway.service import GatewayService

log = logging.getLogger(__name__)


def create_app(service: GatewayService) -> FastAPI:
    """The ASGI application of one gateway. It owns nothing: closing `service`'s parts is
    for whoever made them."""
    app = FastAPI(title="Unisono gateway", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = service
    app.include_router(open_routes)
    app.include_router(api_routes)
    app.add_exception_handler(UnisonoError, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _defect)
    app.add_middleware(RequestCount, metrics=service.metrics)
    return app


class RequestCount:
    """Counts requests by route and status, and gives each an `x-request-id`."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def observe(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = f"req_{secrets.token_hex(12)}"
            await send(message)

        try:
            await self._app(scope, receive, observe)
        finally:
            # The pattern of the route and not the path, which clients choose freely.
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if route != "unmatched" else "any"
            self._metrics.requests.labels(method, route, str(status)).inc()


async def _refused(request: Request, error: Exception) -> Response:
    service = service_of(request)
    reply = service.reply_to(error)
    service.metrics.errors.labels(kind_of(error)).inc()
    if reply.status >= 500:
        log.warning("%s %s: %s", request.method, request.url.path, error)
    response = reply.response()
    response.headers.update(getattr(request.state, "error_headers", {}))
    return response


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = dict(getattr(error, "headers", None) or {})
    service_of(request).metrics.errors.labels(f"http_{status}").inc()
    asked = f"{request.method} {request.url.path}"
    if status == 404:
        message, code = f"Unknown request URL: {asked}", "unknown_url"
    elif status == 405:
        message, code = f"Not allowed here: {asked}", "method_not_allowed"
    else:
        message, code = f"Refused with status {status}: {asked}", None
    response = plain_reply(status, message, "invalid_request_error", code=code).response()
    response.headers.update(headers)
    return response


async def _defect(request: Request, error: Exception) -> Response:
    service = service_of(request)
    service.metrics.errors.labels(kind_of(error)).inc()
    return service.reply_to(error).response()
