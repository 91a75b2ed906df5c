"""What the on-chain referees read beside openings: the canonical tables, as contract code.

A table is stored as the code of a contract that only stops: its entries one after another,
big-endian, without sign (cosines are raised by one). Two neighbouring entries are one read of a
few bytes. Logit biases are committed here too, so that a contract can open one of them.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Literal

import numpy as np
from eth_hash.auto import keccak

from unisono.numerics.tables import COS_BITS, values
from unisono.verification.fraud.tree import EMPTY, Tree, blocks, per_block, tensor_tree

Contract = Literal["exponentials", "logarithms", "cosines"]
CONTRACTS: tuple[Contract, ...] = ("exponentials", "logarithms", "cosines")
"""In the order in which they are deployed."""

_TABLES: dict[Contract, tuple[tuple[str, int, int], ...]] = {
    "exponentials": (("exp2", 5, 0), ("gate", 3, 0)),
    "logarithms": (("log2", 5, 0),),
    "cosines": (("cosine", 3, 1 << COS_BITS),),
}
"""Per contract: name of a table, bytes per entry, what is added to each entry."""

_STOP = b"\x00"
BIAS_FORMAT = "i4"
Biases = tuple[tuple[int, int], ...]
"""(token, bias) pairs, as `Sampling.logit_bias` has them."""


@cache
def table_code(contract: Contract) -> bytes:
    """The code of a table contract: STOP, then the entries.

    Raises:
        OverflowError: an entry does not fit its bytes.
    """
    return _STOP + b"".join(
        (entry + added).to_bytes(size, "big")
        for name, size, added in _TABLES[contract]
        for entry in values(name)
    )


def table_deployment(contract: Contract) -> bytes:
    """The data of the transaction that creates a table contract: code that returns the rest."""
    code = table_code(contract)
    # PUSH2 size, DUP1, PUSH1 10, PUSH0, CODECOPY, PUSH0, RETURN
    return b"\x61" + len(code).to_bytes(2, "big") + b"\x80\x60\x0a\x5f\x39\x5f\xf3" + code


def table_code_hash(contract: Contract) -> bytes:
    """Keccak-256 of a table contract's code, as EXTCODEHASH gives it; referees insist on it."""
    return keccak(table_code(contract))


def _dense(biases: Biases, vocabulary: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    dense = np.zeros(vocabulary, dtype=np.int64)
    for token, bias in biases:
        dense[_known(token, vocabulary)] = bias
    return dense


def _known(token: int, vocabulary: int) -> int:
    if not 0 <= token < vocabulary:
        raise IndexError(f"token {token} is not one of the model's {vocabulary}")
    return token


@lru_cache(maxsize=16)
def bias_tree(biases: Biases, vocabulary: int) -> Tree:
    """The tree over the dense bias vector, one 4-byte integer per token of the model; its shape is
    that of any tensor of that size.

    Raises:
        IndexError: a bias names a token that the model does not have.
    """
    return tensor_tree(_dense(biases, vocabulary), BIAS_FORMAT)


def bias_leaf(biases: Biases, vocabulary: int, token: int) -> bytes:
    """The leaf that holds a token's bias, under `bias_tree`.

    Raises:
        IndexError: the model has no such token.
    """
    block = _known(token, vocabulary) // per_block(BIAS_FORMAT)
    return blocks(_dense(biases, vocabulary), BIAS_FORMAT)[block]


def bias_root(biases: Biases, vocabulary: int) -> bytes:
    """What a claim says of a request's logit biases: 32 zero bytes if there are none, else the
    root of `bias_tree`."""
    return bias_tree(biases, vocabulary).root if biases else EMPTY
