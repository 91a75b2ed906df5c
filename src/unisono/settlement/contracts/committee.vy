# pragma version ==0.4.3
# pragma evm-version cancun
# pragma nonreentrancy on
"""
@title The committee: members drawn by deposit compute an answer again
@license Apache-2.0
@notice Anybody opens a case about a claim with a bond. The randomness of a block that nobody knows
    yet draws members by what they deposited. They commit to what they computed, then reveal it. A majority
    that contradicts the claim convicts nobody yet: the accused can contest it, and then only the
    court decides. There is no owner: court, registry, amounts and times are fixed for ever.
@dev The claim is shown only after the reveals, so that nobody can vote for it without its help or
    a computation. Members that are drawn must not depend on who sends what when: a member counts
    for the cases that are opened after it enrolled and until it leaves, and the block whose
    randomness is taken is fixed by the block of the opening.
"""
from ethereum.ercs import IERC20
import purse

initializes: purse


interface Registry:
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
    def is_judge(judge: address) -> bool: view
    def record(node: bytes32, operator: address) -> Record: view
    def unbond_seconds() -> uint256: view
    def token() -> address: view


interface Court:
    def games(game: bytes32) -> bytes32: view
    def dossiers(claim: bytes32) -> CourtDossier: view
    def registry() -> address: view


# A registry's record of a node.
struct Record:
    stake: uint256
    leaving: uint256
    ready: uint256
    locked: uint256
    signature_r: bytes32
    signature_s: bytes32


struct CourtDossier:
    games: uint256
    locked: uint256
    convicted: bool


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
    bond: uint256  # of a claim's first open case; the n-th costs n times as much
    cases: uint256  # that may be open about one claim
    penalty: uint256  # of the accused's stake
    unit: uint256  # of a member's deposit: one weight in the draw
    fee: uint256  # of a member that computed, out of what the opener pays
    fine: uint256  # of a member that is absent or wrong
    draw_blocks: uint256  # from the opening to the block whose randomness counts
    commit_seconds: uint256
    reveal_seconds: uint256
    contest_seconds: uint256  # for each of: showing the claim, contesting, going to the court
    epoch_seconds: uint256
    claim_seconds: uint256  # after its epoch in which a claim can be accused
    to_challenger: uint256  # of the penalty, in 1 / 10,000
    to_payer: uint256
    to_defender: uint256  # of the bond of a case that finds the claim right


struct Member:
    node: bytes32
    operator: address
    deposit: uint256
    seated: uint256  # in cases that are not over


struct Term:
    units: uint256
    since: uint256  # block; it counts for cases opened later
    left: uint256  # block; it counts for cases opened until then; 0: it stays


struct Case:
    claim: bytes32
    node: bytes32
    operator: address
    opener: address
    bond: uint256
    members: uint256  # 16 bits each: the places on the bench
    progress: uint256
    verdict: bytes32


struct Progress:
    phase: uint256
    seats: uint256
    drawn: uint256
    tries: uint256
    committed: uint256  # one bit per seat
    revealed: uint256
    block: uint256
    size: uint256  # of the bench at the opening
    deadline: uint256
    opened: uint256


struct Dossier:
    cases: uint256  # that are open
    locked: uint256
    slashed: bool


event Enrolled:
    node: indexed(bytes32)
    operator: indexed(address)
    place: uint256
    units: uint256

event Left:
    place: indexed(uint256)

event Opened:
    case: indexed(bytes32)
    claim: indexed(bytes32)
    operator: indexed(address)
    node: bytes32
    opener: address
    seats: uint256
    draws_from: uint256  # block

event Seated:
    case: indexed(bytes32)
    operator: indexed(address)
    node: indexed(bytes32)
    seat: uint256

event Committed:
    case: indexed(bytes32)
    seat: uint256
    digest: bytes32

event Revealed:
    case: indexed(bytes32)
    seat: uint256
    result: bytes32

event Contradicted:
    case: indexed(bytes32)
    operator: indexed(address)
    result: bytes32
    deadline: uint256

event Contested:
    case: indexed(bytes32)
    opener: indexed(address)
    deadline: uint256

event Closed:
    case: indexed(bytes32)
    outcome: uint256

