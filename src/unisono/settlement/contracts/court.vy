# pragma version ==0.4.3
# pragma evm-version cancun
# pragma nonreentrancy on
# pragma optimize codesize
"""
@title The court: disputes about signed claims
@license Apache-2.0
@notice A challenger contradicts a claim that a node signed, and both narrow it down to one step
    (`verification/fraud`), which the judge computes. The defender shows, the challenger chooses;
    whoever does not move in time has lost. Moves that do not fit revert and change nothing. There
    is no owner: judge, registry, amounts and times are fixed for ever.
@dev Of a game only the hash of its state is stored. Every move brings the state along, and logs the
    next one with what it showed.
"""
from ethereum.ercs import IERC20
import dispute
import openings
import purse
import steps

initializes: purse


# A registry's record of a node.
struct Node:
    stake: uint256
    leaving: uint256
    ready: uint256
    locked: uint256
    signature_r: bytes32
    signature_s: bytes32


interface Registry:
    def record(node: bytes32, operator: address) -> Node: view
    def lock(node: bytes32, operator: address, amount: uint256) -> uint256: nonpayable
    def unlock(node: bytes32, operator: address, amount: uint256): nonpayable
    def slash(
        node: bytes32,
        operator: address,
        amount: uint256,
        challenger: address,
        to_challenger: uint256,
        payer: address,
        to_payer: uint256,
    ): nonpayable
    def is_judge(court: address) -> bool: view
    def unbond_seconds() -> uint256: view
    def token() -> address: view


interface Judge:
    def court() -> address: view
    def variant(
        facts: dispute.Facts,
        sampling: dispute.Sampling,
        stage: uint256,
        position: uint256,
        header: DynArray[uint256, dispute.MAX_HEADER],
        place: uint256,
        proof: DynArray[bytes32, openings.MAX_DEPTH],
    ) -> uint256: view
    def part(kind: uint256, start: uint256, stop: uint256, index: uint256) -> (uint256, uint256): view


# What a node signs (EIP-712) beside its ed25519 claim, with the key that is registered for it.
struct Claim:
    node: bytes32
    session: bytes32
    request: bytes32
    model: bytes32
    program: bytes32
    layer_start: uint256
    layer_stop: uint256
    prompt: uint256
    positions: uint256
    rows_in: bytes32
    rows_out: bytes32
    sequence: bytes32
    sampling: bytes32
    epoch: uint256
    payer: address


struct Rules:
    bond: uint256  # of a claim's first open game; the n-th costs n times as much
    games: uint256  # open about one claim, beyond which bonds grow with the square of their number
    penalty: uint256  # of the stake
    move_seconds: uint256
    epoch_seconds: uint256  # of the network: claims name their epoch
    claim_seconds: uint256  # after its epoch in which a claim can be challenged
    to_challenger: uint256  # of the penalty, in 1 / 10,000
    to_payer: uint256
    to_defender: uint256  # of the bond of a false challenge; the rest is burned


struct Dossier:
    games: uint256  # that are open
    locked: uint256  # of the stake
    convicted: bool
    first: address  # the challenger who began when no game was open, until it loses


# Claims of one record whose lock is short of the penalty, because other disputes hold the rest.
struct Queue:
    claims: uint256
    coins: uint256  # locked for them when those disputes ended


event Opened:
    game: indexed(bytes32)
    claim: indexed(bytes32)
    defender: indexed(address)
    signed: Claim
    state: dispute.State

event Moved:
    game: indexed(bytes32)
    state: dispute.State
    shown: Bytes[3072]

event Decided:
    game: indexed(bytes32)
    challenger_lost: bool

event Settled:
    game: indexed(bytes32)
    loser: indexed(address)
    amount: uint256  # the penalty, or the bond

event Equivocated:
    node: indexed(bytes32)
    operator: indexed(address)
    reporter: indexed(address)
    amount: uint256

event Credited:
    owner: indexed(address)
    amount: uint256

event Collected:
    owner: indexed(address)
    amount: uint256

# Trees that are descended.
GRID: constant(uint256) = 0
TRACE: constant(uint256) = 1
TENSOR: constant(uint256) = 2

