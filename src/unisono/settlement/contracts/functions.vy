# pragma version ~=0.4.3
"""
@title The functions that canonical operators look up, exactly as `numerics/scalar` defines them
@notice Tables are the code of contracts that hold nothing else (`settlement/tables.py`): a zero byte,
    then entries of fixed size. Two neighbours are one read. Whoever uses a table checks once, when
    it is deployed, that its code has the hash below.
"""

import fixed

EXPONENTIALS: constant(bytes32) = 0xb3e3632f29081a7dab8f05eb3f321025de15fd850ba93d221d73d4a342d16cb8
LOGARITHMS: constant(bytes32) = 0xba79503a80029a608ef66bfbebb20876366058bf86b15799d3a0d32adbbe9f94
COSINES: constant(bytes32) = 0x24bc6c77ec2e7a31dc14ce8fe9f499eb9f2c95faaf7481fed9669e00069ccaa7

ONE: constant(int256) = 1
MAX_DISTANCE: constant(int256) = 2621440  # 40 with 16 fraction bits
LOG2_E: constant(int256) = 94548
GELU_LINEAR: constant(int256) = 1713444047
GELU_CUBIC: constant(int256) = 76616651

GATE_TABLE: constant(uint256) = 5126  # after the zero byte and 1,025 powers of 5 bytes
COSINE_ONE: constant(int256) = 4194304
LOW_24: constant(uint256) = 2**24 - 1
LOW_32: constant(uint256) = 2**32 - 1
LOW_40: constant(uint256) = 2**40 - 1


@internal
@view
def _pair_of_5(table: address, index: uint256) -> (int256, int256):
    at: uint256 = unsafe_add(1, unsafe_mul(5, index))
    pair: uint256 = convert(slice(table.code, at, 10), uint256)
    return convert(pair >> 40, int256), convert(pair & LOW_40, int256)


@internal
@view
def _pair_of_3(table: address, start: uint256, index: uint256) -> (int256, int256):
    at: uint256 = unsafe_add(start, unsafe_mul(3, index))
    pair: uint256 = convert(slice(table.code, at, 6), uint256)
    return convert(pair >> 24, int256), convert(pair & LOW_24, int256)


@internal
@view
def exp2_negative(exponentials: address, distance: int256, bits: int256) -> int256:
    """
    @notice `2**-distance` with `bits` fraction bits, at most 38; `distance` has 16. A negative one,
        which no honest trace has, wraps as in the specification.
    """
    index: uint256 = convert((distance >> 6) & 1023, uint256)
    a: int256 = 0
    b: int256 = 0
    a, b = self._pair_of_5(exponentials, index)
    value: int256 = a - fixed.round_shift((a - b) * (distance & 63), 6)
    return fixed.round_shift(value, min((distance >> 16) + 38 - bits, fixed.MAX_SHIFT))


@internal
@view
def sigmoid(exponentials: address, x: int256) -> int256:
    """
    @notice Logistic function: argument with 20 fraction bits, `|x| < 2**25`; result with 38
    """
    size: int256 = abs(fixed.in_range(x, 25))
    upper: int256 = ONE << 24
    if size < 16 << 20:
        low: int256 = 0
        high: int256 = 0
        low, high = self._pair_of_3(exponentials, GATE_TABLE, convert(size >> 12, uint256))
        upper = low + fixed.round_shift((high - low) * (size & 4095), 12)
    if x >= 0:
        return upper << 14
    distance: int256 = fixed.round_shift(size * LOG2_E, 20)
    return fixed.round_shift(self.exp2_negative(exponentials, distance, 38) * upper, 24)


@internal
@pure
def gelu_argument(x: int256) -> int256:
    """
    @notice What the sigmoid of tanh GELU takes; 20 fraction bits in and out, saturated to 25 bits
    """
    square: int256 = fixed.round_shift(fixed.in_range(x, 25) * x, 20)
    inner: int256 = GELU_LINEAR + fixed.round_shift(square * GELU_CUBIC, 20)
    return fixed.clamp(fixed.round_shift(x * inner, 30), (ONE << 25) - 1)


@internal
@view
def log2_fixed(logarithms: address, x: int256) -> int256:
    """
    @notice `log2(x)` of `0 < x < 2**50`, with 38 fraction bits
    """
    assert x > 0, "wrong"
    exponent: int256 = fixed.bit_length(fixed.in_range(x, 50)) - 1
    # 36 bits behind the leading one: 12 choose the entry, 24 interpolate
    scaled: int256 = (x << 36) >> convert(exponent, uint256)
    a: int256 = 0
    b: int256 = 0
    a, b = self._pair_of_5(logarithms, convert((scaled >> 24) & 4095, uint256))
    step: int256 = fixed.round_shift((b - a) * (scaled & 16777215), 24)
    return (exponent << 38) + a + step


@internal
@view
def _cosine(cosines: address, phase: int256) -> int256:
    a: int256 = 0
    b: int256 = 0
    a, b = self._pair_of_3(cosines, 1, convert(phase >> 30, uint256))
    return a - COSINE_ONE + fixed.round_shift((b - a) * ((phase >> 14) & 65535), 16)


@internal
@view
def rotation(
    cosines: address, position: uint256, frequency: int256, factor: int256, sine: bool
) -> int256:
    """
    @notice The cosine, or sine, of `position * frequency` turns of 42 fraction bits, times
        `factor`, which has 16; result with 22
    """
    phase: int256 = fixed.in_range(convert(position, int256) * frequency, 63)
    if sine:
        phase = phase + (3 << 40)
    phase = phase & ((ONE << 42) - 1)
    return fixed.round_shift(self._cosine(cosines, phase) * fixed.in_range(factor, 20), 16)


@internal
@pure
def philox(token: uint256, position: uint256, seed: int256) -> int256:
    """
    @notice The random word of a token at a position: Philox4x32-10 (Salmon et al., SC 2011)
    """
    a: uint256 = token
    b: uint256 = position
    c: uint256 = 0
    d: uint256 = 0
    key_a: uint256 = convert(seed & convert(LOW_32, int256), uint256)
    key_b: uint256 = convert((seed >> 32) & convert(LOW_32, int256), uint256)
    for _: uint256 in range(10):
        first: uint256 = unsafe_mul(3528531795, a)
        second: uint256 = unsafe_mul(3449720151, c)
        a = (second >> 32) ^ b ^ key_a
        b = second & LOW_32
        c = (first >> 32) ^ d ^ key_b
        d = first & LOW_32
        key_a = unsafe_add(key_a, 2654435769) & LOW_32
        key_b = unsafe_add(key_b, 3144134277) & LOW_32
    return convert(a, int256)


@internal
@pure
def base2(below: int256) -> int256:
    """
    @notice A natural-log distance in base 2, 16 fraction bits, at most 40
    """
    return min(fixed.round_shift(min(below, MAX_DISTANCE) * LOG2_E, 16), MAX_DISTANCE)
