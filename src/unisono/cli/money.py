"""Flags about money that nodes, gateways and the verbs of accounts share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from unisono.compose.chain_settings import ChainSettings, SellerSettings

UNIT = 1_000_000
MAX_AMOUNT = 1e12
"""Of the coin, in one flag."""

ChainRpc = Annotated[
    str | None,
    typer.Option(
        "--chain-rpc", help="JSON-RPC address of the chain on which nodes are paid; else none is."
    ),
]
DeploymentFile = Annotated[
    str | None,
    typer.Option("--deployment", help="The network's file of contracts, from its founder."),
]
PriceIn = Annotated[
    float | None,
    typer.Option("--price-in", min=0, max=MAX_AMOUNT, help="Per million prompt tokens."),
]
PriceOut = Annotated[
    float | None,
    typer.Option("--price-out", min=0, max=MAX_AMOUNT, help="Per million answer tokens."),
]
Watts = Annotated[
    float | None,
    typer.Option(
        "--watts",
        help="What the machine draws at work. With it the node finds its own price every minute, "
        "as `unisono price` explains it.",
    ),
]
Electricity = Annotated[
    float | None,
    typer.Option("--electricity", help="What a kWh costs, in the coin; 0.25 without it."),
]
OffPeak = Annotated[
    list[str] | None,
    typer.Option(
        "--off-peak", help="Hours (UTC) with another price of a kWh, e.g. 22:00-06:00=0.12."
    ),
]
Margin = Annotated[
    float | None, typer.Option("--margin", help="On top of costs; 0.2 is 20 %, and the default.")
]
Payee = Annotated[
    str | None,
    typer.Option("--payee", help="Address that is paid; else that of the node's own key."),
]
Stake = Annotated[
    float,
    typer.Option(
        "--stake",
        min=0,
        max=MAX_AMOUNT,
        help="Coins to put up for the node's word; what is staked already counts.",
    ),
]
Bench = Annotated[
    float,
    typer.Option(
        "--bench",
        min=0,
        max=MAX_AMOUNT,
        help="Coins to deposit for a place on the bench of the chain's committee, a multiple of "
        "its unit: the node may be drawn to compute answers of others again, for a fee. A place "
        "that it has stays as it is.",
    ),
]
Tier = Annotated[
    str | None,
    typer.Option(
        "--tier",
        help="Highest service level that is promised: economy, standard, assured, critical.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--window", min=1, max=4096, help="Tokens that one payment ahead is good for; 64."
    ),
]
Deposit = Annotated[
    float | None,
    typer.Option(
        "--deposit",
        min=0.000001,
        max=MAX_AMOUNT,
        help="Coins that a channel to a node is opened and topped up with; 1 without it.",
    ),
]
SecondWorth = Annotated[
    float,
    typer.Option(
        "--second-worth",
        min=0.000001,
        max=MAX_AMOUNT,
        help="Coins that a second of waiting is worth, when bids are compared.",
    ),
]
LeastStake = Annotated[
    float,
    typer.Option(
        "--least-stake",
        min=0,
        max=MAX_AMOUNT,
        help="Coins that every node must have staked to be asked, as the registry says.",
    ),
]


def units(coins: float) -> int:
    """Coins as the smallest units."""
    return round(UNIT * coins)


def coins(amount: int) -> str:
    """Units as coins, in full."""
    return f"{amount / UNIT:,.6f}"


def chain_settings(
    rpc: str | None,
    deployment: str | None,
    *,
    account: str | None = None,
    keystore: str | None = None,
    passphrase_file: str | None = None,
    key: str | None,
    deposit: float | None = None,
) -> ChainSettings | None:
    """Which chain, if any. `key`: where the network key is kept, from which the settlement key
    follows if no keystore is named.

    Raises:
        ConfigurationError: only a part of it was given, or the key would be lost with the process.
    """
    from unisono.errors import ConfigurationError

    given = {
        "--deployment": deployment,
        "--account": account,
        "--keystore": keystore,
        "--passphrase-file": passphrase_file,
        "--deposit": deposit,
    }
    if rpc is None:
        for name, value in given.items():
            if value is not None:
                raise ConfigurationError(f"{name} needs a chain: give --chain-rpc and --deployment")
        return None
    if deployment is None:
        raise ConfigurationError(
            "--chain-rpc needs --deployment: the file that `unisono chain deploy` wrote, which "
            "everybody in the network has"
        )
    named = (account, keystore, passphrase_file) != (None, None, None)
    if key is None and not named:
        raise ConfigurationError(
            "money needs a key that outlives this process: give --key FILE, or --account of a "
            "keystore (`unisono keys new`)"
        )
    from unisono.compose.chain_settings import ChainSettings
    from unisono.config import state_directory

    state = state_directory()
    settings = ChainSettings(
        rpc=rpc,
        deployment=deployment,
        state=str(state / "money"),
        keystore=(keystore or str(state / "keystore")) if named else None,
        account=account,
        passphrase_file=passphrase_file,
    )
    if deposit is None:
        return settings
    import msgspec

    return msgspec.structs.replace(settings, deposit=units(deposit))


def seller_settings(
    chain: ChainSettings | None,
    *,
    price_in: float | None,
    price_out: float | None,
    watts: float | None,
    electricity: float | None,
    off_peak: list[str] | None,
    margin: float | None,
    payee: str | None,
    stake: float,
    bench: float,
    tier: str | None,
    window: int | None,
    key: str | None,
) -> SellerSettings | None:
    """What a node sells for, if it does.

    Raises:
        ConfigurationError: a flag that contradicts another, or misses one.
    """
    from unisono.errors import ConfigurationError

    fixed = {"--price-in": price_in, "--price-out": price_out}
    costs = {"--electricity": electricity, "--off-peak": off_peak or None, "--margin": margin}
    others = {
        "--payee": payee,
        "--stake": stake or None,
        "--bench": bench or None,
        "--tier": tier,
        "--window": window,
    }
    if chain is None:
        for name, value in {**fixed, "--watts": watts, **costs, **others}.items():
            if value is not None:
                raise ConfigurationError(f"{name} needs a chain: give --chain-rpc and --deployment")
        return None
    if watts is None:
        for name, value in costs.items():
            if value is not None:
                raise ConfigurationError(
                    f"{name} is for a node that finds its own price: give --watts as well"
                )
        if price_in is None or price_out is None:
            raise ConfigurationError(
                "a node that is paid needs a price: give --price-in and --price-out, or --watts, "
                "by which it finds its own (`unisono price` explains it)"
            )
    elif price_in is not None or price_out is not None:
        raise ConfigurationError("give --price-in and --price-out, or --watts, not both")
    if (stake or bench) and key is None:
        raise ConfigurationError(
            "a stake or deposit belongs to the node's key: keep it, with --key FILE"
        )
    from unisono.compose.chain_settings import FloorSettings, SellerSettings
    from unisono.wire.terms import TIERS

    if tier is not None and tier not in TIERS:
        raise ConfigurationError(f"--tier {tier[:40]}: expected one of {', '.join(TIERS)}")
    floor = None
    if watts is not None:
        floor = FloorSettings(
            watts=watts,
            electricity=0.25 if electricity is None else electricity,
            off_peak=tuple(off_peak or ()),
            margin=0.2 if margin is None else margin,
        )
        from unisono.compose.pricing import machine_of

        machine_of(floor)  # before anything slow
    if payee is not None:
        from unisono.settlement.eip712 import parse_address

        parse_address(payee)
    return SellerSettings(
        price_in=units(price_in or 0),
        price_out=units(price_out or 0),
        payee=payee,
        window=window or 64,
        tier=TIERS.index(tier) if tier else 0,
        stake=units(stake),
        bench=units(bench),
        floor=floor,
    )