LEVELS: constant(uint256) = 4  # that one move shows
MAX_POSITIONS: constant(uint256) = 2**24
MAX_LAYERS: constant(uint256) = 2**15
WHOLE: constant(uint256) = 10000
OVER: constant(bytes32) = 0x0000000000000000000000000000000000000000000000000000000000000001
BURN: constant(address) = 0x000000000000000000000000000000000000dEaD

DOMAIN_TYPE: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
NAME: constant(bytes32) = keccak256("Unisono court")
VERSION: constant(bytes32) = keccak256("1")
CLAIM_TYPE: constant(bytes32) = keccak256(
    "Claim(bytes32 node,bytes32 session,bytes32 request,bytes32 model,bytes32 program,uint32 layerStart,uint32 layerStop,uint32 prompt,uint32 positions,bytes32 rowsIn,bytes32 rowsOut,bytes32 sequence,bytes32 sampling,uint64 epoch,address payer)"
)
HALF_ORDER: constant(uint256) = (
    57896044618658097711785492504343953926418782139537452191302581570759080747168
)

registry: public(immutable(address))
judge: public(immutable(address))
rules: public(immutable(Rules))
games: public(HashMap[bytes32, bytes32])
dossiers: public(HashMap[bytes32, Dossier])
queues: public(HashMap[bytes32, HashMap[address, Queue]])
reported: public(HashMap[bytes32, bool])
credit: public(HashMap[address, uint256])


@deploy
def __init__(of_registry: address, of_judge: address, of_rules: Rules):
    purse.__init__(IERC20(staticcall Registry(of_registry).token()))
    assert staticcall Registry(of_registry).is_judge(self), "not this registry's court"
    assert staticcall Judge(of_judge).court() == self, "not this court's judge"
    assert of_rules.bond != 0 and of_rules.games != 0 and of_rules.penalty != 0, "a rule is 0"
    assert of_rules.move_seconds != 0 and of_rules.epoch_seconds != 0, "no time for moves"
    assert of_rules.to_challenger + of_rules.to_payer <= WHOLE, "shares above the whole"
    assert of_rules.to_defender <= WHOLE, "shares above the whole"
    assert (
        of_rules.claim_seconds + 2 * of_rules.epoch_seconds < staticcall Registry(of_registry).unbond_seconds()
    ), "stakes could leave before the claims that they answer for"
    registry = of_registry
    judge = of_judge
    rules = of_rules


# Opening


@external
def open(
    claim: Claim,
    signature: Bytes[65],
    model: uint256[5],
    place: uint256,
    path: DynArray[bytes32, openings.MAX_DEPTH],
) -> bytes32:
    """
    @notice Contradict a claim. The sender pays the bond, and gets it back unless it loses.
    @param model Layers, hidden size, key/value heads, head size and vocabulary
    @param place Of the model's leaf in its program, with its path
    @return The game
    """
    digest: bytes32 = self._digest(claim)
    defender: address = self._signer(digest, signature)
    assert claim.payer != empty(address), "a claim without a payer"
    assert 0 < claim.positions and claim.positions <= MAX_POSITIONS, "the claim's positions"
    assert 0 < claim.prompt and claim.prompt <= claim.positions, "the claim's prompt"
    assert claim.layer_start < claim.layer_stop and claim.layer_stop <= model[0], "the claim's layers"
    assert model[0] <= MAX_LAYERS, "the claim's layers"
    assert claim.epoch <= block.timestamp // rules.epoch_seconds + 1, "a claim of the future"
    assert block.timestamp <= (claim.epoch + 1) * rules.epoch_seconds + rules.claim_seconds, "too late"
    leaf: bytes32 = sha256(
        concat(b"\x00", abi_encode(convert(3, uint256), model))
    )
    assert openings.top(leaf, place, path) == claim.program, "no model of the program"

    key: bytes32 = self._dispute(digest, defender)
    game: bytes32 = self._game(digest, defender, msg.sender)
    assert self.games[game] == empty(bytes32), "challenged already"
    dossier: Dossier = self.dossiers[key]
    assert not dossier.convicted, "convicted already"
    if dossier.games == 0:
        dossier.first = msg.sender
        dossier.locked = self._lock(claim.node, defender, rules.penalty)
        if dossier.locked < rules.penalty:
            self.queues[claim.node][defender].claims += 1
    dossier.games += 1
    self.dossiers[key] = dossier

    s: dispute.State = empty(dispute.State)
    s.claim = digest
    s.facts = keccak256(
        abi_encode(
            dispute.Facts(
                program=claim.program,
                rows_in=claim.rows_in,
                rows_out=claim.rows_out,
                sequence=claim.sequence,
                sampling=claim.sampling,
                layer_start=claim.layer_start,
                layer_stop=claim.layer_stop,
                layers=model[0],
                prompt=claim.prompt,
                positions=claim.positions,
                hidden=model[1],
                kv_heads=model[2],
                head_size=model[3],
                vocabulary=model[4],
            )
        )
    )
    s.challenger = msg.sender
    s.defender = defender
    # nobody is kept out: to raise the n-th bond costs a crowd the square of n, or its cube
    s.bond = rules.bond * dossier.games * max(dossier.games, rules.games) // rules.games
    s.stages = claim.layer_stop - claim.layer_start + 2
    s.positions = claim.positions
    s.deadline = block.timestamp + rules.move_seconds
    self.games[game] = keccak256(abi_encode(s))
    purse._take(msg.sender, s.bond)
    log Opened(game=game, claim=digest, defender=defender, signed=claim, state=s)
    return game


