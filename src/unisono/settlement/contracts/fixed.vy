# pragma version ~=0.4.3
"""
@title Fixed-point building blocks, exactly as `numerics/scalar/fixed.py` defines them
@notice Divisions and right shifts round towards minus infinity. What the specification refuses,
    because a proof of exactness would not hold, reverts with the reason "wrong": whoever asserted
    numbers that lead there is wrong. Every other revert is a malformed call.
"""

MAX_SHIFT: constant(int256) = 62
ONE: constant(int256) = 1

# Masks of the lower half of all 16, 32 and 64-bit lanes of a word.
LOW_8: constant(uint256) = max_value(uint256) // 257
LOW_16: constant(uint256) = max_value(uint256) // 65537
LOW_32: constant(uint256) = max_value(uint256) // 4294967297


@internal
@pure
def in_range(x: int256, bits: uint256) -> int256:
    """
    @notice `x` itself, whose magnitude must be below `2**bits`; bits at most 254
    """
    limit: int256 = ONE << bits
    assert x < limit and x > unsafe_sub(0, limit), "wrong"
    return x


@internal
@pure
def round_shift(x: int256, places: int256) -> int256:
    """
    @notice `x / 2**places` to the nearest integer, halves upward; `|x| < 2**62`, places in 0..62
    """
    assert x < ONE << 62 and x > -(ONE << 62) and places >= 0 and places <= MAX_SHIFT, "wrong"
    right: uint256 = convert(places, uint256)
    return unsafe_add(x, (ONE << right) >> 1) >> right


@internal
@pure
def clamp(x: int256, limit: int256) -> int256:
    """
    @notice `x` limited to `-limit..limit`
    """
    return max(unsafe_sub(0, limit), min(limit, x))


@internal
@pure
def align(x: int256, right: int256, bits: uint256) -> int256:
    """
    @notice `x / 2**right`, saturated to `bits` magnitude bits; counts above 62 count as 62
    """
    limit: int256 = unsafe_sub(ONE << bits, 1)
    if right >= 0:
        return self.clamp(self.round_shift(x, min(right, MAX_SHIFT)), limit)
    left: uint256 = 62
    if right > -MAX_SHIFT:
        left = convert(unsafe_sub(0, right), uint256)
    return self.clamp(self.in_range(x, 62) << left, limit)


@internal
@pure
def reduced(x: int256, places: int256, bits: uint256) -> int256:
    """
    @notice One element of `reduce_row`, its row's shift given
    """
    return self.clamp(self.round_shift(x, places), unsafe_sub(ONE << bits, 1))


@internal
@pure
def bit_length(x: int256) -> int256:
    """
    @notice Number of bits of the magnitude of `x`, 0 for 0; `|x| < 2**255`
    """
    rest: uint256 = convert(abs(x), uint256)
    count: uint256 = 0
    for step: uint256 in [128, 64, 32, 16, 8, 4, 2, 1]:
        if rest >> step != 0:
            rest = rest >> step
            count = unsafe_add(count, step)
    return convert(unsafe_add(count, rest), int256)


@internal
@pure
def overflow_shift(largest: int256, bits: int256) -> int256:
    """
    @notice The shift of a row whose largest magnitude this is
    """
    return max(0, unsafe_sub(self.bit_length(largest), bits))


@internal
@pure
def floor_div(x: int256, y: int256) -> int256:
    """
    @notice The quotient rounded towards minus infinity; 0 divides nothing
    """
    assert y != 0, "wrong"
    quotient: int256 = unsafe_div(x, y)
    if unsafe_mul(quotient, y) != x and (x < 0) != (y < 0):
        return unsafe_sub(quotient, 1)
    return quotient


@internal
@pure
def square_root(x: int256) -> int256:
    """
    @notice Integer square root, rounded down; `0 <= x < 2**52`
    """
    assert x >= 0 and x < ONE << 52, "wrong"
    return convert(isqrt(convert(x, uint256)), int256)


@internal
@pure
def swapped(word: uint256, width: uint256) -> uint256:
    """
    @notice A word of little-endian integers of 1, 2, 4 or 8 bytes, each turned big-endian in place
    """
    x: uint256 = word
    if width > 1:
        x = ((x >> 8) & LOW_8) | ((x & LOW_8) << 8)
    if width > 2:
        x = ((x >> 16) & LOW_16) | ((x & LOW_16) << 16)
    if width > 4:
        x = ((x >> 32) & LOW_32) | ((x & LOW_32) << 32)
    return x


@internal
@pure
def signed(word: uint256, lane: uint256, width: uint256) -> int256:
    """
    @notice The two's complement integer in a lane, counted from the left, of a `swapped` word
    """
    bits: uint256 = unsafe_mul(8, width)
    # to the top, and back with its sign
    top: uint256 = word << unsafe_mul(bits, lane)
    return convert(convert(top, bytes32), int256) >> unsafe_sub(256, bits)


@internal
@pure
def element(data: Bytes[1024], index: uint256, width: uint256) -> int256:
    """
    @notice The little-endian two's complement integer at a place among others of its width
    @dev data: integers of 1, 2, 4 or 8 bytes one after another; reverts where it has no such one
    """
    at: uint256 = index * width
    assert at + width <= len(data), "no such element"
    word: uint256 = extract32(concat(data, empty(bytes32)), at, output_type=uint256)
    return self.signed(self.swapped(word, width), 0, width)


@internal
@pure
def row(data: Bytes[512]) -> DynArray[int256, 64]:
    """
    @notice All 64-bit little-endian integers of `data`
    """
    padded: Bytes[544] = concat(data, empty(bytes32))
    count: uint256 = len(data) // 8
    integers: DynArray[int256, 64] = []
    for number: uint256 in range((count + 3) // 4, bound=16):
        word: uint256 = extract32(padded, 32 * number, output_type=uint256)
        word = self.swapped(word, 8)
        for lane: uint256 in range(min(4, count - 4 * number), bound=4):
            integers.append(convert(convert(word, bytes32), int256) >> 192)
            word = word << 64
    return integers


@internal
@pure
def reduced_row(
    row: DynArray[int256, 64], places: int256, bits: uint256
) -> DynArray[int256, 64]:
    """
    @notice `reduced` of every element
    """
    assert places >= 0 and places <= MAX_SHIFT, "wrong"
    right: uint256 = convert(places, uint256)
    half: int256 = (ONE << right) >> 1
    high: int256 = unsafe_sub(ONE << bits, 1)
    low: int256 = unsafe_sub(0, high)
    out: DynArray[int256, 64] = []
    for x: int256 in row:
        assert x < ONE << 62 and x > -(ONE << 62), "wrong"
        out.append(max(low, min(high, unsafe_add(x, half) >> right)))
    return out
