# pragma version ~=0.4.3
"""
@title Referee of the steps that act on whole rows: requantisation, norm, product, gates, residual
@notice What `verification/fraud/layer_steps.py` says, read by read and sum by sum. Stateless.
    Assertions that cannot be revert with "wrong"; calls that make no sense revert without it.
    Whether a row is the one that was signed (`boundary`) is no arithmetic: the court compares.
"""

import fixed
import functions
import packed
import steps

EXPONENTIALS: immutable(address)

CHUNK: constant(uint256) = 128
FEW: constant(uint256) = 32
GROUP: constant(uint256) = 32  # weights that share a multiplier
ROW: constant(int256) = 4  # place of the row among what a layer keeps
RESIDUAL_LIMIT: constant(int256) = 2**43 - 1
GELU_TANH: constant(int256) = 1


@deploy
def __init__(exponentials: address):
    assert exponentials.codehash == functions.EXPONENTIALS, "not the table of exponentials"
    EXPONENTIALS = exponentials


@external
@pure
def describe(kind: uint256) -> (uint256, bool):
    """
    @notice Terms of one chunk, and whether parts combine by maximum instead of by sum
    """
    if kind == steps.PRODUCT or kind == steps.LOGIT:
        return CHUNK, False
    if kind == steps.SHIFT:
        return FEW, True
    if kind == steps.NORM_INVERSE:
        return FEW, False
    return 1, False


@external
@pure
def length(
    kind: uint256, p: DynArray[int256, steps.SHORT], ctx: steps.Context, i: uint256
) -> uint256:
    """
    @notice How many terms element `i` has; 0: it follows from `fixed_sources` alone
    """
    if (
        kind == steps.PRODUCT
        or kind == steps.LOGIT
        or kind == steps.SHIFT
        or kind == steps.NORM_INVERSE
    ):
        return convert(p[2], uint256)
    return convert(kind == steps.EMBED, uint256)