# Moves


@external
def commit(state: dispute.State, root: bytes32):
    """
    @notice The defender commits to its grid.
    """
    s: dispute.State = self._entered(state, dispute.COMMIT, msg.sender)
    s.grid = root
    s.node = root
    s.tree = GRID
    s.target = openings.depth_of(s.stages) + openings.depth_of(s.positions)
    self._descend(s, b"")


@external
def reveal(state: dispute.State, hashes: DynArray[bytes32, 16]):
    """
    @notice The defender shows the nodes up to four levels below the node in dispute.
    """
    s: dispute.State = self._entered(state, dispute.REVEAL, msg.sender)
    assert len(hashes) == 1 << s.shown, "another number of hashes"
    assert openings.folded(hashes) == s.node, "not below the node"
    depth: uint256 = s.depth + s.shown
    gap: bytes32 = openings.empty_root(s.target - depth)
    first: uint256 = s.index << s.shown
    for i: uint256 in range(16):
        if i == len(hashes):
            break
        # else a tree could differ from the true one where there is nothing to be chosen
        assert hashes[i] == gap or self._exists(s, depth, first + i), "a node without leaves"
    s.phase = dispute.CHOOSE
    self._moved(s, abi_encode(hashes))


@external
def choose(state: dispute.State, index: uint256, path: DynArray[bytes32, LEVELS + 1]):
    """
    @notice The challenger says which of the nodes shown it contradicts.
    @param path The node, and its siblings up to the node in dispute
    """
    s: dispute.State = self._chosen(self._entered(state, dispute.CHOOSE, msg.sender), index, path)
    assert s.tree != TRACE or s.depth < s.target, "name the tensor"
    self._descend(s, b"")


@external
def choose_tensor(
    state: dispute.State,
    index: uint256,
    path: DynArray[bytes32, LEVELS + 1],
    facts: dispute.Facts,
    tensor: dispute.Tensor,
    inputs: DynArray[uint256, dispute.MAX_INPUTS],
    p: DynArray[int256, steps.MAX_PARAMS],
    place: uint256,
    proof: DynArray[bytes32, openings.MAX_DEPTH],
    kept: DynArray[bytes32, dispute.MAX_KEPT],
):
    """
    @notice The challenger's choice that reaches a tensor, with its descriptor.
    """
    s: dispute.State = self._chosen(self._entered(state, dispute.CHOOSE, msg.sender), index, path)
    assert s.tree == TRACE and s.depth == s.target, "no tensor is reached"
    assert keccak256(abi_encode(facts)) == s.facts, "other facts"
    assert tensor.tag == 1 and tensor.variant == s.variant and tensor.index == s.index, "another tensor"
    assert tensor.inputs == len(inputs), "another number of inputs"
    words: Bytes[dispute.MAX_DESCRIPTOR] = dispute.words(tensor, inputs, p)
    assert openings.top(sha256(concat(b"\x00", words)), place, proof) == facts.program, "not of the program"
    assert tensor.kind != 0, "a tensor that was received, not computed"
    s.place = s.index
    s.tensor = keccak256(words)
    s.kind = tensor.kind
    s.width = tensor.width
    s.size = tensor.size_a + tensor.size_b * (s.position + 1 - s.seen_start)
    # a kept tensor must be the grid's
    assert keccak256(abi_encode(kept)) == s.kept, "other kept tensors"
    for i: uint256 in range(dispute.MAX_KEPT):
        if i == len(kept):
            break
        if (s.kept_at >> (16 * i)) & 65535 == s.index and kept[i] != s.node:
            self._decide(state, False)
            return
    s.tree = TENSOR
    s.depth = 0
    s.index = 0
    s.target = openings.depth_of(self._blocks(s))
    self._descend(s, b"")


