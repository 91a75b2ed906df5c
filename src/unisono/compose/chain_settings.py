"""What a node or gateway is told about money. Apart from what uses it, which loads a chain's
libraries."""

from __future__ import annotations

import msgspec


class ChainSettings(msgspec.Struct, frozen=True):
    """Which chain, whose key, and where accounts are kept."""

    rpc: str
    """JSON-RPC address."""
    deployment: str
    """File that says where the contracts are."""
    state: str | None = None
    """Folder that gets one folder per chain and account, with its outbox and its accounts with
    others; None: they live as long as the process."""
    keystore: str | None = None
    """Folder of encrypted keys; None: the settlement key follows from the network key, so that a
    newcomer has one key to keep."""
    account: str | None = None
    """Which key of the keystore."""
    passphrase_file: str | None = None
    """Else the passphrase is looked for as `ledger.keys.find_passphrase` does."""
    deposit: int = 1_000_000
    """Of a gateway: units that a channel is opened or topped up with."""


class FloorSettings(msgspec.Struct, frozen=True):
    """What a machine costs, by which a node finds its own price (`market.pricing`)."""

    watts: float
    electricity: float = 0.25
    off_peak: tuple[str, ...] = ()
    """As `market.pricing.parse_off_peak` reads them."""
    purchase: float = 0.0
    resale: float = 0.0
    years: float = 4.0
    use: float = 0.5
    margin: float = 0.2
    sessions: int = 4
    """Answers that usually run side by side."""


class SellerSettings(msgspec.Struct, frozen=True):
    """What a node sells for, and how."""

    price_in: int = 0
    """Millionths of the unit per million prompt tokens, through the whole model."""
    price_out: int = 0
    payee: str | None = None
    """Address that is paid; None: the node's own settlement key."""
    window: int = 64
    """Tokens of an answer that one payment ahead is good for."""
    tier: int = 0
    """The service level that is promised, an index into `wire.terms.TIERS`."""
    stake: int = 0
    """Units to be staked in the registry before anything is sold."""
    bench: int = 0
    """Units of a deposit for the committee's bench: the node may be drawn to compute answers of
    others again, for a fee. 0: it stays where it is, on the bench or not."""
    floor: FloorSettings | None = None
    """What prices follow from; None: they are those above."""
