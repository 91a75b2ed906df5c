"""Every error that Unisono raises on purpose.

    UnisonoError
    ├── ConfigurationError        a flag, variable, file or address is wrong
    ├── ModelError                a model cannot be used
    │   ├── UnsupportedModel      an architecture or feature outside the decoder definition
    │   └── CorruptModel          missing tensor, wrong shape, truncated file, bad hash
    ├── RequestError              the client's request is wrong        (HTTP 400)
    ├── WireError                 a peer or a link failed
    │   ├── PeerRefused           it answered, and said no
    │   ├── PeerGone              it cannot be reached or went silent
    │   └── PeerCheating          it sent bytes that no honest peer sends
    ├── NetworkError              routing cannot serve the request
    │   ├── CoverageMissing       a layer has no holder                (HTTP 503)
    │   ├── CapacityMissing       holders exist, and all are full      (HTTP 429)
    │   ├── NetworkUnreachable    not one node is known                (HTTP 503)
    │   └── AnswerInterrupted     a hop was lost and none replaces it  (HTTP 502)
    └── ReceiptError              a receipt cannot be read or is not what it claims

A message says what happened, what was expected, and what to do.
"""

from __future__ import annotations


class UnisonoError(Exception):
    """Base of all errors that are part of the interface."""


class ConfigurationError(UnisonoError):
    """A flag, variable, file or address is wrong."""


class ModelError(UnisonoError):
    """A model cannot be used."""


class UnsupportedModel(ModelError):
    """An architecture or feature outside the decoder definition."""


class CorruptModel(ModelError):
    """Missing tensor, wrong shape, truncated file, bad hash."""


class RequestError(UnisonoError):
    """The client's request is wrong. `param` names the field, `code` is OpenAI's error code."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class WireError(UnisonoError):
    """A peer or a link failed."""


class PeerRefused(WireError):
    """The peer answered, and said no. `code` is one of the protocol's refusal codes."""

    def __init__(self, message: str, code: str = "refused") -> None:
        super().__init__(message)
        self.code = code


class PeerGone(WireError):
    """The peer cannot be reached, went silent, or ended the stream."""


class PeerCheating(WireError):
    """The peer sent bytes that no honest peer sends."""


class NetworkError(UnisonoError):
    """Routing cannot serve the request."""


class CoverageMissing(NetworkError):
    """A layer of the model has no holder."""


class CapacityMissing(NetworkError):
    """Every holder of some layer is full."""


class NetworkUnreachable(NetworkError):
    """Not one node is known: the gateway is cut off, or nothing has joined it."""


class AnswerInterrupted(NetworkError):
    """A hop was lost in the middle of an answer and none replaces it."""


class ReceiptError(UnisonoError):
    """A receipt cannot be read or is not what it claims."""
