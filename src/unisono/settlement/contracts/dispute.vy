# pragma version ~=0.4.3
"""
@title What the court and its judge both know of a game
@license Apache-2.0
"""
import steps

MAX_INPUTS: constant(uint256) = 16
MAX_DESCRIPTOR: constant(uint256) = 32 * (12 + MAX_INPUTS + steps.MAX_PARAMS)
SHORT_DESCRIPTOR: constant(uint256) = 32 * (12 + MAX_INPUTS + steps.SHORT)
MAX_DATA: constant(uint256) = 8192  # bytes of openings in one move
MAX_PARTS: constant(uint256) = 16
MAX_KEPT: constant(uint256) = 5
MAX_HEADER: constant(uint256) = 4 + MAX_KEPT
MAX_TOTALS: constant(uint256) = MAX_PARTS * steps.MAX_TOTAL


# What of a claim and its model every step may ask for.
struct Facts:
    program: bytes32  # root over the descriptors
    rows_in: bytes32
    rows_out: bytes32
    sequence: bytes32
    sampling: bytes32  # keccak256 of the words of `Sampling`
    layer_start: uint256
    layer_stop: uint256
    layers: uint256  # of the whole model
    prompt: uint256
    positions: uint256
    hidden: uint256
    kv_heads: uint256
    head_size: uint256
    vocabulary: uint256


struct Sampling:
    temperature: int256
    top_k: int256
    top_p: int256
    min_p: int256
    repetition_penalty: int256
    presence_penalty: int256
    frequency_penalty: int256
    seed: int256
    bias: bytes32  # root over the biases of all tokens; zero: none


# The constant part of a tensor's descriptor.
struct Tensor:
    tag: uint256
    variant: uint256
    index: uint256
    size_a: uint256
    size_b: uint256  # of each position that is seen
    width: uint256  # bytes of an element
    kind: uint256
    weight_rows: uint256  # 0: a vector
    weight_columns: uint256
    weight_tiles: uint256
    weight_root: bytes32
    inputs: uint256


# Everything about a game. The hash of this is what the contract keeps.
struct State:
    claim: bytes32  # the digest that was signed
    facts: bytes32
    challenger: address
    defender: address
    bond: uint256
    phase: uint256
    moves: uint256
    deadline: uint256
    challenger_lost: bool  # once it is decided
    stages: uint256
    positions: uint256
    tree: uint256
    depth: uint256  # of the node in dispute in that tree
    index: uint256
    shown: uint256  # levels below that node
    target: uint256  # the depth where the descent ends
    node: bytes32
    grid: bytes32
    trace: bytes32
    stage: uint256
    position: uint256
    seen_start: uint256
    variant: uint256
    tensors: uint256  # in the cell's program
    kept: bytes32  # hash of the kept tensors' roots
    kept_at: uint256  # their places in the program, 16 bits each
    place: uint256  # of the tensor in dispute
    tensor: bytes32  # hash of its descriptor
    size: uint256
    width: uint256
    kind: uint256
    element: uint256
    asserted: int256  # the element
    start: uint256
    stop: uint256
    totals: uint256  # how many integers of `total` count; 0: nothing was said of the sum
    total: int256[steps.MAX_TOTAL]
    parts: bytes32  # hash of the parts that were shown


# Phases. Even ones are the defender's turn, odd ones the challenger's.
COMMIT: constant(uint256) = 0
CHOOSE: constant(uint256) = 1
REVEAL: constant(uint256) = 2
ELEMENT: constant(uint256) = 3
CELL: constant(uint256) = 4
PART: constant(uint256) = 5
BLOCK: constant(uint256) = 6
PROVE: constant(uint256) = 8
DECIDED: constant(uint256) = 10


@internal
@pure
def words(
    tensor: Tensor,
    inputs: DynArray[uint256, MAX_INPUTS],
    p: DynArray[int256, steps.MAX_PARAMS],
) -> Bytes[MAX_DESCRIPTOR]:
    """
    @return The descriptor's leaf
    """
    of_inputs: Bytes[64 + 32 * MAX_INPUTS] = abi_encode(inputs)
    of_p: Bytes[64 + 32 * steps.MAX_PARAMS] = abi_encode(p)
    return convert(
        concat(
            abi_encode(tensor),
            slice(of_inputs, 64, 32 * len(inputs)),
            slice(of_p, 64, 32 * len(p)),
        ),
        Bytes[MAX_DESCRIPTOR],
    )


@internal
@pure
def short_words(
    tensor: Tensor,
    inputs: DynArray[uint256, MAX_INPUTS],
    p: DynArray[int256, steps.SHORT],
) -> Bytes[SHORT_DESCRIPTOR]:
    """
    @notice The same of few parameters: memory costs gas by the square of what could be
    """
    of_inputs: Bytes[64 + 32 * MAX_INPUTS] = abi_encode(inputs)
    of_p: Bytes[64 + 32 * steps.SHORT] = abi_encode(p)
    return convert(
        concat(
            abi_encode(tensor),
            slice(of_inputs, 64, 32 * len(inputs)),
            slice(of_p, 64, 32 * len(p)),
        ),
        Bytes[SHORT_DESCRIPTOR],
    )