@external
@pure
def fixed_sources(
    kind: uint256, p: DynArray[int256, steps.SHORT], ctx: steps.Context, i: uint256
) -> DynArray[steps.Source, steps.MAX_FIXED]:
    """
    @notice What element `i` needs whatever its terms are: one integer each
    """
    if kind == steps.SHIFT:
        if p[5] < 0:
            return []
        return [steps.own(p[5], i)]
    if kind == steps.REQUANTISE:
        return [
            self._row(ctx, p[0], p[3], i, i + 1), steps.own(p[4], i // convert(p[2], uint256))
        ]
    if kind == steps.EXPONENT:
        return self._exponents(p, 2, i, [])
    if kind == steps.NORM_INVERSE:
        return self._exponents(p, 8, i, [steps.own(p[4], i), steps.own(p[5], i)])
    if kind == steps.NORM:
        width: uint256 = convert(p[2], uint256)
        group: uint256 = i // width
        column: uint256 = i % width
        return [
            self._row(ctx, p[0], p[3], i, i + 1),
            steps.own(p[4], group),
            steps.own(p[5], group),
            steps.own(p[6], group),
            steps.weights(0, column, column + 1),
        ]
    if kind == steps.LOGIT:
        return self._exponents(p, 5, 0, [])
    if kind == steps.BIAS:
        x: steps.Source = steps.own(p[0], i)
        return self._exponents(p, 4, 0, [x, steps.own(p[1], 0), steps.weights(0, i, i + 1)])
    if kind == steps.GATE:
        x: steps.Source = self._row(ctx, p[0], p[3], i, i + 1)
        return self._exponents(p, 6, 0, [x, steps.own(p[4], 0)])
    if kind == steps.GATED:
        return [
            self._row(ctx, p[0], p[3], i, i + 1),
            self._row(ctx, p[5], p[8], i, i + 1),
            steps.own(p[4], 0),
            steps.own(p[9], 0),
        ]
    if kind == steps.ADD:
        residual: steps.Source = self._row(ctx, p[0], p[3], i, i + 1)
        return self._exponents(p, 8, 0, [residual, self._row(ctx, p[4], p[7], i, i + 1)])
    if kind == steps.TOKEN:
        token: steps.Source = empty(steps.Source)
        token.space = steps.INPUT
        token.position = ctx.position
        token.stop = 1
        return [token]
    if kind == steps.EMBED:
        return [steps.own(p[0], 0)]
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
    if kind == steps.PRODUCT or kind == steps.LOGIT:
        return [self._row(ctx, p[0], p[3], start, stop), steps.weights(i, start, stop)]
    if kind == steps.SHIFT or kind == steps.NORM_INVERSE:
        first: uint256 = i * convert(p[2], uint256)
        return [self._row(ctx, p[0], p[3], first + start, first + stop)]
    if kind == steps.EMBED:
        assert fixed_values[0] >= 0, "wrong"  # the court knows how many rows there are
        return [steps.weights(convert(fixed_values[0], uint256), i, i + 1)]
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
    if kind == steps.PRODUCT or kind == steps.LOGIT:
        groups: uint256 = count // GROUP
        assert start % GROUP == 0 and count % GROUP == 0, "groups of weights are not cut"
        assert groups > 0 and groups <= 4, "as many terms as one leaf has"
        assert len(opened) == 3 * count + 2 * groups, "a row and its weights are needed"
        return [fixed.in_range(packed.weighted(opened, groups), 53)]
    if kind == steps.SHIFT:
        assert len(opened) == 8 * count and count > 0, "one row of 64-bit integers is needed"
        row: DynArray[int256, 64] = fixed.row(opened)
        if p[5] >= 0:
            row = fixed.reduced_row(row, fixed_values[0], convert(p[6], uint256))
        largest: int256 = 0
        for x: int256 in row:
            largest = max(largest, abs(x))
        return [fixed.in_range(largest, 62)]
    if kind == steps.NORM_INVERSE:
        assert len(opened) == 8 * count, "one row of 64-bit integers is needed"
        row: DynArray[int256, 64] = fixed.reduced_row(fixed.row(opened), fixed_values[0], 30)
        row = fixed.reduced_row(row, fixed_values[1], 15)
        squares: int256 = 0
        for x: int256 in row:
            squares = unsafe_add(squares, unsafe_mul(x, x))
        return [squares]
    assert kind == steps.EMBED and len(opened) == 3, "this kind has no such terms"
    weight: int256 = fixed.element(opened, 0, 1)
    low: uint256 = convert(slice(opened, 1, 1), uint256)
    multiplier: uint256 = (convert(slice(opened, 2, 1), uint256) << 8) | low
    product: int256 = weight * convert(multiplier, int256) * fixed.in_range(p[2], 18)
    return [fixed.align(product, -(p[1] + p[3] + 20), 43)]


@external
@view
def finish(
    kind: uint256,
    p: DynArray[int256, steps.SHORT],
    ctx: steps.Context,
    i: uint256,
    asserted: int256,
    total: DynArray[int256, steps.MAX_TOTAL],
    fixed_values: DynArray[int256, steps.MAX_FIXED],
) -> int256:
    """
    @notice Element `i`, from its whole sum or maximum and what `fixed_sources` named
    """
    if kind == steps.PRODUCT or kind == steps.EMBED:
        return total[0]
    if kind == steps.TOKEN:
        return fixed_values[0]
    if kind == steps.SHIFT:
        return fixed.overflow_shift(total[0], p[4])
    if kind == steps.REQUANTISE:
        return fixed.reduced(fixed_values[0], fixed_values[1], convert(p[5], uint256))
    if kind == steps.EXPONENT:
        exponent: int256 = self._exponent(p, 2, fixed_values, 0)
        return exponent if p[0] == 0 else max(exponent, p[1])
    if kind == steps.NORM_INVERSE:
        exponent: int256 = self._exponent(p, 8, fixed_values, 2)
        exponent += fixed_values[0] + fixed_values[1]
        mean: int256 = fixed.floor_div(fixed.in_range(total[0], 47) << 16, p[2])
        added: int256 = fixed.align(fixed.in_range(p[6], 24), 2 * exponent - 16 - p[7], 50)
        return 2**46 // max(1, fixed.square_root(mean + added))
    if kind == steps.NORM:
        wide: int256 = fixed.reduced(fixed_values[0], fixed_values[1], 30)
        scaled: int256 = fixed.round_shift(wide * fixed_values[3], fixed_values[2] + 14)
        normal: int256 = fixed.in_range(scaled, 33)
        return fixed.in_range(normal * fixed.in_range(fixed_values[4], 20), 53)
    if kind == steps.LOGIT:
        return fixed.align(total[0], -(self._exponent(p, 5, fixed_values, 0) + 16), 40)
    if kind == steps.BIAS:
        exponent: int256 = self._exponent(p, 4, fixed_values, 3)
        right: int256 = fixed_values[1] - p[3]
        added: int256 = fixed.align(fixed.in_range(fixed_values[2], 24), right, 60)
        places: int256 = min(fixed_values[1] - exponent, fixed.MAX_SHIFT)
        return fixed.in_range(fixed.round_shift(fixed_values[0], places) + added, 61)
    if kind == steps.GATE:
        exponent: int256 = self._exponent(p, 6, fixed_values, 2)
        argument: int256 = fixed.align(fixed_values[0], -(exponent + 20), 25)
        if p[5] == GELU_TANH:
            argument = functions.gelu_argument(argument)
        gate: int256 = fixed.reduced(fixed_values[0], fixed_values[1], 24)
        return fixed.in_range(gate * functions.sigmoid(EXPONENTIALS, argument), 62)
    if kind == steps.GATED:
        left: int256 = fixed.reduced(fixed_values[0], fixed_values[2], 31)
        right: int256 = fixed.reduced(fixed_values[1], fixed_values[3], 31)
        return fixed.in_range(left * right, 62)
    assert kind == steps.ADD, "another referee judges this kind"
    exponent: int256 = self._exponent(p, 8, fixed_values, 2)
    added: int256 = fixed.align(fixed_values[1], -(exponent + 20), 43)
    return fixed.clamp(fixed.in_range(fixed_values[0], 43) + added, RESIDUAL_LIMIT)


@internal
@pure
def _row(
    ctx: steps.Context, tensor: int256, before: int256, start: uint256, stop: uint256
) -> steps.Source:
    """
    @notice Elements of rows: of the own cell, or of the row that the stage before kept
    @dev An entry, which is stage 0, keeps nothing but its row
    """
    if before == 0:
        return steps.span(tensor, start, stop)
    assert tensor == ROW, "only the row of the stage before is read"
    kept: uint256 = convert(ROW, uint256) if ctx.stage > 1 else 0
    return steps.Source(
        space=steps.GRID,
        tensor=kept,
        stage=ctx.stage - 1,
        position=ctx.position,
        row=0,
        start=start,
        stop=stop,
    )


@internal
@pure
def _exponents(
    p: DynArray[int256, steps.SHORT],
    at: uint256,
    group: uint256,
    before: DynArray[steps.Source, 3],
) -> DynArray[steps.Source, steps.MAX_FIXED]:
    """
    @notice Sources, and behind them the scalars of the exponent that begins at parameter `at`
    """
    sources: DynArray[steps.Source, steps.MAX_FIXED] = []
    for source: steps.Source in before:
        sources.append(source)
    for k: uint256 in range(convert(p[at + 1], uint256), bound=13):
        each: bool = p[at + 3 + 2 * k] != 0
        sources.append(steps.own(p[at + 2 + 2 * k], group if each else 0))
    return sources


@internal
@pure
def _exponent(
    p: DynArray[int256, steps.SHORT],
    at: uint256,
    values: DynArray[int256, steps.MAX_FIXED],
    first: uint256,
) -> int256:
    """
    @notice The exponent that begins at parameter `at`; its scalars begin at value `first`
    """
    exponent: int256 = p[at]
    for k: uint256 in range(convert(p[at + 1], uint256), bound=13):
        exponent += values[first + k]
    return exponent
