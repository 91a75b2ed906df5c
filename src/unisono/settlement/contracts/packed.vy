# pragma version ~=0.4.3
"""
@title Dot products of packed integers, 4 or 8 terms per multiplication
@notice Lanes of a word are the coefficients of a polynomial; where one factor has them in reverse,
    the top lane of the product of two words is the dot product of their lanes. Numbers are biased
    to be positive, so that no lane borrows from its neighbour, and what the bias adds is taken off
    at the end. Results are modulo 2**256, which is two's complement.
"""

import fixed

ALL: constant(uint256) = max_value(uint256)

# The lowest byte of all 32-bit lanes, and the lower half of wider ones.
BYTES: constant(uint256) = ALL // (2**32 - 1) * 255
LOW_16: constant(uint256) = ALL // (2**16 + 1)
LOW_32: constant(uint256) = ALL // (2**32 + 1)
LOW_64: constant(uint256) = ALL // (2**64 + 1)
LOW_128: constant(uint256) = 2**128 - 1
WORDS: constant(uint256) = ALL // (2**64 - 1) * 65535  # the lowest 16 bits of all 64-bit lanes
ONES_32: constant(uint256) = ALL // (2**32 - 1)
ONES_64: constant(uint256) = ALL // (2**64 - 1)

SIGNS_8: constant(uint256) = ALL // 255 * 128
SIGNS_16: constant(uint256) = ALL // 65535 * 32768
CARRIES_32: constant(uint256) = ALL // (2**32 - 1) * 65536  # bit 16 of all 32-bit lanes
CARRIES_64: constant(uint256) = ALL // (2**64 - 1) * 65536


@internal
@pure
def backwards(word: uint256) -> uint256:
    """
    @notice The bytes of a word in reverse
    """
    x: uint256 = fixed.swapped(word, 8)
    x = ((x >> 64) & LOW_64) | ((x & LOW_64) << 64)
    return (x >> 128) | (x << 128)


@internal
@pure
def weighted(opened: Bytes[512], groups: uint256) -> int256:
    """
    @notice The product of a row of 16-bit integers with a row of grouped weights
    @param opened 32 integers per group, little-endian, each above -2**15; then 32 weights of 8 bits
        per group, then a multiplier of 16 bits per group, little-endian
    @param groups 1 to 4
    """
    total: uint256 = 0
    carries: uint256 = CARRIES_32
    weights: uint256 = 64 * groups
    # the multipliers are the last bytes: the word that ends with them
    multipliers: uint256 = fixed.swapped(
        extract32(opened, 98 * groups - 32, output_type=uint256), 2
    )
    for group: uint256 in range(groups, bound=4):
        # weight k of the group is at bit 8 k
        w: uint256 = self.backwards(
            extract32(opened, weights + 32 * group, output_type=uint256) ^ SIGNS_8
        )
        sum: uint256 = 0
        lanes: uint256 = 0
        for half: uint256 in range(2):
            at: uint256 = 64 * group + 32 * half
            x: uint256 = fixed.swapped(extract32(opened, at, output_type=uint256), 2) ^ SIGNS_16
            # spread to pairs: weights 2 j and 2 j + 1 are at bits 32 j and 32 j + 8
            pairs: uint256 = w & LOW_128
            w = w >> 128
            pairs = (pairs | (pairs << 64)) & LOW_64
            pairs = (pairs | (pairs << 32)) & LOW_32
            pairs = (pairs | (pairs << 16)) & LOW_16
            even: uint256 = pairs & BYTES
            odd: uint256 = (pairs >> 8) & BYTES
            x_even: uint256 = (x >> 16) & LOW_16
            x_odd: uint256 = x & LOW_16
            carries = carries & unsafe_add(x_even, LOW_16) & unsafe_add(x_odd, LOW_16)
            sum = unsafe_add(
                sum,
                unsafe_add(unsafe_mul(x_even, even) >> 224, unsafe_mul(x_odd, odd) >> 224),
            )
            lanes = unsafe_add(lanes, unsafe_mul(unsafe_add(x_even, x_odd), 128))
            lanes = unsafe_add(lanes, unsafe_mul(unsafe_add(even, odd), 32768))
        biased: uint256 = unsafe_mul(lanes, ONES_32) >> 224
        sum = unsafe_sub(unsafe_add(sum, 32 * 32768 * 128), biased)
        right: uint256 = unsafe_mul(16, unsafe_sub(unsafe_sub(groups, 1), group))
        total = unsafe_add(total, unsafe_mul(sum, (multipliers >> right) & 65535))
    assert carries == CARRIES_32, "wrong"  # a lane was 0: an integer of -2**15
    return convert(convert(total, bytes32), int256)


@internal
@pure
def product(opened: Bytes[512], count: uint256) -> int256:
    """
    @notice The dot product of two rows of 16-bit integers
    @param opened Both rows, one after the other, little-endian, each integer above -2**15
    @param count Of each row; a multiple of 16
    """
    assert len(opened) == 4 * count and count % 16 == 0, "two rows of whole words are needed"
    sum: uint256 = 0
    lanes: uint256 = 0
    carries: uint256 = CARRIES_64
    for word: uint256 in range(count // 16, bound=8):
        at: uint256 = 32 * word
        x: uint256 = fixed.swapped(extract32(opened, at, output_type=uint256), 2) ^ SIGNS_16
        y: uint256 = self.backwards(extract32(opened, at + 2 * count, output_type=uint256))
        y = y ^ SIGNS_16
        for lane: uint256 in range(4):
            right: uint256 = unsafe_mul(16, lane)
            a: uint256 = (x >> unsafe_sub(48, right)) & WORDS
            b: uint256 = (y >> right) & WORDS
            carries = carries & unsafe_add(a, WORDS) & unsafe_add(b, WORDS)
            sum = unsafe_add(sum, unsafe_mul(a, b) >> 192)
            lanes = unsafe_add(lanes, unsafe_add(a, b))
    assert carries == CARRIES_64, "wrong"  # a lane was 0: an integer of -2**15
    biased: uint256 = unsafe_mul(unsafe_mul(lanes, ONES_64) >> 192, 32768)
    sum = unsafe_sub(unsafe_add(sum, unsafe_mul(count, 2**30)), biased)
    return convert(convert(sum, bytes32), int256)