event Fined:
    case: indexed(bytes32)
    operator: indexed(address)
    amount: uint256

event Credited:
    owner: indexed(address)
    amount: uint256

event Collected:
    owner: indexed(address)
    amount: uint256

# Phases of a case.
DRAWING: constant(uint256) = 1
VOTING: constant(uint256) = 2
ACCUSED: constant(uint256) = 3
CONTESTED: constant(uint256) = 4
OVER: constant(uint256) = 5

# Outcomes.
RIGHT: constant(uint256) = 1  # the claim is right, says the majority
CONVICTED: constant(uint256) = 2  # it is wrong, and nobody contested that
ACQUITTED: constant(uint256) = 3  # the court let the opener lose
DROPPED: constant(uint256) = 4  # contested, and the opener did not go to the court
GUILTY: constant(uint256) = 5  # the court, or another case, convicted
UNDECIDED: constant(uint256) = 6  # no majority of the seats
FAULTY: constant(uint256) = 7  # the opener did not show a claim that can be accused
UNDRAWN: constant(uint256) = 8

# Which of those who revealed a result were right.
ALL: constant(uint256) = 0
EQUAL: constant(uint256) = 1
OTHER: constant(uint256) = 2

MAX_SEATS: constant(uint256) = 15
MAX_UNITS: constant(uint256) = 16
MAX_BENCH: constant(uint256) = 65535
TRIES: constant(uint256) = 64  # of one call
MAX_TRIES: constant(uint256) = 2048  # of a draw
REMEMBERED: constant(uint256) = 256  # blocks whose hashes a contract can see
HEADER_START: constant(uint256) = 448  # of a header's difficulty, after fields of fixed length
WHOLE: constant(uint256) = 10000
BURN: constant(address) = 0x000000000000000000000000000000000000dEaD
LOST: constant(bytes32) = 0x0000000000000000000000000000000000000000000000000000000000000001
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
court: public(immutable(address))
rules: public(immutable(Rules))

members: public(HashMap[uint256, Member])
terms: HashMap[uint256, uint256]
place_of: HashMap[bytes32, HashMap[address, uint256]]  # node, operator: the place + 1
size: public(uint256)
present: public(uint256)
spare: HashMap[uint256, uint256]
spares: uint256

cases: HashMap[bytes32, Case]
answers: HashMap[bytes32, HashMap[uint256, bytes32]]  # a digest, once revealed a result
dossiers: HashMap[bytes32, Dossier]
tried: public(HashMap[bytes32, HashMap[address, uint256]])  # signed claim, opener: seats
credit: public(HashMap[address, uint256])


@deploy
def __init__(of_registry: address, of_court: address, of_rules: Rules):
    purse.__init__(IERC20(staticcall Registry(of_registry).token()))
    assert staticcall Registry(of_registry).is_judge(self), "not this registry's judge"
    assert staticcall Court(of_court).registry() == of_registry, "not this registry's court"
    assert of_rules.bond != 0 and of_rules.cases != 0 and of_rules.penalty != 0, "a rule is 0"
    assert of_rules.fine != 0 and of_rules.fine <= of_rules.unit, "a fine above a unit"
    assert of_rules.draw_blocks != 0 and of_rules.epoch_seconds != 0, "a rule is 0"
    assert of_rules.commit_seconds != 0 and of_rules.reveal_seconds != 0, "no time"
    assert of_rules.contest_seconds != 0, "no time to contest"
    assert of_rules.to_challenger + of_rules.to_payer <= WHOLE, "shares above the whole"
    assert of_rules.to_defender <= WHOLE, "shares above the whole"
    assert (
        of_rules.claim_seconds + 2 * of_rules.epoch_seconds < staticcall Registry(of_registry).unbond_seconds()
    ), "stakes could leave before the claims that they answer for"
    registry = of_registry
    court = of_court
    rules = of_rules


# The bench


