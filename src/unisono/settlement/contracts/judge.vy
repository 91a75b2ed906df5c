# pragma version ==0.4.3
# pragma evm-version cancun
"""
@title The judge of single steps
@license Apache-2.0
@notice Opens what a step reads under the roots that were signed or committed to, has its referee
    compute, and tells the court. It holds nothing. Whether the game is in the state that it is told,
    and the sender at turn, is checked by the court.
@dev The openings are one run of bytes: per source and leaf, in the order in which the step names
    them, the leaf and its path upwards. Sizes and lengths follow from the program; what does not
    fit reverts.
"""
import dispute
import fixed
import openings
import steps


interface Court:
    def cut(
        state: dispute.State,
        mover: address,
        stop: uint256,
        parts: DynArray[int256, dispute.MAX_TOTALS],
    ): nonpayable
    def rule(state: dispute.State, mover: address, right: bool): nonpayable


interface Referee:
    def length(
        kind: uint256, p: DynArray[int256, steps.SHORT], c: steps.Context, i: uint256
    ) -> uint256: view
    def fixed_sources(
        kind: uint256, p: DynArray[int256, steps.SHORT], c: steps.Context, i: uint256
    ) -> DynArray[steps.Source, steps.MAX_FIXED]: view
    def terms(
        kind: uint256,
        p: DynArray[int256, steps.SHORT],
        c: steps.Context,
        i: uint256,
        start: uint256,
        stop: uint256,
        values: DynArray[int256, steps.MAX_FIXED],
    ) -> DynArray[steps.Source, 2]: view


# Sets of kinds, a bit each.
ATTENTION: constant(uint256) = (
    (1 << steps.ATTENDED)
    | (1 << steps.DIVISOR)
    | (1 << steps.LARGEST)
    | (1 << steps.MIXED)
    | (1 << steps.PROBABILITY)
    | (1 << steps.ROTATION)
    | (1 << steps.SCORE)
    | (1 << steps.TURN)
    | (1 << steps.VALUE_EXPONENT)
    | (1 << steps.WEIGHT)
)
CHOICE: constant(uint256) = (
    (1 << steps.ADJUST)
    | (1 << steps.CHOSEN)
    | (1 << steps.COUNT)
    | (1 << steps.DISTANCE)
    | (1 << steps.LIKELIHOOD)
    | (1 << steps.MASS)
    | (1 << steps.NOISY)
    | (1 << steps.NUCLEUS)
    | (1 << steps.RANK)
    | (1 << steps.TOP_K)
    | (1 << steps.WINNER)
)
LONG: constant(uint256) = (1 << steps.PRODUCT) | (1 << steps.LOGIT) | (1 << steps.SCORE)
FEW: constant(uint256) = (
    (1 << steps.SHIFT)
    | (1 << steps.NORM_INVERSE)
    | (1 << steps.LARGEST)
    | (1 << steps.DIVISOR)
    | (1 << steps.TOP_K)
    | (1 << steps.MASS)
    | (1 << steps.NUCLEUS)
    | (1 << steps.WINNER)
)
MAXIMUM: constant(uint256) = (
    (1 << steps.SHIFT)
    | (1 << steps.LARGEST)
    | (1 << steps.VALUE_EXPONENT)
    | (1 << steps.WINNER)
)

BIASES: constant(uint256) = 6  # a space of this contract's own: the request's logit biases
TILE: constant(uint256) = 640
VECTOR_TILE: constant(uint256) = 64
GROUP: constant(uint256) = 32
Q16: constant(int256) = 65536

# keccak256 of the error "wrong": what referees say to numbers that no honest trace has.
WRONG: constant(bytes32) = 0xb354ea9f33e1825fb8daa09386a0fd24b2fde7bf1db74fc523adda692579bcdf
FINISH: constant(Bytes[4]) = method_id(
    "finish(uint256,int256[],(uint256,uint256,uint256,uint256,uint256,int256,int256,int256,int256,int256,int256,int256,int256,int256),uint256,int256,int256[],int256[])"
)
PARTIAL: constant(Bytes[4]) = method_id(
    "partial(uint256,int256[],(uint256,uint256,uint256,uint256,uint256,int256,int256,int256,int256,int256,int256,int256,int256,int256),uint256,int256,uint256,uint256,int256[],bytes)"
)

