# pragma version ~=0.4.3
"""
@title Referee of the steps of choosing a token
@notice What `verification/fraud/sampling_steps.py` says, read by read and sum by sum. Stateless.
    Assertions that cannot be revert with "wrong"; calls that make no sense revert without it.
"""

import fixed
import functions
import steps

EXPONENTIALS: immutable(address)
LOGARITHMS: immutable(address)

FEW: constant(uint256) = 32
FEW_TOKENS: constant(uint256) = 64

ID_BITS: constant(uint256) = 20
IDS: constant(int256) = 2**20 - 1
Q16: constant(int256) = 65536
SCORE_LIMIT: constant(int256) = 2**42
NEVER: constant(int256) = -(2**40)


@deploy
def __init__(exponentials: address, logarithms: address):
    assert exponentials.codehash == functions.EXPONENTIALS, "not the table of exponentials"
    assert logarithms.codehash == functions.LOGARITHMS, "not the table of logarithms"
    EXPONENTIALS = exponentials
    LOGARITHMS = logarithms


@external
@pure
def describe(kind: uint256) -> (uint256, bool):
    """
    @notice Terms of one chunk, and whether parts combine by maximum instead of by sum
    """
    if kind == steps.COUNT:
        return FEW_TOKENS, False
    if kind == steps.TOP_K or kind == steps.MASS or kind == steps.NUCLEUS:
        return FEW, False
    if kind == steps.WINNER:
        return FEW, True
    return 1, False


@external
@pure
def length(
    kind: uint256, p: DynArray[int256, steps.SHORT], ctx: steps.Context, i: uint256
) -> uint256:
    """
    @notice How many terms element `i` has; 0: it follows from `fixed_sources` alone
    """
    if kind == steps.COUNT:
        return ctx.position + 1 - self._first(p[0], ctx)
    if kind == steps.TOP_K or kind == steps.MASS or kind == steps.NUCLEUS:
        return convert(p[0], uint256)
    if kind == steps.WINNER:
        return convert(p[1], uint256)
    return 0


