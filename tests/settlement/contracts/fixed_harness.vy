# pragma version ~=0.4.3
import fixed


@external
@pure
def in_range(x: int256, bits: uint256) -> int256:
    return fixed.in_range(x, bits)


@external
@pure
def round_shift(x: int256, places: int256) -> int256:
    return fixed.round_shift(x, places)


@external
@pure
def clamp(x: int256, limit: int256) -> int256:
    return fixed.clamp(x, limit)


@external
@pure
def align(x: int256, right: int256, bits: uint256) -> int256:
    return fixed.align(x, right, bits)


@external
@pure
def reduced(x: int256, places: int256, bits: uint256) -> int256:
    return fixed.reduced(x, places, bits)


@external
@pure
def bit_length(x: int256) -> int256:
    return fixed.bit_length(x)


@external
@pure
def overflow_shift(largest: int256, bits: int256) -> int256:
    return fixed.overflow_shift(largest, bits)


@external
@pure
def floor_div(x: int256, y: int256) -> int256:
    return fixed.floor_div(x, y)


@external
@pure
def square_root(x: int256) -> int256:
    return fixed.square_root(x)


@external
@pure
def element(data: Bytes[1024], index: uint256, width: uint256) -> int256:
    return fixed.element(data, index, width)


@external
@pure
def signed(word: uint256, lane: uint256, width: uint256) -> int256:
    return fixed.signed(fixed.swapped(word, width), lane, width)


@external
@pure
def row(data: Bytes[512]) -> DynArray[int256, 64]:
    return fixed.row(data)