@external
def cell(
    state: dispute.State,
    facts: dispute.Facts,
    sampling: dispute.Sampling,
    header: DynArray[uint256, dispute.MAX_HEADER],
    place: uint256,
    proof: DynArray[bytes32, openings.MAX_DEPTH],
    kept: DynArray[bytes32, dispute.MAX_KEPT],
    trace: bytes32,
):
    """
    @notice The defender shows the kept tensors' roots of the cell in dispute, and commits to its
        trace.
    @param header Of the cell's program: 0, variant, window, number of tensors, the places of kept
        ones
    """
    s: dispute.State = self._entered(state, dispute.CELL, msg.sender)
    assert keccak256(abi_encode(facts)) == s.facts, "other facts"
    assert len(kept) == len(header) - 4, "another number of kept tensors"
    s.variant = staticcall Judge(judge).variant(
        facts, sampling, s.stage, s.position, header, place, proof
    )
    assert openings.folded(kept) == s.node, "not the cell's tensors"
    if header[2] != 0 and s.position + 1 > header[2]:
        s.seen_start = s.position + 1 - header[2]
    s.tensors = header[3]
    s.kept = keccak256(abi_encode(kept))
    for i: uint256 in range(dispute.MAX_KEPT):
        if i == len(kept):
            break
        s.kept_at = s.kept_at | (header[4 + i] << (16 * i))
    s.trace = trace
    s.node = trace
    s.tree = TRACE
    s.depth = 0
    s.index = 0
    s.target = openings.depth_of(s.tensors)
    self._descend(s, abi_encode(kept))


@external
def show(state: dispute.State, payload: Bytes[openings.BLOCK]):
    """
    @notice The defender shows the leaf in dispute.
    """
    s: dispute.State = self._entered(state, dispute.BLOCK, msg.sender)
    assert sha256(concat(b"\x00", payload)) == s.node, "not the leaf"
    each: uint256 = openings.BLOCK // s.width
    assert len(payload) == s.width * min(each, s.size - s.index * each), "another length"
    s.phase = dispute.ELEMENT
    if len(payload) == s.width:
        s = self._asked(s, 0, payload)
    self._moved(s, payload)


@external
def contradict(state: dispute.State, index: uint256, payload: Bytes[openings.BLOCK]):
    """
    @notice The challenger says which element of the leaf is wrong.
    """
    s: dispute.State = self._entered(state, dispute.ELEMENT, msg.sender)
    assert sha256(concat(b"\x00", payload)) == s.node, "not the leaf"
    self._moved(self._asked(s, index, payload), b"")


@external
def cut(
    state: dispute.State,
    mover: address,
    stop: uint256,
    parts: DynArray[int256, dispute.MAX_TOTALS],
):
    """
    @notice The judge says that the defender cut the sum or maximum in dispute, whose terms end at
        `stop`, into parts.
    """
    s: dispute.State = self._ruled(state, mover)
    s.stop = stop
    s.parts = keccak256(abi_encode(parts))
    s.phase = dispute.PART
    self._moved(s, abi_encode(parts))


@external
def rule(state: dispute.State, mover: address, right: bool):
    """
    @notice The judge says whether the defender's last assertion is right.
    """
    self._decide(self._ruled(state, mover), right)


