"""Single facts about a model, opened against nothing but its id.

A weight opens in two steps: its tensor's field against the model id, and its tile against the
root in that field. What a judge reads from an opening is what the model id commits to, whoever
sent it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from unisono.errors import CorruptModel, ReceiptError
from unisono.merkle import HASH_BYTES, Tree, leaf_hash, seal, top_of
from unisono.models import fields, tiles
from unisono.models.loading import read_parts
from unisono.models.store import StoredModel
from unisono.numerics.tensors import GROUP
from unisono.types import ModelId, canonical

MAX_BYTES = 4096
"""Of an opening as bytes: a tile of 680, and some 30 hashes for each of two trees."""
_TENSOR_BYTES = 45
_TREES = 16
_Opening = TypeVar("_Opening", bound="Opening")


class Opening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every opening shares: its bytes are canonical MessagePack."""

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        return canonical(self)

    @classmethod
    def from_bytes(cls: type[_Opening], data: bytes) -> _Opening:
        """Read an opening from a stranger; `check` says what it is worth.

        Raises:
            ReceiptError: it is too large, or not of this form.
        """
        if len(data) > MAX_BYTES:
            raise ReceiptError(f"an opening has at most {MAX_BYTES} bytes; this one {len(data)}")
        try:
            opening = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ReceiptError(f"not an opening: {error}") from error
        if canonical(opening) != data:
            raise ReceiptError("the opening is not in its canonical encoding")
        return opening


