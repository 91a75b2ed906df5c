# pragma version ~=0.4.3
"""
@title Referee of the steps of rotary embedding and attention
@notice What `verification/fraud/attention_steps.py` says, read by read and sum by sum. Stateless.
    Assertions that cannot be revert with "wrong"; calls that make no sense revert without it.
"""

import fixed
import functions
import packed
import steps

EXPONENTIALS: immutable(address)
COSINES: immutable(address)

# Places of a layer's kept tensors in its header.
KEYS: constant(uint256) = 0
KEY_EXPONENTS: constant(uint256) = 1
VALUES: constant(uint256) = 2
VALUE_EXPONENTS: constant(uint256) = 3

FEW: constant(uint256) = 32
CHUNK: constant(uint256) = 128


@deploy
def __init__(exponentials: address, cosines: address):
    assert exponentials.codehash == functions.EXPONENTIALS, "not the table of exponentials"
    assert cosines.codehash == functions.COSINES, "not the table of cosines"
    EXPONENTIALS = exponentials
    COSINES = cosines


@external
@pure
def describe(kind: uint256) -> (uint256, bool):
    """
    @notice Terms of one chunk, and whether parts combine by maximum instead of by sum
    """
    if kind == steps.SCORE:
        return CHUNK, False
    if kind == steps.LARGEST:
        return FEW, True
    if kind == steps.DIVISOR:
        return FEW, False
    return 1, kind == steps.VALUE_EXPONENT


@external
@pure
def length(
    kind: uint256, p: DynArray[int256, steps.SHORT], ctx: steps.Context, i: uint256
) -> uint256:
    """
    @notice How many terms element `i` has; 0: it follows from `fixed` alone
    """
    if kind == steps.SCORE:
        return convert(p[3], uint256)
    if kind == steps.LARGEST:
        return convert(p[1], uint256) + convert(p[2], uint256) * self._seen(ctx)
    if kind == steps.VALUE_EXPONENT or kind == steps.DIVISOR or kind == steps.MIXED:
        return self._seen(ctx)
    return 0