@external
def enrol(node: bytes32, units: uint256) -> uint256:
    """
    @notice Take part in draws, for a registered node, with a deposit. It is apart from the stake in
        the registry, which has to stay within the court's reach.
    @return The place on the bench
    """
    assert 0 < units and units <= MAX_UNITS, "from 1 to 16 units"
    assert self.place_of[node][msg.sender] == 0, "enrolled already"
    record: Record = staticcall Registry(registry).record(node, msg.sender)
    assert record.signature_r != empty(bytes32), "unregistered"
    place: uint256 = self.size
    if self.spares != 0:
        self.spares -= 1
        place = self.spare[self.spares]
    else:
        assert place < MAX_BENCH, "the bench is full"
        self.size = place + 1
    amount: uint256 = units * rules.unit
    self.members[place] = Member(node=node, operator=msg.sender, deposit=amount, seated=0)
    self.terms[place] = self._packed_term(Term(units=units, since=block.number, left=0))
    self.place_of[node][msg.sender] = place + 1
    self.present += 1
    purse._take(msg.sender, amount)
    log Enrolled(node=node, operator=msg.sender, place=place, units=units)
    return place


@external
def leave(node: bytes32):
    """
    @notice Take no part in cases opened from the next block on.
    """
    place: uint256 = self._place(node, msg.sender)
    assert self._term(place).left == 0, "left already"
    self._retire(place)


@external
def release(node: bytes32):
    """
    @notice Get the deposit back, once no case can fine the member any more.
    """
    place: uint256 = self._place(node, msg.sender)
    left: uint256 = self._term(place).left
    assert left != 0, "leave first"
    assert block.number > left + rules.draw_blocks + REMEMBERED, "a draw may be under way"
    member: Member = self.members[place]
    assert member.seated == 0, "seated in an open case"
    self.members[place] = empty(Member)
    self.terms[place] = 0
    self.place_of[node][msg.sender] = 0
    self.spare[self.spares] = place
    self.spares += 1
    if member.deposit != 0:
        purse._give(msg.sender, member.deposit)


# A case


@external
def open(claim: bytes32, signature: Bytes[65], node: bytes32, seats: uint256) -> bytes32:
    """
    @notice Accuse a claim. The sender pays the bond, and a fee per seat.
    @param claim The struct hash of the claim, whose contents are shown after the vote
    @param signature The operator's, over the claim in the court's domain
    @param seats An odd number from 3 to 15, for a sender who asked before more than twice as many
    @return The case
    """
    assert 3 <= seats and seats <= MAX_SEATS and seats % 2 == 1, "3, 5, ... 15 seats"
    digest: bytes32 = self._digest(claim)
    operator: address = self._signer(digest, signature)
    assert seats > 2 * self.tried[self._dispute(digest, operator)][msg.sender], "more than twice the seats before"
    assert self.present > seats, "too few members"
    assert not (staticcall Court(court).dossiers(self._dispute(digest, operator))).convicted, "convicted already"
    assert staticcall Court(court).games(self._game(digest, operator, msg.sender)) != LOST, "lost before the court"
    key: bytes32 = keccak256(abi_encode(digest, node, operator))
    dossier: Dossier = self.dossiers[key]
    assert not dossier.slashed, "convicted already"
    assert dossier.cases < rules.cases, "too many cases about this claim"
    if dossier.cases == 0:
        dossier.locked = extcall Registry(registry).lock(node, operator, rules.penalty)
    dossier.cases += 1
    self.dossiers[key] = dossier
    self.tried[self._dispute(digest, operator)][msg.sender] = seats
    case: bytes32 = keccak256(
        abi_encode(chain.id, self, digest, operator, msg.sender, seats)
    )
    bond: uint256 = rules.bond * dossier.cases
    p: Progress = empty(Progress)
    p.phase = DRAWING
    p.seats = seats
    p.block = block.number
    p.size = self.size
    p.opened = block.timestamp
    self.cases[case] = Case(
        claim=digest,
        node=node,
        operator=operator,
        opener=msg.sender,
        bond=bond,
        members=0,
        progress=self._packed(p),
        verdict=empty(bytes32),
    )
    purse._take(msg.sender, bond + seats * rules.fee)
    log Opened(
        case=case,
        claim=digest,
        operator=operator,
        node=node,
        opener=msg.sender,
        seats=seats,
        draws_from=block.number + rules.draw_blocks,
    )
    return case


