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
    │   ├── OfferMissing          nobody serves on the asked terms     (HTTP 402)
    │   ├── NetworkUnreachable    not one node is known                (HTTP 503)
    │   └── AnswerInterrupted     a hop was lost and none replaces it  (HTTP 502)
    ├── SettlementError           money: a chain, a contract or a promise to pay
    │   ├── BadSignature          a signature on a chain's form that no key made
    │   ├── VoucherRefused        a voucher that is not worth what it says
    │   ├── LedgerUnreachable     a chain does not answer, or answers what no chain answers
    │   ├── TransactionRefused    a chain or a contract said no
    │   ├── InsufficientFunds     a balance or deposit is too small    (HTTP 402)
    │   └── KeyRefused            no such key, or not the passphrase of it
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


class OfferMissing(NetworkError):
    """Nodes could serve the request, but none on the terms that its client set."""


class NetworkUnreachable(NetworkError):
    """Not one node is known: the gateway is cut off, or nothing has joined it."""


class AnswerInterrupted(NetworkError):
    """A hop was lost in the middle of an answer and none replaces it."""


class ReceiptError(UnisonoError):
    """A receipt cannot be read or is not what it claims."""


class SettlementError(UnisonoError):
    """A chain, a contract, or a promise to pay."""


class BadSignature(SettlementError):
    """A signature in a chain's form that no key made, or not in its only form."""


class VoucherRefused(SettlementError):
    """A voucher that is not worth what it says. `code` is one of `settlement.vouchers.REFUSALS`."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class LedgerUnreachable(SettlementError):
    """A chain does not answer, or answers what no chain answers."""


class TransactionRefused(SettlementError):
    """A chain or a contract said no. `known`: the chain had this very transaction before."""

    def __init__(self, message: str, *, known: bool = False) -> None:
        super().__init__(message)
        self.known = known


class InsufficientFunds(SettlementError):
    """A balance or deposit is too small. `have` and `need` are in the smallest unit."""

    def __init__(self, message: str, have: int, need: int) -> None:
        super().__init__(message)
        self.have = have
        self.need = need


class KeyRefused(SettlementError):
    """There is no such key, or the passphrase is not its."""