@external
@pure
def fixed_sources(
    kind: uint256, p: DynArray[int256, steps.SHORT], ctx: steps.Context, i: uint256
) -> DynArray[steps.Source, steps.MAX_FIXED]:
    """
    @notice What element `i` needs whatever its terms are: one integer each
    """
    if kind == steps.TURN:
        width: uint256 = convert(p[2], uint256)
        half: uint256 = width // 2
        k: uint256 = i % width
        first: uint256 = i
        if k >= half:
            first = i - half
            k -= half
        assert p[3] == 0, "heads that turn are the cell's own"
        return [
            steps.own(p[0], first),
            steps.own(p[0], first + half),
            steps.own(p[4], i // width),
            steps.own(p[5], k),
            steps.own(p[5], half + k),
        ]
    seen: uint256 = self._seen(ctx)
    if kind == steps.SCORE:
        head: uint256 = i // seen
        key: uint256 = self._shared(p[1], p[2], head)
        return [
            steps.own(p[7], head),
            self._kept(ctx, p[9], KEY_EXPONENTS, i % seen, key, key + 1),
        ]
    if kind == steps.PROBABILITY:
        return [steps.own(p[4], i), steps.own(p[5], i // seen)]
    if kind == steps.WEIGHT:
        head: uint256 = i // seen
        value: uint256 = self._shared(p[1], p[2], head)
        return [
            steps.own(p[4], i),
            steps.own(p[5], head),
            self._kept(ctx, p[6], VALUE_EXPONENTS, i % seen, value, value + 1),
        ]
    if kind == steps.MIXED:
        return [steps.own(p[4], i // convert(p[3], uint256))]
    if kind == steps.ATTENDED:
        head: uint256 = i // convert(p[0], uint256)
        return [steps.own(p[1], i), steps.own(p[2], 0), steps.own(p[3], head)]
    return []


@external
@pure
def terms(
    kind: uint256,
    p: DynArray[int256, steps.SHORT],
    ctx: steps.Context,
    i: uint256,
    start: uint256,
    stop: uint256,
    fixed_values: DynArray[int256, steps.MAX_FIXED],
) -> DynArray[steps.Source, 2]:
    """
    @notice What terms `start:stop` of element `i` need beside `fixed_sources`
    """
    if kind == steps.LARGEST:
        width: uint256 = convert(p[1], uint256) + convert(p[2], uint256) * self._seen(ctx)
        return [steps.span(p[0], i * width + start, i * width + stop)]
    seen: uint256 = self._seen(ctx)
    if kind == steps.SCORE:
        size: uint256 = convert(p[3], uint256)
        head: uint256 = i // seen
        query: uint256 = head * size
        key: uint256 = self._shared(p[1], p[2], head) * size
        return [
            steps.span(p[6], query + start, query + stop),
            self._kept(ctx, p[8], KEYS, i % seen, key + start, key + stop),
        ]
    if kind == steps.VALUE_EXPONENT:
        value: uint256 = self._shared(p[1], p[2], i)
        return [self._kept(ctx, p[4], VALUE_EXPONENTS, start, value, value + 1)]
    if kind == steps.DIVISOR:
        return [steps.span(p[4], i * seen + start, i * seen + stop)]
    if kind == steps.MIXED:
        size: uint256 = convert(p[3], uint256)
        head: uint256 = i // size
        column: uint256 = self._shared(p[1], p[2], head) * size + i % size
        return [
            steps.own(p[5], head * seen + start),
            self._kept(ctx, p[6], VALUES, start, column, column + 1),
        ]
    return []


@external
@pure
def partial(
    kind: uint256,
    p: DynArray[int256, steps.SHORT],
    ctx: steps.Context,
    i: uint256,
    asserted: int256,
    start: uint256,
    stop: uint256,
    fixed_values: DynArray[int256, steps.MAX_FIXED],
    opened: Bytes[steps.MAX_TERMS],
) -> DynArray[int256, steps.MAX_TOTAL]:
    """
    @notice The part of the sum or maximum that terms `start:stop` make
    @param opened The elements of the sources of `terms`, as their leaves have them, joined
    """
    count: uint256 = stop - start
    if kind == steps.SCORE:
        return [packed.product(opened, count)]
    if kind == steps.MIXED:
        assert count == 1 and len(opened) == 10, "a weight and an element are needed"
        element: int256 = fixed.in_range(fixed.element(slice(opened, 8, 2), 0, 2), 15)
        return [fixed.in_range(fixed.element(opened, 0, 8), 29) * element]
    assert len(opened) == 8 * count, "a row of 64-bit integers is needed"
    row: DynArray[int256, 64] = fixed.row(opened)
    if kind == steps.DIVISOR:
        sum: int256 = 0
        for x: int256 in row:
            sum += x
        return [sum]
    assert kind == steps.LARGEST or kind == steps.VALUE_EXPONENT, "this kind has no terms"
    top: int256 = row[0]
    for x: int256 in row:
        top = max(top, x)
    return [top]


@external
@view
def finish(
    kind: uint256,
    p: DynArray[int256, steps.MAX_PARAMS],
    ctx: steps.Context,
    i: uint256,
    asserted: int256,
    total: DynArray[int256, steps.MAX_TOTAL],
    fixed_values: DynArray[int256, steps.MAX_FIXED],
) -> int256:
    """
    @notice Element `i`, from its whole sum or maximum and what `fixed_sources` named
    """
    if kind == steps.ROTATION:
        half: uint256 = convert(p[1], uint256)
        frequency: int256 = p[2 + i % half]
        return functions.rotation(COSINES, ctx.position, frequency, p[0], i >= half)
    if kind == steps.TURN:
        width: uint256 = convert(p[2], uint256)
        a: int256 = fixed.reduced(fixed_values[0], fixed_values[2], 24)
        b: int256 = fixed.reduced(fixed_values[1], fixed_values[2], 24)
        if i % width < width // 2:
            return a * fixed_values[3] - b * fixed_values[4]
        return b * fixed_values[3] + a * fixed_values[4]
    if kind == steps.SCORE:
        right: int256 = -(fixed_values[0] + fixed_values[1] + p[5] + 16)
        return fixed.align(total[0] * p[4], right, 40)
    if kind == steps.LARGEST or kind == steps.VALUE_EXPONENT:
        return total[0]
    if kind == steps.PROBABILITY:
        distance: int256 = min(fixed_values[1] - fixed_values[0], functions.MAX_DISTANCE)
        return functions.exp2_negative(EXPONENTIALS, distance, 28)
    if kind == steps.WEIGHT:
        below: int256 = fixed_values[1] - fixed_values[2]
        return fixed.round_shift(fixed_values[0], min(below, fixed.MAX_SHIFT))
    if kind == steps.DIVISOR:
        return fixed.in_range(total[0], 63) >> 9
    if kind == steps.MIXED:
        return fixed.floor_div(fixed.in_range(total[0], 63), fixed_values[0])
    assert kind == steps.ATTENDED, "another referee judges this kind"
    below: int256 = fixed_values[1] - fixed_values[2]
    return fixed.round_shift(fixed_values[0] << 24, min(below, fixed.MAX_SHIFT))


@internal
@pure
def _seen(ctx: steps.Context) -> uint256:
    return ctx.position + 1 - ctx.seen_start


@internal
@pure
def _shared(heads: int256, kv_heads: int256, head: uint256) -> uint256:
    """
    @notice The key/value head of a query head
    """
    return head * convert(kv_heads, uint256) // convert(heads, uint256)


@internal
@pure
def _kept(
    ctx: steps.Context, own: int256, kept: uint256, j: uint256, start: uint256, stop: uint256
) -> steps.Source:
    """
    @notice Elements of a kept tensor of the j-th position that is seen
    """
    position: uint256 = ctx.seen_start + j
    if position == ctx.position:
        return steps.span(own, start, stop)
    return steps.Source(
        space=steps.GRID,
        tensor=kept,
        stage=ctx.stage,
        position=position,
        row=0,
        start=start,
        stop=stop,
    )