@external
def draw(case: bytes32, header: Bytes[1024]) -> bool:
    """
    @notice Fill the seats. Anybody may, any number of times until it is done; all get the same.
    @param header Of the block that was named at the opening, RLP
    @return Whether all seats are filled
    """
    c: Case = self.cases[case]
    p: Progress = self._progress(c.progress)
    assert p.phase == DRAWING, "another phase"
    named: uint256 = p.block + rules.draw_blocks
    assert named < block.number, "too early"
    assert block.number <= named + REMEMBERED, "too late"
    assert keccak256(header) == blockhash(named), "not the block's header"
    seed: bytes32 = keccak256(abi_encode(self._randomness(header), case))
    for _: uint256 in range(TRIES):
        if p.drawn == p.seats or p.tries == MAX_TRIES:
            break
        lot: uint256 = convert(keccak256(abi_encode(seed, p.tries)), uint256)
        p.tries += 1
        place: uint256 = (lot & (2**128 - 1)) % p.size
        term: Term = self._term(place)
        if (lot >> 128) % MAX_UNITS >= term.units:
            continue
        if term.since >= p.block or (term.left != 0 and term.left < p.block):
            continue
        if self._sits(c.members, p.drawn, place):
            continue
        member: Member = self.members[place]
        if member.operator == c.operator or member.operator == c.opener or member.node == c.node:
            continue
        c.members = c.members | (place << (16 * p.drawn))
        self.members[place].seated = member.seated + 1
        log Seated(case=case, operator=member.operator, node=member.node, seat=p.drawn)
        p.drawn += 1
    if p.drawn == p.seats:
        p.phase = VOTING
        p.deadline = block.timestamp + rules.commit_seconds
    self.cases[case].members = c.members
    self.cases[case].progress = self._packed(p)
    return p.drawn == p.seats


@external
def commit(case: bytes32, seat: uint256, digest: bytes32):
    """
    @notice A member's promise: keccak256 of case, member's address, result and salt.
    """
    c: Case = self.cases[case]
    p: Progress = self._progress(c.progress)
    assert p.phase == VOTING, "another phase"
    assert p.committed & (1 << seat) == 0, "committed already"
    assert block.timestamp <= p.deadline, "too late"
    assert self._seated(c, p, seat) == msg.sender, "another's seat"
    p.committed = p.committed | (1 << seat)
    if p.committed == (1 << p.seats) - 1:
        p.deadline = block.timestamp  # nobody is waited for
    self.answers[case][seat] = digest
    self.cases[case].progress = self._packed(p)
    log Committed(case=case, seat=seat, digest=digest)


@external
def reveal(case: bytes32, seat: uint256, result: bytes32, salt: bytes32):
    """
    @notice Show what was committed to.
    @param result keccak256 of the rows' root and the tokens' root; 0 of a member that was not given
        what it needs: no fee, no fine
    """
    c: Case = self.cases[case]
    p: Progress = self._progress(c.progress)
    assert p.phase == VOTING, "another phase"
    assert p.committed == (1 << p.seats) - 1 or block.timestamp > p.deadline, "too early"
    assert block.timestamp <= p.deadline + rules.reveal_seconds, "too late"
    assert self._seated(c, p, seat) == msg.sender, "another's seat"
    assert p.revealed & (1 << seat) == 0, "revealed already"
    assert self.answers[case][seat] == keccak256(
        abi_encode(case, msg.sender, result, salt)
    ), "not what was committed to"
    p.revealed = p.revealed | (1 << seat)
    self.answers[case][seat] = result
    self.cases[case].progress = self._packed(p)
    log Revealed(case=case, seat=seat, result=result)


