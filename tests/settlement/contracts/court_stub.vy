# pragma version ==0.4.3
"""
@title A court that says what a test tells it
"""

struct Dossier:
    games: uint256
    locked: uint256
    convicted: bool

registry: public(immutable(address))
games: public(HashMap[bytes32, bytes32])
dossiers: public(HashMap[bytes32, Dossier])


@deploy
def __init__(of_registry: address):
    registry = of_registry


@external
def set_game(game: bytes32, state: bytes32):
    self.games[game] = state


@external
def convict(claim: bytes32):
    self.dossiers[claim].convicted = True
