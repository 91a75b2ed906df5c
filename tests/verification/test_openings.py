from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TinyModels
from unisono.errors import CorruptModel, ReceiptError
from unisono.models.loading import read_parts
from unisono.numerics import tables
from unisono.types import ModelId
from unisono.verification.openings import MAX_BYTES, Field, Opener, Opening, TableTile, Tile


@pytest.fixture(scope="module")
def opener(tiny_models: TinyModels) -> Opener:
    return Opener(tiny_models.llama)


def test_every_tensor_opens_anywhere_against_the_model_id(
    opener: Opener, tiny_models: TinyModels
) -> None:
    model = opener.model
    for name, entry in model.manifest.tensors.items():
        parts = read_parts(model, name)
        rows = entry.shape[0] if len(entry.shape) == 2 else 1
        for row in {0, rows // 2, rows - 1}:
            column = entry.shape[-1] - 1
            tile = opener.weight(name, row, column)
            assert tile.check(model.id)
            assert not tile.check(tiny_models.gemma.id)
            assert tile.tensor == name
            values, multipliers = tile.weights()
            if len(parts) == 2:
                start = 640 * tile.tile
                assert values == parts[0][row, start : start + 640].tolist()
                assert multipliers == parts[1].view("<u2")[row, start // 32 :][:20].tolist()
            else:
                assert values == parts[0][64 * tile.tile :][:64].tolist()
                assert multipliers == []
            facts = tile.field.tensor()
            assert facts is not None
            assert facts.exponent == entry.exponent


def test_fields_and_tables_open_against_the_model_id(opener: Opener) -> None:
    model = opener.model
    size = opener.field("config/hidden_size")
    assert size.check(model.id)
    assert size.integer() == model.manifest.config.hidden_size
    assert (size.text(), size.tensor()) == (None, None)
    epsilon = opener.field("config/norm_epsilon")
    assert epsilon.text() == model.manifest.config.norm_epsilon
    assert epsilon.integer() is None
    for name in tables.NAMES:
        values = tables.values(name)
        for entry in (0, 17, len(values) - 2):
            tile = opener.table(name, entry)
            assert tile.check(model.id)
            at = entry - 16 * tile.tile
            assert tile.entries()[at : at + 2] == list(values[entry : entry + 2])


def openings(opener: Opener) -> list[Opening]:
    return [
        opener.field("config/rope/theta"),
        opener.tile("layers.2.down", 9, 0),
        opener.tile("final_norm", 0, 0),
        opener.table("log2", 4000),
    ]


def test_openings_survive_their_bytes(opener: Opener) -> None:
    for opening in openings(opener):
        assert type(opening).from_bytes(opening.to_bytes()) == opening


def altered(value: Any, data: st.DataObject) -> Any:
    if isinstance(value, bytes):
        if not value:
            return b"x"
        at = data.draw(st.integers(0, max(0, len(value) - 1)))
        cut = data.draw(st.booleans())
        return value[:at] if cut else value[:at] + bytes([value[at] ^ 4]) + value[at + 1 :]
    if isinstance(value, int):
        return value + data.draw(st.sampled_from([-1, 1, 1 << 32, -(1 << 40)]))
    if isinstance(value, str):
        return value + "x"
    field = data.draw(st.sampled_from(value.__struct_fields__))
    return msgspec.structs.replace(value, **{field: altered(getattr(value, field), data)})


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_altered_opening_holds(opener: Opener, data: st.DataObject) -> None:
    opening: Any = data.draw(st.sampled_from(openings(opener)))
    field = data.draw(st.sampled_from(opening.__struct_fields__))
    other = msgspec.structs.replace(opening, **{field: altered(getattr(opening, field), data)})
    assert opening.check(opener.model.id)
    assert other == opening or not other.check(opener.model.id)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for kind in (Field, Tile, TableTile):
        with pytest.raises(ReceiptError):
            kind.from_bytes(data)


def test_an_opening_has_one_encoding_and_a_bounded_size(opener: Opener) -> None:
    data = opener.field("numerics").to_bytes()
    with pytest.raises(ReceiptError):
        Field.from_bytes(data + b"\0")
    long = data.replace(b"\xa5index\xcc", b"\xa5index\xcd\0", 1)
    if long != data:
        with pytest.raises(ReceiptError, match="canonical"):
            Field.from_bytes(long)
    with pytest.raises(ReceiptError, match=f"at most {MAX_BYTES} bytes"):
        Tile.from_bytes(bytes(MAX_BYTES + 1))


@pytest.mark.parametrize("model", ["", "00" * 32, "x"])
def test_nothing_holds_under_another_model_id(opener: Opener, model: str) -> None:
    for opening in openings(opener):
        assert not opening.check(ModelId(model))  # type: ignore[attr-defined]


def test_what_a_model_does_not_have_is_not_opened(opener: Opener) -> None:
    for ask in (
        lambda: opener.field("config/nothing"),
        lambda: opener.tile("layers.9.gate", 0, 0),
        lambda: opener.tile("layers.0.gate", 1 << 20, 0),
        lambda: opener.tile("layers.0.gate", 0, 9),
        lambda: opener.weight("layers.0.gate", 0, -1),
        lambda: opener.table("sine", 0),
        lambda: opener.table("exp2", 1024),
    ):
        with pytest.raises(CorruptModel, match="has no"):
            ask()