@external
def choose_part(state: dispute.State, index: uint256, parts: DynArray[int256, dispute.MAX_TOTALS]):
    """
    @notice The challenger says which part of the sum is wrong.
    """
    s: dispute.State = self._entered(state, dispute.PART, msg.sender)
    assert keccak256(abi_encode(parts)) == s.parts, "other parts"
    each: uint256 = 1
    if s.kind == steps.TOP_K:
        each = 2
    elif s.kind == steps.NUCLEUS:
        each = 5
    for k: uint256 in range(each, bound=steps.MAX_TOTAL):
        s.total[k] = parts[index * each + k]
    s.totals = each
    s.parts = empty(bytes32)
    s.start, s.stop = staticcall Judge(judge).part(s.kind, s.start, s.stop, index)
    s.phase = dispute.PROVE
    self._moved(s, b"")


# Ends


@external
def settle(state: dispute.State, claim: Claim):
    """
    @notice Pay what a game came to: decided, its deadline over, or its claim convicted elsewhere.
        Anybody may send this.
    """
    game: bytes32 = self._game(state.claim, state.defender, state.challenger)
    assert self.games[game] == keccak256(abi_encode(state)), "another state"
    assert self._digest(claim) == state.claim, "another claim"
    key: bytes32 = self._dispute(state.claim, state.defender)
    dossier: Dossier = self.dossiers[key]
    challenger_lost: bool = state.challenger_lost
    if state.phase != dispute.DECIDED:
        assert dossier.convicted or block.timestamp > state.deadline, "not over"
        challenger_lost = state.phase & 1 == 1
    self.games[game] = OVER
    dossier.games -= 1
    loser: address = state.defender
    amount: uint256 = 0
    if dossier.convicted:
        self._credit(state.challenger, state.bond)
    elif challenger_lost:
        loser = state.challenger
        amount = state.bond
        compensation: uint256 = amount * rules.to_defender // WHOLE
        self._credit(state.defender, compensation)
        self._credit(BURN, amount - compensation)
        if dossier.first == state.challenger:
            dossier.first = empty(address)
        if dossier.games == 0:
            self._free(claim.node, state.defender, dossier.locked)
            dossier.locked = 0
    else:
        self._credit(state.challenger, state.bond)
        amount = self._take(claim.node, state.defender, dossier.locked)
        dossier.convicted = True
        dossier.locked = 0
        # an accomplice to whom the defender gives in must not rob the one who came first
        half: uint256 = 0
        if dossier.first != empty(address) and dossier.first != state.challenger:
            half = amount // 2
            self._slash(claim.node, state.defender, half, dossier.first, claim.payer)
        self._slash(claim.node, state.defender, amount - half, state.challenger, claim.payer)
    self.dossiers[key] = dossier
    log Settled(game=game, loser=loser, amount=amount)


@external
def equivocate(a: Claim, of_a: Bytes[65], b: Claim, of_b: Bytes[65]):
    """
    @notice Two claims of one node about the same part of the same session and epoch that differ:
        that is the proof. The sender gets the challenger's share, the payer of the first claim the payer's.
    """
    digest: bytes32 = self._digest(a)
    operator: address = self._signer(digest, of_a)
    assert self._signer(self._digest(b), of_b) == operator, "two signers"
    assert a.node == b.node and a.session == b.session and a.model == b.model, "two sessions"
    assert a.layer_start == b.layer_start and a.layer_stop == b.layer_stop, "two parts"
    assert a.positions == b.positions, "two parts"
    # a node remembers what it signed in an epoch, and refuses to sign twice in that one alone
    assert a.epoch == b.epoch, "two epochs"
    assert (
        a.rows_in != b.rows_in
        or a.rows_out != b.rows_out
        or a.sequence != b.sequence
        or a.request != b.request
    ), "both claims say the same"
    assert a.payer != empty(address), "a claim without a payer"
    key: bytes32 = keccak256(abi_encode(a.node, operator, a.session))
    assert not self.reported[key], "reported already"
    self.reported[key] = True
    entry: Node = staticcall Registry(registry).record(a.node, operator)
    amount: uint256 = self._lock(a.node, operator, rules.penalty)
    # else a node could get away with what its own sham disputes left free
    assert amount == rules.penalty or entry.locked == 0, "disputes hold the stake: report later"
    self._slash(a.node, operator, amount, msg.sender, a.payer)
    log Equivocated(node=a.node, operator=operator, reporter=msg.sender, amount=amount)