@external
def tally(case: bytes32, claim: Claim) -> uint256:
    """
    @notice Count, once all have revealed or the time is over. Anybody who has the claim may.
    @return The outcome; 0 if the majority contradicts the claim, and the accused may contest that
    """
    c: Case = self.cases[case]
    p: Progress = self._progress(c.progress)
    assert p.phase == VOTING, "another phase"
    assert (
        p.revealed == (1 << p.seats) - 1 or block.timestamp > p.deadline + rules.reveal_seconds
    ), "too early"
    own: bytes32 = self._result(c, claim)
    if (
        claim.node != c.node
        or claim.payer == empty(address)
        or claim.epoch > p.opened // rules.epoch_seconds + 1
        or p.opened > (claim.epoch + 1) * rules.epoch_seconds + rules.claim_seconds
    ):
        self._end(case, c, p, FAULTY, ALL, own)
        return FAULTY
    if (staticcall Court(court).dossiers(self._dispute(c.claim, c.operator))).convicted:
        # no reward for what the court found without this committee
        self._slash(c, c.operator, 0, claim.payer)
        self._end(case, c, p, GUILTY, OTHER, own)
        return GUILTY
    result: bytes32 = self._majority(case, p)
    if result == empty(bytes32):
        self._end(case, c, p, UNDECIDED, ALL, own)
        return UNDECIDED
    if result == own:
        self._end(case, c, p, RIGHT, EQUAL, own)
        return RIGHT
    p.phase = ACCUSED
    p.deadline = block.timestamp + rules.contest_seconds
    self.cases[case].verdict = result
    self.cases[case].progress = self._packed(p)
    log Contradicted(case=case, operator=c.operator, result=result, deadline=p.deadline)
    return 0


@external
def contest(case: bytes32):
    """
    @notice The accused wants the court to decide: now the opener has to go there.
    """
    c: Case = self.cases[case]
    p: Progress = self._progress(c.progress)
    assert p.phase == ACCUSED, "another phase"
    assert msg.sender == c.operator, "only the accused"
    assert block.timestamp <= p.deadline, "too late"
    p.phase = CONTESTED
    p.deadline = block.timestamp + rules.contest_seconds
    self.cases[case].progress = self._packed(p)
    log Contested(case=case, opener=c.opener, deadline=p.deadline)


@external
def close(case: bytes32, claim: Claim) -> uint256:
    """
    @notice Pay what an accusation came to. Anybody may send this.
    @return The outcome
    """
    c: Case = self.cases[case]
    p: Progress = self._progress(c.progress)
    assert p.phase == ACCUSED or p.phase == CONTESTED, "another phase"
    own: bytes32 = self._result(c, claim)
    if (
        (staticcall Court(court).dossiers(self._dispute(c.claim, c.operator))).convicted
        or self.dossiers[self._dossier(c)].slashed
    ):
        # the court may have found nothing to take, because this lock held it: then this is the
        # penalty, else the price of having contested in vain
        self._slash(c, c.opener, rules.to_challenger, claim.payer)
        self._end(case, c, p, GUILTY, OTHER, own)
        return GUILTY
    if p.phase == CONTESTED:
        game: bytes32 = staticcall Court(court).games(self._game(c.claim, c.operator, c.opener))
        if game == LOST:
            self._end(case, c, p, ACQUITTED, EQUAL, own)
            return ACQUITTED
        assert game == empty(bytes32), "the court has not decided"
        assert block.timestamp > p.deadline, "the opener may go to the court"
        self._end(case, c, p, DROPPED, ALL, own)
        return DROPPED
    assert block.timestamp > p.deadline, "the accused may contest"
    self._slash(c, c.opener, rules.to_challenger, claim.payer)
    self._end(case, c, p, CONVICTED, EQUAL, c.verdict)
    return CONVICTED


@external
def lapse(case: bytes32) -> uint256:
    """
    @notice End a case that nobody drew in time, or whose claim nobody showed. Anybody may send this.
    @return The outcome
    """
    c: Case = self.cases[case]
    p: Progress = self._progress(c.progress)
    outcome: uint256 = FAULTY
    if p.phase == DRAWING:
        assert block.number > p.block + rules.draw_blocks + REMEMBERED, "it can be drawn"
        outcome = UNDRAWN
    else:
        assert p.phase == VOTING, "another phase"
        assert (
            block.timestamp > p.deadline + rules.reveal_seconds + rules.contest_seconds
        ), "the claim can be shown"
    self._end(case, c, p, outcome, ALL, empty(bytes32))
    return outcome


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


# Views


@external
@view
def case_of(case: bytes32) -> (Case, Progress):
    c: Case = self.cases[case]
    return c, self._progress(c.progress)


@external
@view
def seat_of(case: bytes32, seat: uint256) -> (Member, bytes32):
    """
    @return Who sits there, and its digest or result
    """
    return self.members[(self.cases[case].members >> (16 * seat)) & MAX_BENCH], self.answers[case][seat]


