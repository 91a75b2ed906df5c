# pragma version ==0.4.3
"""
@title A court that keeps what its judge says
"""
import dispute

ruled: public(bool)
right: public(bool)


@external
def rule(state: dispute.State, mover: address, right: bool):
    self.ruled = True
    self.right = right
