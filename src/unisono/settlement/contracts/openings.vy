# pragma version ~=0.4.3
"""
@title Leaves and their paths
@license Apache-2.0
@notice SHA-256 as in `unisono.merkle`: a leaf is hashed behind a byte 0, two nodes behind a byte 1.
    A tree of fixed shape (`fraud/tree.py`) has a sibling at every level; where a sealed tree
    (RFC 9162) ends, a node may have none.
"""
import dispute

MAX_LEAF: constant(uint256) = 704
MAX_DEPTH: constant(uint256) = 64
BLOCK: constant(uint256) = 256  # bytes of a full leaf of a tensor
EMPTY: constant(bytes32) = empty(bytes32)


@internal
@pure
def depth_of(count: uint256) -> uint256:
    """
    @notice Levels above the leaves of a tree of fixed shape over 1 to 2**32 leaves
    """
    depth: uint256 = 0
    rest: uint256 = unsafe_sub(count, 1)
    # a loop would cost five times as much, and this is asked often
    if rest >> 16 != 0:
        rest = rest >> 16
        depth = 16
    if rest >> 8 != 0:
        rest = rest >> 8
        depth = depth | 8
    if rest >> 4 != 0:
        rest = rest >> 4
        depth = depth | 4
    if rest >> 2 != 0:
        rest = rest >> 2
        depth = depth | 2
    if rest >> 1 != 0:
        rest = rest >> 1
        depth = depth | 1
    return unsafe_add(depth, rest)


@internal
@pure
def node_hash(left: bytes32, right: bytes32) -> bytes32:
    return sha256(concat(b"\x01", left, right))


@internal
@pure
def top(hash: bytes32, place: uint256, path: DynArray[bytes32, MAX_DEPTH]) -> bytes32:
    """
    @notice The top of a tree of fixed shape that a node at a place, as deep as the path is long,
        leads to
    """
    node: bytes32 = hash
    index: uint256 = place
    for sibling: bytes32 in path:
        if index & 1 == 0:
            node = sha256(concat(b"\x01", node, sibling))
        else:
            node = sha256(concat(b"\x01", sibling, node))
        index = index >> 1
    assert index == 0, "no such place"
    return node


@internal
@pure
def folded(nodes: DynArray[bytes32, 16]) -> bytes32:
    """
    @notice The root of a tree of fixed shape; missing leaves are zero bytes
    """
    level: DynArray[bytes32, 16] = nodes
    for depth: uint256 in range(4):
        count: uint256 = len(level)
        if count == 1:
            break
        above: DynArray[bytes32, 16] = []
        for half: uint256 in range(8):
            i: uint256 = 2 * half
            if i >= count:
                break
            right: bytes32 = EMPTY
            if i + 1 < count:
                right = level[i + 1]
            elif depth != 0:
                right = self.empty_root(depth)
            above.append(self.node_hash(level[i], right))
        level = above
    return level[0]


@internal
@pure
def empty_root(depth: uint256) -> bytes32:
    """
    @notice The root of a tree of fixed shape that has no leaf
    """
    node: bytes32 = EMPTY
    for i: uint256 in range(depth, bound=MAX_DEPTH):
        node = self.node_hash(node, node)
    return node


@internal
@pure
def climb(
    data: Bytes[dispute.MAX_DATA],
    at: uint256,
    hash: bytes32,
    place: uint256,
    last: uint256,
    depth: uint256,
) -> (bytes32, uint256):
    """
    @notice The top that a node leads to, the siblings read from `data`
    @param last The last place of the tree at this depth
    @return The top, and where in `data` the path ends
    """
    node: bytes32 = hash
    index: uint256 = place
    end: uint256 = last
    cursor: uint256 = at
    for i: uint256 in range(depth, bound=MAX_DEPTH):
        if index & 1 == 1:
            node = sha256(concat(b"\x01", extract32(data, cursor), node))
            cursor = unsafe_add(cursor, 32)
        elif index != end:
            node = sha256(concat(b"\x01", node, extract32(data, cursor)))
            cursor = unsafe_add(cursor, 32)
        index = index >> 1
        end = end >> 1
    return node, cursor


@internal
@pure
def sealed(domain: String[32], count: uint256, node: bytes32) -> bytes32:
    """
    @notice `unisono.merkle.seal`: the root of a tree of `count` leaves with this top
    """
    return sha256(
        concat(
            convert(concat("unisono/", domain), Bytes[40]),
            b"\x00",
            x"0800000000000000",
            self.little(count),
            x"2000000000000000",
            node,
        )
    )


@internal
@pure
def little(count: uint256) -> bytes8:
    """
    @notice A number as 8 bytes, the lowest first
    """
    word: uint256 = 0
    for i: uint256 in range(8):
        word = (word << 8) | ((count >> (8 * i)) & 255)
    return convert(convert(word << 192, bytes32), bytes8)
