"""Which layers a node holds.

A network can be planned as a whole (`planner.plan`, `repairs.repair`), or every node decides for
itself (`choose_block`, `should_move`); `docs/placement.md` states the problem and argues for both.
"""

from unisono.routing.placement.blocks import even_blocks as even_blocks
from unisono.routing.placement.facts import ModelFacts as ModelFacts
from unisono.routing.placement.facts import NodeFacts as NodeFacts
from unisono.routing.placement.joining import choose_block as choose_block
from unisono.routing.placement.joining import should_move as should_move