@external
@view
def place(node: bytes32, operator: address) -> (uint256, Term):
    """
    @return The place on the bench, and since when; reverts if there is none
    """
    found: uint256 = self._place(node, operator)
    return found, self._term(found)


@external
@view
def dossier(claim: bytes32, node: bytes32, operator: address) -> Dossier:
    return self.dossiers[keccak256(abi_encode(claim, node, operator))]


# Inside


@internal
def _end(
    case: bytes32,
    c: Case,
    progress: Progress,
    outcome: uint256,
    right: uint256,
    reference: bytes32,
):
    """
    @notice Pay fees and bond, take fines, free seats and the accused's stake
    """
    p: Progress = progress
    p.phase = OVER
    self.cases[case].progress = self._packed(p)
    rest: uint256 = p.seats * rules.fee
    for seat: uint256 in range(MAX_SEATS):
        if seat == p.drawn:
            break
        place: uint256 = (c.members >> (16 * seat)) & MAX_BENCH
        self.members[place].seated -= 1
        if outcome == UNDRAWN:
            continue
        result: bytes32 = self.answers[case][seat]
        if p.revealed & (1 << seat) == 0:
            self._fine(case, place)
        elif result == empty(bytes32):
            pass
        elif right == ALL or (right == EQUAL) == (result == reference):
            rest -= rules.fee
            self._credit(self.members[place].operator, rules.fee)
        else:
            self._fine(case, place)
    lost: uint256 = 0
    if outcome == ACQUITTED or outcome == DROPPED:
        lost = c.bond
    elif outcome == RIGHT or outcome == FAULTY:
        lost = c.bond * rules.to_defender // WHOLE
    elif outcome == UNDRAWN and p.tries != MAX_TRIES:
        # else whoever dislikes a draw would let it pass, and open another case
        lost = c.bond * rules.to_defender // WHOLE
    self._credit(c.operator, lost)
    self._credit(c.opener, c.bond - lost + rest)
    key: bytes32 = self._dossier(c)
    dossier: Dossier = self.dossiers[key]
    dossier.cases -= 1
    locked: uint256 = dossier.locked
    if dossier.cases == 0:
        dossier.locked = 0
    self.dossiers[key] = dossier
    if dossier.cases == 0 and locked != 0:
        extcall Registry(registry).unlock(c.node, c.operator, locked)
    log Closed(case=case, outcome=outcome)


@internal
def _slash(c: Case, challenger: address, share: uint256, payer: address):
    """
    @notice Take what is locked for the claim's cases, if none took it before
    """
    key: bytes32 = self._dossier(c)
    amount: uint256 = self.dossiers[key].locked
    self.dossiers[key].locked = 0
    self.dossiers[key].slashed = True
    if amount != 0:
        extcall Registry(registry).slash(
            c.node,
            c.operator,
            amount,
            challenger,
            amount * share // WHOLE,
            payer,
            amount * rules.to_payer // WHOLE,
        )


@internal
@pure
def _dossier(c: Case) -> bytes32:
    # with the operator: others can sign the same claim, and stake on the same node id
    return keccak256(abi_encode(c.claim, c.node, c.operator))


@internal
def _fine(case: bytes32, place: uint256):
    member: Member = self.members[place]
    amount: uint256 = min(rules.fine, member.deposit)
    if amount == 0:
        return
    self.members[place].deposit = member.deposit - amount
    if member.deposit - amount < rules.fine and self._term(place).left == 0:
        self._retire(place)
    self._credit(BURN, amount)
    log Fined(case=case, operator=member.operator, amount=amount)


@internal
def _retire(place: uint256):
    term: Term = self._term(place)
    term.left = block.number
    self.terms[place] = self._packed_term(term)
    self.present -= 1
    log Left(place=place)


