# pragma version ~=0.4.3
"""
@title What the court and its step referees say to each other
@notice A step is one element of one tensor, or one part of a sum (`verification/fraud/steps.py`).
    `kind` says which formula, `p` are the constants of the model (`descriptors.py`), the context is
    what depends on the request and the place.
"""

MAX_PARAMS: constant(uint256) = 320
SHORT: constant(uint256) = 48  # of every step but a rotation: memory costs gas by the square of what could be
MAX_FIXED: constant(uint256) = 16
MAX_TERMS: constant(uint256) = 512  # bytes of what one chunk opens: two sources of 256
MAX_TOTAL: constant(uint256) = 5

# Where the integers of a source are.
TRACE: constant(uint256) = 0  # a tensor of the step's own cell
GRID: constant(uint256) = 1  # a kept tensor of an earlier cell
WEIGHTS: constant(uint256) = 2
TOKENS: constant(uint256) = 3  # prompt and answer
ROW_HASH: constant(uint256) = 4  # 8 big-endian words of 32 bits; `tensor` 0 is entry, 1 is exit
INPUT: constant(uint256) = 5  # the token that enters a hop which begins the model


struct Source:
    space: uint256
    tensor: uint256
    stage: uint256
    position: uint256
    row: uint256
    start: uint256
    stop: uint256


struct Context:
    stage: uint256
    position: uint256
    prompt: uint256
    positions: uint256
    seen_start: uint256
    temperature: int256
    top_k: int256
    top_p: int256
    min_p: int256
    repetition_penalty: int256
    presence_penalty: int256
    frequency_penalty: int256
    seed: int256
    bias: int256  # of the token that is the element in dispute


# Kinds: 1 + place in the sorted names of `STEPS`.
ADD: constant(uint256) = 1
ADJUST: constant(uint256) = 2
ATTENDED: constant(uint256) = 3
BIAS: constant(uint256) = 4
BOUNDARY: constant(uint256) = 5
CHOSEN: constant(uint256) = 6
COUNT: constant(uint256) = 7
DISTANCE: constant(uint256) = 8
DIVISOR: constant(uint256) = 9
EMBED: constant(uint256) = 10
EXPONENT: constant(uint256) = 11
GATE: constant(uint256) = 12
GATED: constant(uint256) = 13
LARGEST: constant(uint256) = 14
LIKELIHOOD: constant(uint256) = 15
LOGIT: constant(uint256) = 16
MASS: constant(uint256) = 17
MIXED: constant(uint256) = 18
NOISY: constant(uint256) = 19
NORM: constant(uint256) = 20
NORM_INVERSE: constant(uint256) = 21
NUCLEUS: constant(uint256) = 22
PROBABILITY: constant(uint256) = 23
PRODUCT: constant(uint256) = 24
RANK: constant(uint256) = 25
REQUANTISE: constant(uint256) = 26
ROTATION: constant(uint256) = 27
SCORE: constant(uint256) = 28
SHIFT: constant(uint256) = 29
TOKEN: constant(uint256) = 30
TOP_K: constant(uint256) = 31
TURN: constant(uint256) = 32
VALUE_EXPONENT: constant(uint256) = 33
WEIGHT: constant(uint256) = 34
WINNER: constant(uint256) = 35


@internal
@pure
def span(tensor: int256, start: uint256, stop: uint256) -> Source:
    """
    @notice Elements of a tensor of the step's own cell
    """
    return Source(
        space=TRACE,
        tensor=convert(tensor, uint256),
        stage=0,
        position=0,
        row=0,
        start=start,
        stop=stop,
    )


@internal
@pure
def own(tensor: int256, element: uint256) -> Source:
    """
    @notice One element of a tensor of the step's own cell
    """
    return self.span(tensor, element, element + 1)


@internal
@pure
def weights(row: uint256, start: uint256, stop: uint256) -> Source:
    """
    @notice Columns of a row of the step's weight tensor
    """
    return Source(
        space=WEIGHTS, tensor=0, stage=0, position=0, row=row, start=start, stop=stop
    )