@external
def collect(owner: address) -> uint256:
    """
    @notice Pay an owner's credit to the owner; anybody may send this.
    """
    amount: uint256 = self.credit[owner]
    assert amount != 0, "no credit"
    self.credit[owner] = 0
    purse._give(owner, amount)
    log Collected(owner=owner, amount=amount)
    return amount


# Inside


@internal
@view
def _entered(state: dispute.State, phase: uint256, sender: address) -> dispute.State:
    """
    @notice The state, if it is the game's, this phase, and the sender's turn in time
    """
    assert self.games[self._game(state.claim, state.defender, state.challenger)] == keccak256(abi_encode(state)), "another state"
    assert state.phase == phase, "another phase"
    assert block.timestamp <= state.deadline, "too late"
    mover: address = state.defender
    if phase & 1 == 1:
        mover = state.challenger
    assert sender == mover, "not your move"
    return state


@internal
@view
def _ruled(state: dispute.State, mover: address) -> dispute.State:
    assert msg.sender == judge, "only the judge"
    return self._entered(state, dispute.PROVE, mover)


@internal
def _moved(state: dispute.State, shown: Bytes[3072]):
    s: dispute.State = state
    s.moves += 1
    s.deadline = block.timestamp + rules.move_seconds
    game: bytes32 = self._game(s.claim, s.defender, s.challenger)
    self.games[game] = keccak256(abi_encode(s))
    log Moved(game=game, state=s, shown=shown)


@internal
def _decide(state: dispute.State, challenger_lost: bool):
    s: dispute.State = state
    s.phase = dispute.DECIDED
    s.challenger_lost = challenger_lost
    game: bytes32 = self._game(s.claim, s.defender, s.challenger)
    self.games[game] = keccak256(abi_encode(s))
    log Decided(game=game, challenger_lost=challenger_lost)


@internal
def _descend(state: dispute.State, shown: Bytes[3072]):
    """
    @notice Go on below the node in dispute, or to what comes after the last
    """
    s: dispute.State = state
    s.shown = min(LEVELS, s.target - s.depth)
    s.phase = dispute.REVEAL
    if s.shown == 0:
        if s.tree == GRID:
            bits: uint256 = openings.depth_of(s.positions)
            s.stage = s.index >> bits
            s.position = s.index & ((1 << bits) - 1)
            s.phase = dispute.CELL
        elif s.tree == TRACE:
            s.phase = dispute.CHOOSE  # the program has one tensor
        else:
            s.phase = dispute.BLOCK
    self._moved(s, shown)


@internal
@pure
def _chosen(state: dispute.State, index: uint256, path: DynArray[bytes32, LEVELS + 1]) -> dispute.State:
    s: dispute.State = state
    assert len(path) == s.shown + 1 and index < 1 << s.shown, "another number of hashes"
    node: bytes32 = path[0]
    for k: uint256 in range(LEVELS):
        if k == s.shown:
            break
        if (index >> k) & 1 == 0:
            node = openings.node_hash(node, path[k + 1])
        else:
            node = openings.node_hash(path[k + 1], node)
    assert node == s.node, "not below the node"
    s.depth += s.shown
    s.index = (s.index << s.shown) | index
    assert self._exists(s, s.depth, s.index), "nothing is below that node"
    s.node = path[0]
    return s


@internal
@pure
def _exists(s: dispute.State, depth: uint256, index: uint256) -> bool:
    """
    @return Whether a node of the tree in dispute has a leaf below it
    """
    if s.tree == TRACE:
        return index <= (s.tensors - 1) >> (s.target - depth)
    if s.tree == TENSOR:
        return index <= (self._blocks(s) - 1) >> (s.target - depth)
    top: uint256 = openings.depth_of(s.stages)
    if depth <= top:
        return index <= (s.stages - 1) >> (top - depth)
    within: uint256 = depth - top
    last: uint256 = (s.positions - 1) >> (s.target - depth)
    return index >> within < s.stages and index & ((1 << within) - 1) <= last


@internal
@pure
def _blocks(s: dispute.State) -> uint256:
    each: uint256 = openings.BLOCK // s.width
    return (s.size + each - 1) // each