@internal
@view
def _majority(case: bytes32, p: Progress) -> bytes32:
    """
    @return The result of more than half of the seats, or nothing
    """
    candidate: bytes32 = empty(bytes32)
    lead: uint256 = 0
    results: DynArray[bytes32, MAX_SEATS] = []
    for seat: uint256 in range(MAX_SEATS):
        if seat == p.seats:
            break
        if p.revealed & (1 << seat) == 0:
            continue
        result: bytes32 = self.answers[case][seat]
        results.append(result)
        if lead == 0:
            candidate = result
            lead = 1
        elif result == candidate:
            lead += 1
        else:
            lead -= 1
    votes: uint256 = 0
    for result: bytes32 in results:
        if result == candidate:
            votes += 1
    if 2 * votes > p.seats:
        return candidate
    return empty(bytes32)


@internal
@pure
def _randomness(header: Bytes[1024]) -> bytes32:
    """
    @return PREVRANDAO of a block's header: the field after difficulty, number, gas limit, gas used,
        time and extra data, whose lengths vary
    """
    at: uint256 = HEADER_START
    for _: uint256 in range(6):
        head: uint256 = convert(slice(header, at, 1), uint256)
        assert head < 184, "a header in another form"
        at += 1
        if head > 128:
            at += head - 128
    assert convert(slice(header, at, 1), uint256) == 160, "a header in another form"
    return extract32(header, at + 1)


@internal
@pure
def _sits(members: uint256, count: uint256, place: uint256) -> bool:
    for seat: uint256 in range(MAX_SEATS):
        if seat == count:
            break
        if (members >> (16 * seat)) & MAX_BENCH == place:
            return True
    return False


@internal
@view
def _seated(c: Case, p: Progress, seat: uint256) -> address:
    assert seat < p.seats, "no such seat"
    return self.members[(c.members >> (16 * seat)) & MAX_BENCH].operator


@internal
@view
def _place(node: bytes32, operator: address) -> uint256:
    found: uint256 = self.place_of[node][operator]
    assert found != 0, "not enrolled"
    return found - 1


@internal
@view
def _result(c: Case, claim: Claim) -> bytes32:
    """
    @return What a member that agrees with the claim of the case reveals
    """
    assert self._digest(keccak256(concat(CLAIM_TYPE, abi_encode(claim)))) == c.claim, "another claim"
    return keccak256(concat(claim.rows_out, claim.sequence))


@internal
@view
def _term(place: uint256) -> Term:
    packed: uint256 = self.terms[place]
    return Term(
        units=packed & 255,
        since=(packed >> 8) & (2**64 - 1),
        left=(packed >> 72) & (2**64 - 1),
    )


@internal
@pure
def _packed_term(t: Term) -> uint256:
    return t.units | (t.since << 8) | (t.left << 72)


@internal
@pure
def _packed(p: Progress) -> uint256:
    return (
        p.phase
        | (p.seats << 8)
        | (p.drawn << 16)
        | (p.tries << 24)
        | (p.committed << 40)
        | (p.revealed << 56)
        | (p.size << 72)
        | (p.block << 88)
        | (p.deadline << 136)
        | (p.opened << 184)
    )


@internal
@pure
def _progress(packed: uint256) -> Progress:
    return Progress(
        phase=packed & 255,
        seats=(packed >> 8) & 255,
        drawn=(packed >> 16) & 255,
        tries=(packed >> 24) & 65535,
        committed=(packed >> 40) & 65535,
        revealed=(packed >> 56) & 65535,
        block=(packed >> 88) & (2**48 - 1),
        size=(packed >> 72) & 65535,
        deadline=(packed >> 136) & (2**48 - 1),
        opened=(packed >> 184) & (2**48 - 1),
    )


@internal
@pure
def _dispute(claim: bytes32, operator: address) -> bytes32:
    """
    @return By what the court knows a signed claim
    """
    return keccak256(abi_encode(claim, operator))


@internal
@pure
def _game(claim: bytes32, operator: address, challenger: address) -> bytes32:
    return keccak256(abi_encode(self._dispute(claim, operator), challenger))


@internal
@view
def _digest(claim: bytes32) -> bytes32:
    separator: bytes32 = keccak256(abi_encode(DOMAIN_TYPE, NAME, VERSION, chain.id, court))
    return keccak256(concat(x"1901", separator, claim))


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
def _credit(owner: address, amount: uint256):
    if amount != 0:
        self.credit[owner] += amount
        log Credited(owner=owner, amount=amount)
