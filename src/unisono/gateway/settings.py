"""What an operator decides about a gateway."""

from __future__ import annotations

from dataclasses import dataclass, field

from unisono.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Limits of one gateway. The defaults suit one machine on a trusted network."""

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Accepted bearer keys; empty admits everyone. Never printed, never logged."""
    max_body_bytes: int = 4 << 20
    max_prompt_tokens: int | None = None
    """Below the model's context length, if the operator wants less."""
    default_chat_tokens: int | None = None
    """Length limit of a chat answer whose request names none; None is what the context leaves."""
    max_running_answers: int = 64
    """Answers at the same time; a request with `n` choices counts `n` times."""
    max_queued_requests: int = 64
    """Requests that may wait for their turn; one more is refused."""
    queue_seconds: float = 30.0
    """How long a request waits for its turn before it is refused."""
    retry_after_seconds: int = 2
    """The `Retry-After` of refusals for lack of capacity."""
    heartbeat_seconds: float = 10.0
    """A stream that stays silent this long sends a comment, so that proxies keep it open."""
    receipt_seconds: float = 10.0
    """How long the hops may take to sign after the last token."""
    body_seconds: float = 30.0
    """How long a client may take to send a request's body."""
    availability_threshold: int = 900
    """In thousandths: with less of a model's placement answering, clients are told and fallbacks
    are asked first. 0: only when some layer has no holder."""
    fall_back_when_full: bool = False
    """Whether fallbacks are also asked when every holder is full; else the client is told to
    come back."""
    health_seconds: float = 0.5
    """How old the picture of the network may be by which a request is routed."""

    def __post_init__(self) -> None:
        if any(not key or key != key.strip() for key in self.api_keys):
            raise ConfigurationError(
                "an API key is empty or has spaces around it: remove it from the list of keys"
            )
        positive = {
            "max_body_bytes": self.max_body_bytes,
            "max_prompt_tokens": 1 if self.max_prompt_tokens is None else self.max_prompt_tokens,
            "default_chat_tokens": (
                1 if self.default_chat_tokens is None else self.default_chat_tokens
            ),
            "max_running_answers": self.max_running_answers,
            "retry_after_seconds": self.retry_after_seconds,
            "heartbeat_seconds": self.heartbeat_seconds,
            "receipt_seconds": self.receipt_seconds,
            "body_seconds": self.body_seconds,
        }
        for name, value in positive.items():
            if value <= 0:
                raise ConfigurationError(f"{name} is {value}: expected more than zero")
        if not 0 <= self.availability_threshold <= 1000 or self.health_seconds < 0:
            raise ConfigurationError(
                f"availability_threshold is {self.availability_threshold} and health_seconds is "
                f"{self.health_seconds:g}: expected 0 to 1000 thousandths, and no negative time"
            )
        if self.max_queued_requests < 0 or self.queue_seconds < 0:
            raise ConfigurationError(
                "max_queued_requests and queue_seconds must not be negative; 0 means no waiting"
            )
