"""Too little money, said so that one knows what to do: what there is, what is needed, for what."""

from __future__ import annotations

from unisono.errors import InsufficientFunds


def shortfall(
    have: int, need: int, *, what: str, purpose: str, remedy: str, decimals: int, unit: str = ""
) -> InsufficientFunds:
    """The error of a balance or deposit that is too small, such as
    `deposit 1.20 USD, needed 1.35 USD for 3,000 tokens: top up 0.15 USD with …`.

    Args:
        have: in the smallest unit.
        need: in the smallest unit, more than `have`.
        what: what is too small: `deposit`, `balance of 0x…`.
        purpose: what the money is needed for.
        remedy: what to do; `{missing}` in it becomes the amount that is missing.
        decimals: digits after the point of one whole unit.
        unit: its name.
    """
    unit = f" {unit}" if unit else ""
    missing = amount_text(need - have, decimals) + unit
    return InsufficientFunds(
        f"{what} {amount_text(have, decimals)}{unit}, needed {amount_text(need, decimals)}{unit} "
        f"for {purpose}: {remedy.replace('{missing}', missing)}",
        have,
        need,
    )


def amount_text(amount: int, decimals: int) -> str:
    """An amount in whole units, exact, with two digits after the point or as many as it needs."""
    sign, amount = ("-" if amount < 0 else ""), abs(amount)
    whole, part = divmod(amount, 10**decimals)
    digits = f"{part:0{decimals}d}".rstrip("0").ljust(min(2, decimals), "0") if decimals else ""
    return f"{sign}{whole:,}" + (f".{digits}" if digits else "")