@external
@pure
def fixed_sources(
    kind: uint256, p: DynArray[int256, steps.SHORT], ctx: steps.Context, i: uint256
) -> DynArray[steps.Source, steps.MAX_FIXED]:
    """
    @notice What element `i` needs whatever its terms are: one integer each
    """
    if kind == steps.ADJUST:
        if p[0] == 0:
            return [steps.own(p[1], i)]
        return [steps.own(p[1], i), steps.own(p[2], i), steps.own(p[3], i)]
    if kind == steps.DISTANCE:
        return [steps.own(p[0], i), steps.own(p[1], 0)]
    if kind == steps.LIKELIHOOD or kind == steps.RANK:
        return [steps.own(p[0], i)]
    if kind == steps.MASS and p[1] != 0:
        return [steps.own(p[2], 0)]
    if kind == steps.NUCLEUS:
        if p[1] == 0:
            return [steps.own(p[2], 0)]
        return [steps.own(p[2], 0), steps.own(p[3], 0)]
    if kind == steps.NOISY:
        sources: DynArray[steps.Source, steps.MAX_FIXED] = [
            steps.own(p[0], i),
            steps.own(p[1], i),
            steps.own(p[2], i),
        ]
        for k: uint256 in range(convert(p[3], uint256), bound=2):
            sources.append(steps.own(p[4 + k], 0))
        return sources
    if kind == steps.CHOSEN:
        return [steps.own(p[0], 0), self._tokens(ctx.position + 1, ctx.position + 2)]
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
    if kind == steps.COUNT:
        first: uint256 = self._first(p[0], ctx)
        return [self._tokens(first + start, first + stop)]
    if kind == steps.TOP_K:
        return [steps.span(p[1], start, stop)]
    if kind == steps.MASS:
        return [steps.span(p[3], start, stop), steps.span(p[4], start, stop)]
    if kind == steps.NUCLEUS:
        return [steps.span(p[4], start, stop), steps.span(p[5], start, stop)]
    if kind == steps.WINNER:
        return [steps.span(p[0], start, stop)]
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
    @param asserted What the element is said to be; a bound is compared with every key
    @param opened The elements of the sources of `terms`, as their leaves have them, joined
    """
    count: uint256 = stop - start
    if kind == steps.COUNT:
        assert len(opened) == 4 * count, "a row of 32-bit tokens is needed"
        return [self._occurrences(opened, count, convert(i, int256))]
    row: DynArray[int256, 64] = fixed.row(opened)
    if kind == steps.WINNER:
        assert len(opened) == 8 * count, "a row of 64-bit integers is needed"
        return [self._winner(row, convert(start, int256))]
    if kind == steps.TOP_K:
        assert len(opened) == 8 * count, "a row of 64-bit integers is needed"
        sums: int256[5] = self._sums(row, 0, asserted, max_value(int256))
        return [sums[2], sums[3]]
    assert len(opened) == 16 * count, "two rows of 64-bit integers are needed"
    bound: int256 = max_value(int256)
    if kind == steps.MASS:
        if p[1] != 0:
            bound = fixed_values[0]
        # every key that counts is below this one
        sums: int256[5] = self._sums(row, count, max_value(int256), bound)
        return [sums[0]]
    assert kind == steps.NUCLEUS, "this kind has no terms"
    if p[1] != 0:
        bound = fixed_values[1]
    sums: int256[5] = self._sums(row, count, asserted, bound)
    return [sums[0], sums[1], sums[2], sums[3], sums[4]]


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
    id: int256 = convert(i, int256)
    if kind == steps.COUNT:
        return total[0] if len(total) > 0 else 0
    if kind == steps.WINNER:
        return total[0]
    if kind == steps.ADJUST:
        x: int256 = fixed.in_range(fixed_values[0], 40)
        if p[0] != 0:
            x = self._penalised(x, fixed_values[1], fixed_values[2], ctx)
        return fixed.clamp(fixed.in_range(x + ctx.bias, 63), SCORE_LIMIT)
    if kind == steps.DISTANCE:
        below: int256 = fixed.in_range((fixed_values[1] - fixed_values[0]) << 16, 63)
        return fixed.floor_div(below, ctx.temperature)
    if kind == steps.LIKELIHOOD:
        return functions.exp2_negative(EXPONENTIALS, functions.base2(fixed_values[0]), 28)
    if kind == steps.RANK:
        return min(fixed.in_range(fixed_values[0], 62), SCORE_LIMIT) << ID_BITS | id
    if kind == steps.TOP_K:
        assert total[0] == ctx.top_k - 1 and total[1] == 1, "wrong"
        return asserted
    if kind == steps.MASS:
        return fixed.in_range(total[0] * ctx.top_p, 64) >> 16
    if kind == steps.NUCLEUS:
        mass: int256 = fixed_values[0]
        assert total[3] == 1, "wrong"
        assert total[2] == 0 or total[0] < mass, "wrong"
        assert total[4] == 0 or total[0] + total[1] >= mass, "wrong"
        return asserted
    if kind == steps.NOISY:
        return self._noisy(i, ctx, fixed_values)
    assert kind == steps.CHOSEN, "another referee judges this kind"
    assert IDS - (fixed_values[0] & IDS) == fixed_values[1], "wrong"
    return 1


@internal
@pure
def _first(from_prompt: int256, ctx: steps.Context) -> uint256:
    """
    @notice Where counting begins: with the sequence, or with the answer
    """
    return 0 if from_prompt == 0 else ctx.prompt


@internal
@pure
def _tokens(start: uint256, stop: uint256) -> steps.Source:
    return steps.Source(
        space=steps.TOKENS, tensor=0, stage=0, position=0, row=0, start=start, stop=stop
    )


@internal
@pure
def _penalised(score: int256, seen: int256, repeats: int256, ctx: steps.Context) -> int256:
    x: int256 = score
    if ctx.repetition_penalty != Q16 and seen != 0:
        if x > 0:
            x = fixed.floor_div(fixed.in_range(x << 16, 63), ctx.repetition_penalty)
        else:
            x = fixed.in_range(x * ctx.repetition_penalty, 63) >> 16
    if repeats != 0:
        x -= ctx.presence_penalty + ctx.frequency_penalty * repeats
    return x


@internal
@view
def _noisy(
    i: uint256, ctx: steps.Context, fixed_values: DynArray[int256, steps.MAX_FIXED]
) -> int256:
    """
    @notice Gumbel noise less the distance, if every filter left the token
    """
    likelihood: int256 = fixed_values[1]
    if likelihood <= 0 or likelihood < ctx.min_p << 12:
        return NEVER
    for k: uint256 in range(3, len(fixed_values), bound=5):
        if fixed_values[2] > fixed_values[k]:
            return NEVER
    uniform: int256 = 2 * functions.philox(i, ctx.position + 1, ctx.seed) + 1
    exponential: int256 = max(1, (33 << 38) - functions.log2_fixed(LOGARITHMS, uniform))
    gumbel: int256 = (38 << 38) - functions.log2_fixed(LOGARITHMS, exponential)
    return fixed.round_shift(gumbel, 22) - functions.base2(fixed_values[0])


@internal
@pure
def _occurrences(opened: Bytes[steps.MAX_TERMS], count: uint256, id: int256) -> int256:
    """
    @notice How many of a row of 32-bit integers are `id`
    """
    row: Bytes[steps.MAX_TERMS + 32] = concat(opened, empty(bytes32))
    found: int256 = 0
    for word: uint256 in range((count + 7) // 8, bound=16):
        x: uint256 = fixed.swapped(extract32(row, 32 * word, output_type=uint256), 4)
        for lane: uint256 in range(min(8, count - 8 * word), bound=8):
            if fixed.signed(x, lane, 4) == id:
                found += 1
    return found


@internal
@pure
def _winner(row: DynArray[int256, 64], start: int256) -> int256:
    """
    @notice The largest of a row, each followed by what is left of its token's id below `2**20`: of
        equals the first is the largest
    """
    top: int256 = min_value(int256)
    rest: int256 = IDS - start
    for score: int256 in row:
        top = max(top, fixed.in_range(score, 43) << ID_BITS | rest)
        rest -= 1
    return top


@internal
@pure
def _sums(
    row: DynArray[int256, 64], keys: uint256, key: int256, bound: int256
) -> int256[5]:
    """
    @notice Of the tokens whose key is at most `bound`: the likelihoods of those with a smaller key
        than `key` and of those with that key, and how many have a smaller, that, and a larger key
    @param row Likelihoods, then keys; or keys alone, which then count as likelihoods
    @param keys Where keys begin
    """
    mass_below: int256 = 0
    mass_at: int256 = 0
    below: int256 = 0
    at: int256 = 0
    above: int256 = 0
    for k: uint256 in range(len(row) - keys, bound=64):
        other: int256 = row[keys + k]
        if other > bound:
            continue
        if other < key:
            mass_below += row[k]
            below += 1
        elif other == key:
            mass_at += row[k]
            at += 1
        else:
            above += 1
    return [mass_below, mass_at, below, at, above]
