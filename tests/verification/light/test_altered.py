"""Openings that are altered after the trace was committed to, and signed all the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest

from tests.verification.light.answered import KEY, answered, caught
from unisono.types import canonical
from unisono.verification.light.audit import LightAudit, LightVerdict
from unisono.verification.light.draw import Budget
from unisono.verification.light.messages import (
    CellOpening,
    Challenge,
    Memory,
    Opening,
    SampleOpening,
    decode,
    pack,
    unpack,
)
from unisono.verification.light.responder import Responder
from unisono.verification.light.steps import PRODUCTS

PROMPT = tuple((7 * i + 3) % 50 for i in range(11))


@cache
def audited(family: str, budget: Budget) -> tuple[LightAudit, Challenge, Opening]:
    """An audit that has drawn something of every kind that its budget allows, and the honest
    answer to it."""
    answer = answered(family, PROMPT, 4)
    receipt = answer.receipt(answer.trace())
    responder = Responder(receipt.hops[0], answer.trace(), KEY)
    while True:
        audit = LightAudit(answer.secrets, receipt, 0, budget)
        (challenge,) = audit.challenges(responder.commit())
        if challenge.samples or not budget.samples:
            return audit, challenge, decode(responder.respond(challenge), Opening)


def answer_of(
    change: Callable[[Opening], Opening], budget: Budget = Budget(30, 0, 0, 2)
) -> LightVerdict:
    """The verdict on an altered answer of a small Gemma; every cell is asked for by default, cell
    20 in its last layer."""
    audit, challenge, opening = audited("gemma", budget)
    opening = change(opening)
    signed = msgspec.structs.replace(opening, signature=KEY.sign(opening.signed_bytes()))
    return audit.judge(challenge, canonical(signed))


def in_cell(at: int, change: Callable[[CellOpening], CellOpening]) -> Callable[[Opening], Opening]:
    def changed(opening: Opening) -> Opening:
        cells = list(opening.cells)
        cells[at] = change(cells[at])
        return msgspec.structs.replace(opening, cells=tuple(cells))

    return changed


def plus_one(packed: bytes) -> bytes:
    count = (len(packed) - 1) // packed[0]
    values = unpack(packed, (count,), 62)
    values[count // 2] += 1
    return pack(values)


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_that_is_off_by_one_is_caught(name: str) -> None:
    def change(cell: CellOpening) -> CellOpening:
        products = {**cell.products, name: plus_one(cell.products[name])}
        return msgspec.structs.replace(cell, products=products)

    caught(answer_of(in_cell(20, change)), name)


@pytest.mark.parametrize("name", ["keys", "key_exponents", "values", "value_exponents"])
def test_memory_other_than_the_trace_holds_is_caught(name: str) -> None:
    def change(cell: CellOpening) -> CellOpening:
        memory = {n: getattr(cell.memory, n) for n in cell.memory.__struct_fields__}
        memory[name] = plus_one(memory[name])
        return msgspec.structs.replace(cell, memory=Memory(**memory))

    caught(answer_of(in_cell(20, change)), "trace")


def test_rows_other_than_the_trace_holds_are_caught() -> None:
    def row_in(cell: CellOpening) -> CellOpening:
        other = msgspec.structs.replace(cell.row_in, row=plus_one(cell.row_in.row))
        return msgspec.structs.replace(cell, row_in=other)

    def row_out(cell: CellOpening) -> CellOpening:
        other = msgspec.structs.replace(cell.row_out, row=plus_one(cell.row_out.row))
        return msgspec.structs.replace(cell, row_out=other)

    assert answer_of(in_cell(0, row_in)).operator == "embedding"
    caught(answer_of(in_cell(20, row_in)), "trace", 1)
    caught(answer_of(in_cell(0, row_out)), "row_out", 0)
    caught(answer_of(in_cell(20, row_out)), "row_out", 1)


def test_openings_with_parts_missing_or_of_another_size_are_malformed() -> None:
    def replaced(**changes: Any) -> Callable[[Opening], Opening]:
        return in_cell(20, lambda cell: msgspec.structs.replace(cell, **changes))

    def inner(part: str, **changes: Any) -> Callable[[Opening], Opening]:
        return in_cell(
            20,
            lambda cell: msgspec.structs.replace(
                cell, **{part: msgspec.structs.replace(getattr(cell, part), **changes)}
            ),
        )

    zeros = pack(np.zeros(64, dtype=np.int64))
    for change in (
        replaced(products={}),
        replaced(results={}),
        replaced(earlier=b"123"),
        replaced(earlier=b""),
        inner("row_in", row=b""),
        inner("row_in", row=zeros[:-1]),
        inner("row_in", proof=bytes(48)),
        inner("row_out", proof=b""),
        inner("row_out", memory=bytes(32)),
        inner("memory", keys=b""),
        in_cell(0, lambda c: msgspec.structs.replace(c, row_in=replace_embedding(c))),
        in_cell(
            0,
            lambda c: msgspec.structs.replace(
                c, row_out=msgspec.structs.replace(c.row_out, memory=b"short")
            ),
        ),
        in_cell(20, lambda c: msgspec.structs.replace(c, products={**c.products, "x": b""})),
        in_cell(20, lambda c: msgspec.structs.replace(c, products={**c.products, "up": b"\x07"})),
    ):
        verdict = answer_of(change)
        assert verdict.verdict == "INVALID"
        assert verdict.fault is not None
        assert verdict.fault.kind == "malformed", verdict.message


def replace_embedding(cell: CellOpening) -> Any:
    return msgspec.structs.replace(cell.row_in, embedding=None)


def test_altered_samples_and_heads_are_caught() -> None:
    def sampled(change: Callable[[SampleOpening], SampleOpening]) -> LightVerdict:
        def changed(opening: Opening) -> Opening:
            samples = (change(opening.samples[0]), *opening.samples[1:])
            return msgspec.structs.replace(opening, samples=samples)

        return answer_of(changed, Budget(1, 1, 13, 0))

    def off(sample: SampleOpening, name: str) -> SampleOpening:
        products = {**sample.products, name: plus_one(sample.products[name])}
        return msgspec.structs.replace(sample, products=products)

    for name in ("key", "value"):
        caught(sampled(lambda s, n=name: off(s, n)), name)
    caught(sampled(lambda s: msgspec.structs.replace(s, path=bytes(len(s.path)))), "trace")

    def head(opening: Opening) -> Opening:
        first = opening.heads[0]
        first = msgspec.structs.replace(first, product=plus_one(first.product))
        return msgspec.structs.replace(opening, heads=(first, *opening.heads[1:]))

    caught(answer_of(head), "head")
