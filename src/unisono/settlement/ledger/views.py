"""Blocks, transactions and receipts of the embedded chain in the form of Ethereum's JSON-RPC."""

from __future__ import annotations

from typing import Any

from eth._utils.address import generate_contract_address
from eth.abc import BlockAPI, BlockHeaderAPI, ReceiptAPI

from unisono.settlement.eip712 import checksummed

Json = dict[str, Any]


def quantity(value: int) -> str:
    """An integer: hexadecimal without leading zeros."""
    return hex(value)


def data(value: bytes) -> str:
    """Bytes: two hex digits each."""
    return "0x" + value.hex()


def address(value: bytes) -> str | None:
    """An account; nothing where a transaction has no recipient."""
    return checksummed(value) if value else None


def block_view(block: BlockAPI, *, full: bool) -> Json:
    """A block with the hashes of its transactions, or with all of each."""
    header: Any = block.header
    return {
        "number": quantity(header.block_number),
        "hash": data(header.hash),
        "parentHash": data(header.parent_hash),
        "nonce": data(header.nonce),
        "sha3Uncles": data(header.uncles_hash),
        "logsBloom": data(header.bloom.to_bytes(256)),
        "transactionsRoot": data(header.transaction_root),
        "stateRoot": data(header.state_root),
        "receiptsRoot": data(header.receipt_root),
        "miner": checksummed(header.coinbase),
        "difficulty": quantity(header.difficulty),
        "totalDifficulty": quantity(0),
        "extraData": data(header.extra_data),
        "gasLimit": quantity(header.gas_limit),
        "gasUsed": quantity(header.gas_used),
        "timestamp": quantity(header.timestamp),
        "mixHash": data(header.mix_hash),
        "baseFeePerGas": quantity(header.base_fee_per_gas),
        "withdrawalsRoot": data(header.withdrawals_root),
        "blobGasUsed": quantity(header.blob_gas_used),
        "excessBlobGas": quantity(header.excess_blob_gas),
        "parentBeaconBlockRoot": data(header.parent_beacon_block_root),
        "requestsHash": data(header.requests_hash),
        "uncles": [],
        "transactions": [
            transaction_view(block, index) if full else data(transaction.hash)
            for index, transaction in enumerate(block.transactions)
        ],
    }


def transaction_view(block: BlockAPI, index: int) -> Json:
    """One transaction of a block."""
    transaction: Any = block.transactions[index]
    kind = _kind(transaction)
    view: Json = {
        "type": quantity(kind),
        "hash": data(transaction.hash),
        "nonce": quantity(transaction.nonce),
        "blockHash": data(block.hash),
        "blockNumber": quantity(block.number),
        "transactionIndex": quantity(index),
        "from": checksummed(transaction.sender),
        "to": address(transaction.to),
        "value": quantity(transaction.value),
        "gas": quantity(transaction.gas),
        "gasPrice": quantity(_price(transaction, block.header)),
        "input": data(transaction.data),
        "chainId": quantity(transaction.chain_id),
        "v": quantity(transaction.y_parity if kind else transaction.v),
        "r": quantity(transaction.r),
        "s": quantity(transaction.s),
    }
    if kind >= 2:
        view["maxFeePerGas"] = quantity(transaction.max_fee_per_gas)
        view["maxPriorityFeePerGas"] = quantity(transaction.max_priority_fee_per_gas)
    if kind:
        view["accessList"] = [
            {"address": checksummed(who), "storageKeys": [data(k.to_bytes(32)) for k in keys]}
            for who, keys in transaction.access_list
        ]
    return view


def receipt_view(block: BlockAPI, receipts: tuple[ReceiptAPI, ...], index: int) -> Json:
    """What became of one transaction of a block."""
    transaction: Any = block.transactions[index]
    receipt: Any = receipts[index]
    before = receipts[index - 1].gas_used if index else 0
    created = None if transaction.to else _created(transaction)
    return {
        "type": quantity(_kind(transaction)),
        "transactionHash": data(transaction.hash),
        "transactionIndex": quantity(index),
        "blockHash": data(block.hash),
        "blockNumber": quantity(block.number),
        "from": checksummed(transaction.sender),
        "to": address(transaction.to),
        "cumulativeGasUsed": quantity(receipt.gas_used),
        "gasUsed": quantity(receipt.gas_used - before),
        "effectiveGasPrice": quantity(_price(transaction, block.header)),
        "contractAddress": created,
        "status": quantity(int.from_bytes(receipt.state_root)),
        "logsBloom": data(receipt.bloom.to_bytes(256)),
        "logs": log_views(block, receipts, index),
    }


def log_views(block: BlockAPI, receipts: tuple[ReceiptAPI, ...], index: int) -> list[Json]:
    """The events of one transaction of a block."""
    transaction = block.transactions[index]
    before = sum(len(receipt.logs) for receipt in receipts[:index])
    return [
        {
            "address": checksummed(log.address),
            "topics": [data(topic.to_bytes(32)) for topic in log.topics],
            "data": data(log.data),
            "blockNumber": quantity(block.number),
            "blockHash": data(block.hash),
            "transactionHash": data(transaction.hash),
            "transactionIndex": quantity(index),
            "logIndex": quantity(before + place),
            "removed": False,
        }
        for place, log in enumerate(receipts[index].logs)
    ]


def _kind(transaction: Any) -> int:
    return int(getattr(transaction, "type_id", None) or 0)


def _price(transaction: Any, header: BlockHeaderAPI) -> int:
    if _kind(transaction) < 2:
        return transaction.gas_price
    tipped: int = transaction.max_priority_fee_per_gas + header.base_fee_per_gas
    return min(transaction.max_fee_per_gas, tipped)


def _created(transaction: Any) -> str:
    return checksummed(generate_contract_address(transaction.sender, transaction.nonce))
