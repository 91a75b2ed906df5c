"""The named fields of a model: leaves of the tree whose root is the model id.

Everything that determines what a model computes has a name here, so that a single fact opens with a
few hashes: a field of the configuration, a constant that follows from it (a contract cannot take
logarithms of decimals), a table, a tensor. Leaves are sorted by name (UTF-8) and hold

    length of the name (1 byte), name, kind (1 byte), value

    kind  value
    `i`   an integer: 8 bytes, two's complement; false and true are 0 and 1
    `s`   a text: UTF-8
    `r`   a table: leaves of its tree (4 bytes), root (32 bytes)
    `t`   a tensor: 0 matrix, 1 norm or 2 bias (1 byte), rows and columns (4 bytes each; a vector
          is one row), exponent (4 bytes, two's complement), root of its tiles (32 bytes)

Numbers are little-endian. The model id is `seal("model/2", leaves, top of the tree)`.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import msgspec

from unisono.merkle import Accumulator, Tree, leaf_hash, seal
from unisono.models.constants import constants
from unisono.numerics import tables

if TYPE_CHECKING:
    from unisono.models.manifest import Manifest, TensorEntry

DOMAIN = "model/2"
TABLE_DOMAIN = "table/1"
TABLE_TILE = 16
"""A leaf of a table's tree holds 17 entries of 8 bytes: those from 16 k on and the first of the
next leaf, so that an interpolation needs one leaf."""
KINDS = ("matrix", "norm", "bias")
MAX_NAME_BYTES = 255


def fields(manifest: Manifest) -> dict[str, bytes]:
    """Name → kind and value of every field, sorted by name.

    Raises:
        UnsupportedModel: the configuration's constants are outside the proven range.
        ValueError, OverflowError: a table, a name or a number has no place in the tree.
    """
    found: dict[str, bytes] = {
        "numerics": integer(manifest.numerics),
        **{f"tables/{name}": _root(name, root) for name, root in manifest.tables.items()},
        **{f"tensors/{name}": tensor(entry) for name, entry in manifest.tensors.items()},
    }
    _flatten("config", msgspec.to_builtins(manifest.config), found)
    _flatten("constants", dataclasses.asdict(constants(manifest.config)), found)
    return dict(sorted(found.items(), key=lambda field: field[0].encode()))


def field_leaf(name: str, value: bytes) -> bytes:
    """The data of a field's leaf."""
    encoded = name.encode()
    if len(encoded) > MAX_NAME_BYTES:
        raise ValueError(f"a field's name has {len(encoded)} bytes: at most {MAX_NAME_BYTES}")
    return bytes([len(encoded)]) + encoded + value


def field_tree(manifest: Manifest) -> Tree:
    """The tree of all fields."""
    return Tree(b"".join(leaf_hash(field_leaf(*field)) for field in fields(manifest).items()))


def integer(value: int) -> bytes:
    """An integer field."""
    return b"i" + value.to_bytes(8, "little", signed=True)


def tensor(entry: TensorEntry) -> bytes:
    """A tensor's field."""
    rows, columns = entry.shape if len(entry.shape) == 2 else (1, entry.shape[0])
    return (
        b"t"
        + bytes([KINDS.index(entry.kind)])
        + rows.to_bytes(4, "little")
        + columns.to_bytes(4, "little")
        + entry.exponent.to_bytes(4, "little", signed=True)
        + bytes.fromhex(entry.root)
    )


def _root(name: str, root: str) -> bytes:
    if name not in tables.NAMES:
        raise ValueError(f"there is no table '{name[:40]}'")
    return b"r" + len(table_leaves(name)).to_bytes(4, "little") + bytes.fromhex(root)


def _flatten(prefix: str, value: Any, into: dict[str, bytes]) -> None:
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            _flatten(f"{prefix}/{name}", inner, into)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(cast("list[Any]", value)):
            _flatten(f"{prefix}/{index}", inner, into)
    elif isinstance(value, int):  # bool is one too
        into[prefix] = integer(int(value))
    else:
        into[prefix] = b"s" + str(value).encode()


@cache
def table_leaves(name: str) -> tuple[bytes, ...]:
    """The data of each leaf of a table (`exp2`, `gate`, `cosine`, `log2`)."""
    entries = [x.to_bytes(8, "little", signed=True) for x in tables.values(name)]
    return tuple(
        b"".join(entries[i : i + TABLE_TILE + 1]) for i in range(0, len(entries) - 1, TABLE_TILE)
    )


@cache
def table_roots() -> dict[str, str]:
    """Name → root of this program's tables; do not change it."""
    roots: dict[str, str] = {}
    for name in tables.NAMES:
        tree = Accumulator()
        tree.extend(b"".join(leaf_hash(leaf) for leaf in table_leaves(name)))
        roots[name] = seal(TABLE_DOMAIN, tree.count, tree.top()).hex()
    return roots