# Forms of leaves.
TREE: constant(uint256) = 0  # integers, in a tree of fixed shape
MATRIX: constant(uint256) = 1  # weights, then multipliers
VECTOR: constant(uint256) = 2
TOKEN_HASH: constant(uint256) = 3  # a row that is a token: its hash is in the tree of rows


struct Shape:
    root: bytes32
    form: uint256
    size: uint256  # elements: of the tensor, or of a row of weights
    width: uint256  # bytes of an element
    each: uint256  # elements of a full leaf
    place: uint256  # of the first leaf
    last: uint256  # of all leaves
    depth: uint256


court: public(immutable(address))
rows: public(immutable(address))
attention: public(immutable(address))
choice: public(immutable(address))


@deploy
def __init__(of_court: address, of_rows: address, of_attention: address, of_choice: address):
    """
    @param of_court Where the court will be, which asserts it
    """
    assert of_rows.is_contract and of_attention.is_contract and of_choice.is_contract, "no referee"
    court = of_court
    rows = of_rows
    attention = of_attention
    choice = of_choice


@external
def prove(
    state: dispute.State,
    facts: dispute.Facts,
    sampling: dispute.Sampling,
    tensor: dispute.Tensor,
    inputs: DynArray[uint256, dispute.MAX_INPUTS],
    p: DynArray[int256, steps.SHORT],
    parts: DynArray[int256, dispute.MAX_TOTALS],
    data: Bytes[dispute.MAX_DATA],
):
    """
    @notice The defender's last move, which decides; or with parts, whose totals are joined, the one
        before it, in which a sum or maximum of too many terms is cut
    @param data The openings. Nothing of them is copied but what is hashed: that is why all is in
        one function
    """
    self._check(state, facts, tensor, inputs, p)
    kind: uint256 = tensor.kind
    i: uint256 = state.element
    referee: Referee = Referee(self._referee(kind))
    c: steps.Context = self._context(state, facts, sampling, kind)
    start: uint256 = state.start
    stop: uint256 = state.stop
    sources: DynArray[steps.Source, steps.MAX_FIXED] = []
    # a part of a dot product follows from its terms alone
    if state.totals == 0 or (len(parts) == 0 and (LONG >> kind) & 1 == 0):
        sources = staticcall referee.fixed_sources(kind, p, c, i)
        if kind == steps.ADJUST and sampling.bias != empty(bytes32):
            sources.append(
                steps.Source(
                    space=BIASES, tensor=0, stage=0, position=0, row=0, start=i, stop=i + 1
                )
            )
    values: DynArray[int256, steps.MAX_FIXED] = []
    terms: Bytes[steps.MAX_TERMS] = b""
    at: uint256 = 0
    for are_terms: bool in [False, True]:
        if are_terms:
            if stop == 0:
                stop = staticcall referee.length(kind, p, c, i)
            if stop == 0 or len(parts) != 0:
                break
            assert stop - start <= self._chunk(kind), "to be split"
            sources = []
            named: DynArray[steps.Source, 2] = staticcall referee.terms(
                kind, p, c, i, start, stop, values
            )
            for source: steps.Source in named:
                sources.append(source)
        for source: steps.Source in sources:
            shape: Shape = self._shape(state, facts, c, sampling.bias, tensor, inputs, source)
            part: Bytes[256] = b""
            number: uint256 = source.start // shape.each
            for k: uint256 in range(2):
                first: uint256 = number * shape.each
                end: uint256 = min(shape.size, first + shape.each)
                size: uint256 = shape.width * (end - first)
                if shape.form == MATRIX:
                    size += 2 * ((end - first) // GROUP)
                leaf: Bytes[openings.MAX_LEAF] = convert(
                    slice(data, at, size), Bytes[openings.MAX_LEAF]
                )
                at += size
                node: bytes32 = sha256(concat(b"\x00", leaf))
                if shape.form == TOKEN_HASH:
                    node = sha256(concat(b"\x00", node))
                place: uint256 = shape.place + number
                last: uint256 = shape.last
                for level: uint256 in range(shape.depth, bound=openings.MAX_DEPTH):
                    if place & 1 == 1:
                        node = sha256(concat(b"\x01", extract32(data, at), node))
                        at = unsafe_add(at, 32)
                    elif place != last:
                        node = sha256(concat(b"\x01", node, extract32(data, at)))
                        at = unsafe_add(at, 32)
                    place = place >> 1
                    last = last >> 1
                if shape.form == TOKEN_HASH:
                    node = openings.sealed("rows/3", facts.positions, node)
                elif shape.form != TREE:
                    node = openings.sealed("tensor/1", tensor.weight_tiles, node)
                assert node == shape.root, "not what was committed to"
                lower: uint256 = max(source.start, first)
                upper: uint256 = min(source.stop, end)
                piece: Bytes[256] = convert(
                    slice(leaf, shape.width * (lower - first), shape.width * (upper - lower)),
                    Bytes[256],
                )
                part = convert(concat(part, piece), Bytes[256])
                if shape.form == MATRIX:
                    assert upper == source.stop, "too much for one step"
                    group: uint256 = (lower - first) // GROUP
                    groups: uint256 = (upper - first - 1) // GROUP + 1 - group
                    piece = convert(
                        slice(leaf, (end - first) + 2 * group, 2 * groups), Bytes[256]
                    )
                    part = convert(concat(part, piece), Bytes[256])
                if source.stop <= end:
                    break
                assert k == 0, "too much for one step"
                number += 1
            if are_terms:
                terms = convert(concat(terms, part), Bytes[steps.MAX_TERMS])
            else:
                word: uint256 = extract32(
                    concat(part, empty(bytes32)), 0, output_type=uint256
                )
                x: int256 = fixed.signed(fixed.swapped(word, shape.width), 0, shape.width)
                if source.space == BIASES:
                    c.bias = x
                else:
                    values.append(x)
    assert at == len(data), "more was opened than is needed"
    right: bool = True
    total: DynArray[int256, steps.MAX_TOTAL] = []
    answer: Bytes[256] = b""
    if len(parts) != 0:
        total = self._combined(kind, start, stop, parts)
    elif stop != 0:
        right, answer = raw_call(
            referee.address,
            abi_encode(
                kind, p, c, i, state.asserted, start, stop, values, terms, method_id=PARTIAL
            ),
            max_outsize=256,
            is_static_call=True,
            revert_on_failure=False,
        )
        if right:
            total = abi_decode(answer, DynArray[int256, steps.MAX_TOTAL])
        else:
            self._check_wrong(answer)
    if right and state.totals != 0:
        for k: uint256 in range(state.totals, bound=steps.MAX_TOTAL):
            right = right and total[k] == state.total[k]
    elif right:
        right, answer = raw_call(
            referee.address,
            abi_encode(kind, p, c, i, state.asserted, total, values, method_id=FINISH),
            max_outsize=256,
            is_static_call=True,
            revert_on_failure=False,
        )
        if right:
            right = convert(extract32(answer, 0), int256) == state.asserted
        else:
            self._check_wrong(answer)
    if right and len(parts) != 0:
        extcall Court(court).cut(state, msg.sender, stop, parts)
    else:
        extcall Court(court).rule(state, msg.sender, right)


@external
def prove_rotation(
    state: dispute.State,
    facts: dispute.Facts,
    tensor: dispute.Tensor,
    p: DynArray[int256, steps.MAX_PARAMS],
):
    """
    @notice The same of a rotation's angle, which nothing has to be opened for
    """
    assert state.phase == dispute.PROVE and tensor.kind == steps.ROTATION, "another phase or kind"
    assert keccak256(abi_encode(facts)) == state.facts, "other facts"
    assert tensor.inputs == 0, "another number of inputs"
    assert keccak256(dispute.words(tensor, [], p)) == state.tensor, "another tensor"
    c: steps.Context = self._context(state, facts, empty(dispute.Sampling), tensor.kind)
    total: DynArray[int256, steps.MAX_TOTAL] = []
    values: DynArray[int256, steps.MAX_FIXED] = []
    answer: Bytes[32] = raw_call(
        attention,
        abi_encode(
            tensor.kind, p, c, state.element, state.asserted, total, values, method_id=FINISH
        ),
        max_outsize=32,
        is_static_call=True,
    )
    right: bool = convert(extract32(answer, 0), int256) == state.asserted
    extcall Court(court).rule(state, msg.sender, right)


@external
def prove_boundary(
    state: dispute.State,
    facts: dispute.Facts,
    tensor: dispute.Tensor,
    inputs: DynArray[uint256, dispute.MAX_INPUTS],
    p: DynArray[int256, steps.SHORT],
    data: Bytes[dispute.MAX_DATA],
):
    """
    @notice The same where a row of the grid is compared with the one that was signed at the hop's
        entry or exit. What is signed of a row is the root over its elements, under which the grid
        has it: no element is opened, however many there are.
    @param data The row's root and the path to what was committed to; the signed hash and its path
    """
    self._check(state, facts, tensor, inputs, p)
    assert tensor.kind == steps.BOUNDARY, "another kind of step"
    place: uint256 = convert(p[0], uint256)
    depth: uint256 = openings.depth_of(state.tensors)
    committed: bytes32 = state.trace
    if p[1] != 0:
        committed = state.grid
        if state.stage == 1:
            place = 0
        place, depth = self._grid_place(facts, state.stage - 1, state.position, place)
    root: bytes32 = extract32(data, 0)
    node: bytes32 = empty(bytes32)
    at: uint256 = 0
    node, at = openings.climb(data, 32, root, place, (1 << depth) - 1, depth)
    assert node == committed, "not what was committed to"
    signed: bytes32 = facts.rows_in
    if p[2] != 0:
        signed = facts.rows_out
    hash: bytes32 = extract32(data, at)
    node, at = openings.climb(
        data,
        at + 32,
        sha256(concat(b"\x00", hash)),
        state.position,
        facts.positions - 1,
        openings.depth_of(facts.positions),
    )
    assert openings.sealed("rows/3", facts.positions, node) == signed, "not what was signed"
    assert at == len(data), "more was opened than is needed"
    extcall Court(court).rule(state, msg.sender, state.asserted == 1 and root == hash)


@internal
@pure
def _check(
    s: dispute.State,
    facts: dispute.Facts,
    tensor: dispute.Tensor,
    inputs: DynArray[uint256, dispute.MAX_INPUTS],
    p: DynArray[int256, steps.SHORT],
):
    assert s.phase == dispute.PROVE, "another phase"
    assert keccak256(abi_encode(facts)) == s.facts, "other facts"
    # else words could be moved between inputs and parameters, and the hash would be the same
    assert tensor.inputs == len(inputs), "another number of inputs"
    assert keccak256(dispute.short_words(tensor, inputs, p)) == s.tensor, "another tensor"


@internal
@pure
def _check_wrong(answer: Bytes[256]):
    """
    @notice An assertion is false if its referee says so; a call that failed for want of gas, or
        because it was malformed, says nothing
    """
    assert keccak256(answer) == WRONG, "no answer of the referee"


@internal
@pure
def _shape(
    s: dispute.State,
    facts: dispute.Facts,
    c: steps.Context,
    biases: bytes32,
    tensor: dispute.Tensor,
    inputs: DynArray[uint256, dispute.MAX_INPUTS],
    source: steps.Source,
) -> Shape:
    """
    @return In which leaves of which tree a source's elements are
    """
    assert source.start < source.stop, "an empty source"
    shape: Shape = empty(Shape)
    if source.space == steps.WEIGHTS:
        shape.root = tensor.weight_root
        shape.size = tensor.weight_columns
        shape.form = MATRIX
        shape.width = 1
        shape.each = TILE
        if tensor.weight_rows == 0:
            shape.form = VECTOR
            shape.width = 4
            shape.each = VECTOR_TILE
        assert source.row < max(tensor.weight_rows, 1), "wrong"
        assert source.stop <= shape.size, "beyond the row"
        shape.place = source.row * ((shape.size + shape.each - 1) // shape.each)
        shape.last = tensor.weight_tiles - 1
        shape.depth = openings.depth_of(tensor.weight_tiles)
        return shape
    if source.space == steps.INPUT:
        return Shape(
            root=facts.rows_in,
            form=TOKEN_HASH,
            size=1,
            width=4,
            each=1,
            place=source.position,
            last=facts.positions - 1,
            depth=openings.depth_of(facts.positions),
        )
    shape.width = 8
    if source.space == steps.TRACE:
        shape.root = s.trace
        shape.place = source.tensor
        shape.depth = openings.depth_of(s.tensors)
        for packed: uint256 in inputs:
            if packed & 65535 == source.tensor:
                shape.width = (packed >> 16) & 65535
                shape.size = ((packed >> 32) & 4294967295) + (packed >> 64) * (
                    c.position + 1 - c.seen_start
                )
                break
    elif source.space == steps.GRID:
        shape.root = s.grid
        shape.place, shape.depth = self._grid_place(
            facts, source.stage, source.position, source.tensor
        )
        shape.size = facts.kv_heads
        if source.stage == 0 or source.tensor == 4:
            shape.size = facts.hidden
        elif source.tensor & 1 == 0:
            shape.size = facts.kv_heads * facts.head_size
            shape.width = 2
    elif source.space == steps.TOKENS:
        shape.root = facts.sequence
        shape.size = facts.positions + 1
        shape.width = 4
    elif source.space == BIASES:
        shape.root = biases
        shape.size = facts.vocabulary
        shape.width = 4
    else:
        raise "an unknown space"
    assert source.stop <= shape.size, "beyond the tensor"
    shape.each = openings.BLOCK // shape.width
    below: uint256 = openings.depth_of((shape.size + shape.each - 1) // shape.each)
    shape.place = shape.place << below
    shape.depth += below
    shape.last = (1 << shape.depth) - 1
    return shape


@internal
@pure
def _grid_place(
    facts: dispute.Facts, stage: uint256, position: uint256, kept: uint256
) -> (uint256, uint256):
    """
    @notice Where the root of a kept tensor is in the grid: its place, and how deep it lies
    """
    stages: uint256 = facts.layer_stop - facts.layer_start + 2
    assert stage < stages and position < facts.positions, "no such cell"
    below: uint256 = 3
    if stage == 0 or stage == stages - 1:
        below = 0
        assert kept == 0, "no such tensor"
    assert kept < 5, "no such tensor"
    bits: uint256 = openings.depth_of(facts.positions)
    place: uint256 = (((stage << bits) | position) << below) | kept
    return place, openings.depth_of(stages) + bits + below


@internal
@pure
def _context(
    s: dispute.State, facts: dispute.Facts, sampling: dispute.Sampling, kind: uint256
) -> steps.Context:
    if (CHOICE >> kind) & 1 == 1:
        assert keccak256(abi_encode(sampling)) == facts.sampling, "another sampling than signed"
    return steps.Context(
        stage=s.stage,
        position=s.position,
        prompt=facts.prompt,
        positions=facts.positions,
        seen_start=s.seen_start,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        bias=0,
    )


@internal
@pure
def _variant(
    stage: uint256, position: uint256, facts: dispute.Facts, sampling: dispute.Sampling
) -> uint256:
    """
    @return Which program the cell in dispute has
    """
    if stage == 0:
        if facts.layer_start == 0:
            return 1 << 16
        return 1 << 16 | 1
    if stage != facts.layer_stop - facts.layer_start + 1:
        return facts.layer_start + stage - 1
    if facts.layer_stop != facts.layers or position + 1 < facts.prompt:
        return 1 << 17
    bits: uint256 = 0
    if (
        sampling.repetition_penalty != Q16
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
    ):
        bits = 1
    if sampling.temperature != 0:
        bits |= 2
        if 0 < sampling.top_k and sampling.top_k < convert(facts.vocabulary, int256):
            bits |= 4
        if sampling.top_p < Q16:
            bits |= 8
    return 1 << 18 | bits


@internal
@view
def _referee(kind: uint256) -> address:
    if (ATTENTION >> kind) & 1 == 1:
        return attention
    if (CHOICE >> kind) & 1 == 1:
        return choice
    return rows


@internal
@pure
def _chunk(kind: uint256) -> uint256:
    """
    @return Terms that one step sums
    """
    if (LONG >> kind) & 1 == 1:
        return 128
    if (FEW >> kind) & 1 == 1:
        return 32
    if kind == steps.COUNT:
        return 64
    return 1


@internal
@pure
def _combined(
    kind: uint256, start: uint256, stop: uint256, parts: DynArray[int256, dispute.MAX_TOTALS]
) -> DynArray[int256, steps.MAX_TOTAL]:
    """
    @notice The whole of the parts into which terms `start:stop` are split
    """
    each: uint256 = 1
    if kind == steps.TOP_K:
        each = 2
    elif kind == steps.NUCLEUS:
        each = 5
    size: uint256 = self._part_size(kind, stop - start)
    count: uint256 = (stop - start + size - 1) // size
    assert len(parts) == count * each, "another number of parts"
    whole: DynArray[int256, steps.MAX_TOTAL] = []
    for k: uint256 in range(each, bound=steps.MAX_TOTAL):
        joined: int256 = parts[k]
        for i: uint256 in range(1, count, bound=dispute.MAX_PARTS):
            x: int256 = parts[i * each + k]
            if (MAXIMUM >> kind) & 1 == 0:
                joined += x
            elif x > joined:
                joined = x
        whole.append(joined)
    return whole


@internal
@pure
def _part_size(kind: uint256, length: uint256) -> uint256:
    size: uint256 = self._chunk(kind)
    assert length > size, "nothing to split"
    for i: uint256 in range(16):
        if size * dispute.MAX_PARTS >= length:
            break
        size = size * dispute.MAX_PARTS
    return size


@external
@view
def variant(
    facts: dispute.Facts,
    sampling: dispute.Sampling,
    stage: uint256,
    position: uint256,
    header: DynArray[uint256, dispute.MAX_HEADER],
    place: uint256,
    proof: DynArray[bytes32, openings.MAX_DEPTH],
) -> uint256:
    """
    @param header 0, variant, window, number of tensors, the places of kept ones
    @return Which program the cell has, if these words are its header
    """
    assert keccak256(abi_encode(sampling)) == facts.sampling, "another sampling than signed"
    words: Bytes[64 + 32 * dispute.MAX_HEADER] = abi_encode(header)
    leaf: bytes32 = sha256(concat(b"\x00", slice(words, 64, 32 * len(header))))
    assert openings.top(leaf, place, proof) == facts.program, "not of the program"
    expected: uint256 = self._variant(stage, position, facts, sampling)
    assert header[0] == 0 and header[1] == expected, "another cell's program"
    return expected


@external
@view
def part(kind: uint256, start: uint256, stop: uint256, index: uint256) -> (uint256, uint256):
    """
    @return First term of a part, and the one behind its last
    """
    size: uint256 = self._part_size(kind, stop - start)
    first: uint256 = start + index * size
    assert first < stop, "no such part"
    return first, min(stop, first + size)