class TensorFacts(NamedTuple):
    """What a model's field says about a tensor."""

    kind: str
    """`matrix`, `norm` or `bias`."""
    rows: int
    """1 of a vector."""
    columns: int
    exponent: int
    root: bytes

    @property
    def tiles_per_row(self) -> int:
        return tiles.tiles_per_row((self.rows, self.columns) if self.is_matrix else (self.columns,))

    @property
    def is_matrix(self) -> bool:
        return self.kind == "matrix"

    @property
    def tile_size(self) -> int:
        """Columns of a tile; the last of a row may have fewer."""
        return tiles.TILE if self.is_matrix else tiles.VECTOR_TILE

    def tile_bytes(self, tile: int) -> int:
        """Bytes of the tile at this place of a row."""
        count = min(self.tile_size, self.columns - tile * self.tile_size)
        return count + 2 * (count // GROUP) if self.is_matrix else 4 * count


class Field(Opening, frozen=True):
    """A named field of a model (`models.fields`)."""

    name: str
    value: bytes
    """Kind and value."""
    index: int
    count: int
    path: bytes

    def check(self, model: ModelId) -> bool:
        """Whether the model has this field; anything malformed is just False."""
        try:
            leaf = leaf_hash(fields.field_leaf(self.name, self.value))
            top = top_of(leaf, self.index, self.count, self.path)
        except ValueError:
            return False
        return seal(fields.DOMAIN, self.count, top).hex() == model

    def integer(self) -> int | None:
        """The value of an integer field; None of another kind."""
        if len(self.value) != 9 or self.value[:1] != b"i":
            return None
        return int.from_bytes(self.value[1:], "little", signed=True)

    def text(self) -> str | None:
        """The value of a text field; None of another kind."""
        return self.value[1:].decode(errors="replace") if self.value[:1] == b"s" else None

    def tensor(self) -> TensorFacts | None:
        """The value of a tensor's field; None of another kind."""
        value = self.value[1:]
        if len(value) != _TENSOR_BYTES or self.value[:1] != b"t" or value[0] >= len(fields.KINDS):
            return None
        rows, columns = (int.from_bytes(value[i : i + 4], "little") for i in (1, 5))
        exponent = int.from_bytes(value[9:13], "little", signed=True)
        return TensorFacts(fields.KINDS[value[0]], rows, columns, exponent, value[13:])


class Tile(Opening, frozen=True):
    """One tile of a tensor: up to 640 weights of one row, or 64 values of a vector."""

    row: int
    """0 of a vector."""
    tile: int
    """Its first column is `tile` times 640, or 64."""
    data: bytes
    path: bytes
    field: Field
    """The tensor's, `tensors/NAME`."""

    def check(self, model: ModelId) -> bool:
        """Whether the model's tensor has this tile here; anything malformed is just False."""
        facts = self.field.tensor()
        if facts is None or not self.field.check(model):
            return False
        each = facts.tiles_per_row
        if not (0 <= self.row < facts.rows and 0 <= self.tile < each):
            return False
        if len(self.data) != facts.tile_bytes(self.tile):
            return False
        count = facts.rows * each
        try:
            leaf = leaf_hash(self.data)
            top = top_of(leaf, self.row * each + self.tile, count, self.path)
        except ValueError:
            return False
        return seal(tiles.DOMAIN, count, top) == facts.root

    @property
    def tensor(self) -> str:
        """The tensor's name."""
        return self.field.name.removeprefix("tensors/")

    def weights(self) -> tuple[list[int], list[int]]:
        """Values, and the multipliers of their groups of 32 (none of a vector).

        Raises:
            ReceiptError: the field is no tensor's, or the data has another length.
        """
        facts = self.field.tensor()
        if facts is None or len(self.data) != facts.tile_bytes(self.tile):
            raise ReceiptError("the tile does not fit its tensor")
        if not facts.is_matrix:
            return np.frombuffer(self.data, "<i4").tolist(), []
        count = len(self.data) * GROUP // (GROUP + 2)
        values = np.frombuffer(self.data, np.int8, count)
        return values.tolist(), np.frombuffer(self.data, "<u2", offset=count).tolist()


class TableTile(Opening, frozen=True):
    """Seventeen consecutive entries of a table: entry `16 * tile` and those behind it."""

    tile: int
    data: bytes
    path: bytes
    field: Field
    """The table's, `tables/NAME`."""

    def check(self, model: ModelId) -> bool:
        """Whether the model's table has these entries; anything malformed is just False."""
        value = self.field.value
        if len(value) != 5 + HASH_BYTES or value[:1] != b"r" or not self.field.check(model):
            return False
        count = int.from_bytes(value[1:5], "little")
        try:
            top = top_of(leaf_hash(self.data), self.tile, count, self.path)
        except ValueError:
            return False
        return seal(fields.TABLE_DOMAIN, count, top) == value[5:]

    def entries(self) -> list[int]:
        """The integers."""
        return [
            int.from_bytes(self.data[i : i + 8], "little", signed=True)
            for i in range(0, len(self.data), 8)
        ]


class Opener:
    """Opens facts of a stored model. The trees of a few tensors stay in memory, 64 bytes a tile."""

    def __init__(self, model: StoredModel) -> None:
        self.model = model
        self._values = fields.fields(model.manifest)
        self._names = {name: i for i, name in enumerate(self._values)}
        self._tree = fields.field_tree(model.manifest)
        self._tensor = lru_cache(_TREES)(self._read)

    def field(self, name: str) -> Field:
        """A field by its name, e.g. `config/head_count` or `tensors/layers.0.gate`.

        Raises:
            CorruptModel: the model has no such field.
        """
        index = self._names.get(name)
        if index is None:
            raise CorruptModel(f"model '{self.model.name}' has no field '{name}'")
        path = self._tree.path(index)
        return Field(name, self._values[name], index, len(self._tree), path)

    def tile(self, tensor: str, row: int, tile: int) -> Tile:
        """A tile of a tensor.

        Raises:
            CorruptModel: the model has no such tile, or is damaged here.
        """
        field = self.field(f"tensors/{tensor}")
        facts = field.tensor()
        assert facts is not None
        if not (0 <= row < facts.rows and 0 <= tile < facts.tiles_per_row):
            raise CorruptModel(f"tensor '{tensor}' has no tile {tile} in a row {row}")
        tree, parts = self._tensor(tensor)
        data = tiles.leaf_bytes(parts, row, tile)
        return Tile(row, tile, data, tree.path(row * facts.tiles_per_row + tile), field)

    def weight(self, tensor: str, row: int, column: int) -> Tile:
        """The tile that holds one weight of a matrix, or (row 0) value of a vector.

        Raises:
            CorruptModel: the model has no such weight, or is damaged here.
        """
        facts = self.field(f"tensors/{tensor}").tensor()
        assert facts is not None
        if not 0 <= column < facts.columns:
            raise CorruptModel(f"tensor '{tensor}' has no column {column}")
        return self.tile(
            tensor, row, column // (tiles.TILE if facts.is_matrix else tiles.VECTOR_TILE)
        )

    def table(self, name: str, entry: int) -> TableTile:
        """The tile that holds entries `entry` and `entry + 1` of a table.

        Raises:
            CorruptModel: there is no such table or entry.
        """
        field = self.field(f"tables/{name}")
        leaves = fields.table_leaves(name)
        tile = entry // fields.TABLE_TILE
        if not 0 <= tile < len(leaves):
            raise CorruptModel(f"table '{name}' has no entries {entry} and {entry + 1}")
        tree = Tree(b"".join(map(leaf_hash, leaves)))
        return TableTile(tile, leaves[tile], tree.path(tile), field)

    def _read(self, tensor: str) -> tuple[Tree, list[Any]]:
        parts = read_parts(self.model, tensor)
        return Tree(tiles.tensor_leaves(parts), tiles.pairs), parts