@internal
@pure
def _asked(state: dispute.State, index: uint256, payload: Bytes[openings.BLOCK]) -> dispute.State:
    """
    @notice The state in which an element of the leaf is in dispute
    """
    s: dispute.State = state
    assert index < len(payload) // s.width, "no such element"
    # little-endian, two's complement
    word: uint256 = extract32(concat(payload, empty(bytes32)), index * s.width, output_type=uint256)
    x: uint256 = 0
    for i: uint256 in range(8):
        if i == s.width:
            break
        x = x | (((word >> (248 - 8 * i)) & 255) << (8 * i))
    bits: uint256 = 8 * s.width
    s.asserted = convert(convert(x << (256 - bits), bytes32), int256) >> (256 - bits)
    s.element = s.index * (openings.BLOCK // s.width) + index
    s.phase = dispute.PROVE
    # what is asked for no more would only cost calldata
    s.node = empty(bytes32)
    s.kept = empty(bytes32)
    s.kept_at = 0
    return s


@internal
@pure
def _dispute(claim: bytes32, defender: address) -> bytes32:
    """
    @notice What a dossier is about: others can sign the same words, and what their games come to
        says nothing of this signer
    """
    return keccak256(abi_encode(claim, defender))


@internal
@pure
def _game(claim: bytes32, defender: address, challenger: address) -> bytes32:
    return keccak256(abi_encode(self._dispute(claim, defender), challenger))


@internal
@view
def _digest(claim: Claim) -> bytes32:
    separator: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, self))
    return keccak256(
        concat(x"1901", separator, keccak256(concat(CLAIM_TYPE, abi_encode(claim))))
    )


@internal
@pure
def _signer(digest: bytes32, signature: Bytes[65]) -> address:
    assert len(signature) == 65, "a signature has 65 bytes"
    r: uint256 = extract32(signature, 0, output_type=uint256)
    s: uint256 = extract32(signature, 32, output_type=uint256)
    v: uint256 = convert(slice(signature, 64, 1), uint256)
    assert s <= HALF_ORDER and (v == 27 or v == 28), "a signature in another form"
    signer: address = ecrecover(digest, v, r, s)
    assert signer != empty(address), "not signed"
    return signer


@internal
def _lock(node: bytes32, operator: address, amount: uint256) -> uint256:
    """
    @return What was locked of the stake: all that is free if that is less than the amount
    """
    entry: Node = staticcall Registry(registry).record(node, operator)
    assert entry.stake + entry.leaving != 0, "nothing at stake"
    if entry.stake + entry.leaving == entry.locked:
        return 0
    return extcall Registry(registry).lock(node, operator, amount)


@internal
def _free(node: bytes32, operator: address, locked: uint256):
    """
    @notice A claim's disputes ended without a conviction: unlock what no claim in the queue needs
    """
    queue: Queue = self.queues[node][operator]
    if locked < rules.penalty:
        queue.claims -= 1
    queue.coins += locked
    self._keep(node, operator, queue)


@internal
def _take(node: bytes32, operator: address, locked: uint256) -> uint256:
    """
    @notice A claim is convicted: lock what is missing of the penalty
    @return What is locked for it
    """
    if locked == rules.penalty:
        return locked
    queue: Queue = self.queues[node][operator]
    queue.claims -= 1
    kept: uint256 = min(queue.coins, rules.penalty - locked)
    queue.coins -= kept
    self._keep(node, operator, queue)
    amount: uint256 = locked + kept
    entry: Node = staticcall Registry(registry).record(node, operator)
    if amount < rules.penalty and entry.stake + entry.leaving != entry.locked:
        amount += extcall Registry(registry).lock(node, operator, rules.penalty - amount)
    return amount


@internal
def _keep(node: bytes32, operator: address, of_queue: Queue):
    queue: Queue = of_queue
    kept: uint256 = min(queue.coins, queue.claims * rules.penalty)
    if queue.coins != kept:
        extcall Registry(registry).unlock(node, operator, queue.coins - kept)
    queue.coins = kept
    self.queues[node][operator] = queue


@internal
def _slash(node: bytes32, operator: address, amount: uint256, challenger: address, payer: address):
    extcall Registry(registry).slash(
        node,
        operator,
        amount,
        challenger,
        amount * rules.to_challenger // WHOLE,
        payer,
        amount * rules.to_payer // WHOLE,
    )


@internal
def _credit(owner: address, amount: uint256):
    if amount != 0:
        self.credit[owner] += amount
        log Credited(owner=owner, amount=amount)
