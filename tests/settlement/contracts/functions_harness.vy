# pragma version ~=0.4.3
import functions


@external
@view
def exp2_negative(table: address, distance: int256, bits: int256) -> int256:
    return functions.exp2_negative(table, distance, bits)


@external
@view
def sigmoid(table: address, x: int256) -> int256:
    return functions.sigmoid(table, x)


@external
@pure
def gelu_argument(x: int256) -> int256:
    return functions.gelu_argument(x)


@external
@view
def log2_fixed(table: address, x: int256) -> int256:
    return functions.log2_fixed(table, x)


@external
@view
def rotation(
    table: address, position: uint256, frequency: int256, factor: int256, sine: bool
) -> int256:
    return functions.rotation(table, position, frequency, factor, sine)


@external
@pure
def philox(token: uint256, position: uint256, seed: int256) -> int256:
    return functions.philox(token, position, seed)


@external
@pure
def base2(below: int256) -> int256:
    return functions.base2(below)


@external
@view
def hashes() -> (bytes32, bytes32, bytes32):
    return functions.EXPONENTIALS, functions.LOGARITHMS, functions.COSINES
