"""Errors as OpenAI's clients know them: a status, and `{"error": {message, type, param, code}}`.

Clients decide by the status which exception to raise and whether to try again, so each
error of the tree in `unisono.errors` has exactly one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
from starlette.responses import Response

from unisono.errors import (
    AnswerInterrupted,
    CapacityMissing,
    CoverageMissing,
    InsufficientFunds,
    NetworkError,
    NetworkUnreachable,
    OfferMissing,
    RequestError,
    UnisonoError,
    WireError,
)


class GatewayError(UnisonoError):
    """The gateway itself refuses; knows its own HTTP form."""

    status = 500
    type = "server_error"
    code: str | None = None
    retry_after: int | None = None


class KeyRefused(GatewayError):
    """No API key came with the request, or one that this gateway does not know."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class BodyTooLarge(GatewayError):
    """The request's body is larger than the gateway reads."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class BodyTooSlow(GatewayError):
    """The request's body did not arrive in time."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"


class Busy(GatewayError):
    """All places for answers are taken, and so is the queue or the time to wait in it."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Closing(GatewayError):
    """The gateway is shutting down."""

    status = 503
    code = "shutting_down"


class NotFound(GatewayError):
    """What the path names does not exist."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class FallbackFailed(NetworkError):
    """An endpoint outside the network did not answer, or not as an endpoint does."""


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """What a failed request is answered with, and what a failed stream ends with."""

    error: ErrorBody


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """One error, ready to be sent."""

    status: int
    body: ErrorBody
    headers: dict[str, str] = field(default_factory=dict[str, str])

    def json(self) -> bytes:
        """The error object as JSON."""
        return msgspec.json.encode(ErrorEnvelope(self.body))

    def response(self) -> Response:
        """The error as a whole HTTP response."""
        return Response(
            self.json(), self.status, headers=self.headers, media_type="application/json"
        )


def reply_to(error: BaseException, retry_after: int = 1) -> ErrorReply:
    """The HTTP form of any error. `retry_after` is in seconds, for lack of capacity.

    An error that is not part of the interface is a defect: its text may hold anything, so
    the client is not shown it.
    """
    if isinstance(error, GatewayError):
        return plain_reply(
            error.status, str(error), error.type, code=error.code, retry_after=error.retry_after
        )
    if isinstance(error, RequestError):
        status = 404 if error.code == "model_not_found" else 400
        body = ErrorBody(str(error), "invalid_request_error", error.param, error.code)
        return ErrorReply(status, body)
    if isinstance(error, CoverageMissing):
        return plain_reply(503, str(error), code="coverage_missing")
    if isinstance(error, CapacityMissing):
        return plain_reply(
            429, str(error), "rate_limit_error", code="capacity_missing", retry_after=retry_after
        )
    if isinstance(error, OfferMissing):
        return plain_reply(402, str(error), "invalid_request_error", code="offer_missing")
    if isinstance(error, InsufficientFunds):
        return plain_reply(402, str(error), "invalid_request_error", code="insufficient_funds")
    if isinstance(error, NetworkUnreachable):
        return plain_reply(
            503, str(error), code="network_unreachable", retry_after=max(retry_after, 5)
        )
    if isinstance(error, FallbackFailed):
        return plain_reply(502, str(error), code="fallback_failed")
    if isinstance(error, AnswerInterrupted):
        return plain_reply(502, str(error), code="answer_interrupted")
    if isinstance(error, NetworkError | WireError):
        return plain_reply(502, str(error), code="network_error")
    return plain_reply(
        500, "The gateway failed; its log says why. Try again, or tell its operator."
    )


def plain_reply(
    status: int,
    message: str,
    type: str = "server_error",
    *,
    code: str | None = None,
    retry_after: int | None = None,
) -> ErrorReply:
    """An error that concerns no single field."""
    headers = {} if retry_after is None else {"retry-after": str(retry_after)}
    return ErrorReply(status, ErrorBody(message, type, None, code), headers)


def kind_of(error: BaseException) -> str:
    """A short name for counting: `coverage_missing`, `invalid_request_error`, `internal`, …"""
    if not isinstance(error, UnisonoError):
        return "internal"
    body = reply_to(error).body
    return body.code or body.type
