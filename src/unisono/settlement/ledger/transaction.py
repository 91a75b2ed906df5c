"""Signed transactions: EIP-1559, bound to one chain and one nonce."""

from __future__ import annotations

from typing import Any

from eth_account import Account

from unisono.settlement.ledger.fees import Fee
from unisono.settlement.ledger.intents import Attempt, Intent
from unisono.settlement.ledger.ledger import TxHash
from unisono.settlement.signature import SettlementKey


def signed_attempt(
    key: SettlementKey, intent: Intent, *, chain_id: int, nonce: int, gas: int, fee: Fee
) -> Attempt:
    """The transaction of an intent. The same arguments give the same bytes (RFC 6979).

    Args:
        gas: the most gas it may use.
        fee: wei per gas.
    """
    fields: dict[str, Any] = {
        "type": 2,
        "chainId": chain_id,
        "nonce": nonce,
        "gas": gas,
        "maxFeePerGas": fee.most,
        "maxPriorityFeePerGas": fee.tip,
        "value": intent.wei,
        "data": intent.data,
        "to": intent.to or b"",
    }
    signed = Account.sign_transaction(fields, key.secret())
    raw, name = bytes(signed.raw_transaction), bytes(signed.hash)
    return Attempt(TxHash("0x" + name.hex()), raw, gas, fee)
