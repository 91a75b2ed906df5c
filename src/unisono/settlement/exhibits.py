"""What a defender opens before the judge: leaves and their paths as one run of bytes.

The order is that in which a step names its sources: the fixed ones, the bias of the token in
dispute where it has one, then the terms of a chunk. Sizes and lengths of paths follow from the
program, so that nothing is written but the leaves and their siblings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unisono.settlement.claims import SEQUENCE_FORMAT, sequence_tree
from unisono.settlement.tables import bias_leaf, bias_tree
from unisono.types import Sampling
from unisono.verification.fraud.holdings import Holdings
from unisono.verification.fraud.program import Program
from unisono.verification.fraud.referee import Layout
from unisono.verification.fraud.sampling_steps import Adjust
from unisono.verification.fraud.steps import Cell, Source, Step, TokenRef
from unisono.verification.fraud.tree import Tree, blocks, per_block


@dataclass(frozen=True)
class Exhibits:
    """Openings of one cell, from what a party holds."""

    holdings: Holdings
    layout: Layout
    cell: Cell

    @property
    def program(self) -> Program:
        """The cell's."""
        return self.holdings.hop.program(self.cell)

    @property
    def sampling(self) -> Sampling:
        """The request's."""
        return self.holdings.hop.sampling

    def fixed(self, step: Step, i: int) -> bytes:
        """What element i needs whatever its terms are."""
        bias = self._bias(i) if isinstance(step, Adjust) else b""
        return b"".join(self._source(x) for x in step.fixed(i)) + bias

    def chunk(self, step: Step, i: int, start: int, stop: int) -> bytes:
        """What terms `start:stop` of element i need beside that.

        Raises:
            Wrong: they do not exist.
        """
        fixed = self.holdings.values(self.layout, self.cell, step.fixed(i))
        return b"".join(self._source(x) for x in step.terms(i, start, stop, fixed))

    def _source(self, source: Source) -> bytes:
        if isinstance(source, TokenRef):
            return self._tokens(source)
        opened: list[bytes] = []
        for number, slot in enumerate(self.layout.slots(self.program, source)):
            leaf = self.holdings.leaf(self.cell, source, number, slot)
            climb = self.holdings.climb(self.cell, slot, leaf)
            opened += [leaf, *(sibling for _, sibling in climb if sibling is not None)]
        return b"".join(opened)

    def _tokens(self, source: TokenRef) -> bytes:
        sequence, each = self.layout.sequence, per_block(SEQUENCE_FORMAT)
        tree = sequence_tree(sequence)
        leaves = blocks(np.array(sequence, dtype=np.int64), SEQUENCE_FORMAT)
        return b"".join(
            leaves[block] + _path(tree, block)
            for block in range(source.start // each, (source.stop - 1) // each + 1)
        )

    def _bias(self, token: int) -> bytes:
        biases, size = self.sampling.logit_bias, self.holdings.hop.config.vocabulary_size
        if not biases:
            return b""
        leaf = bias_leaf(biases, size, token)
        return leaf + _path(bias_tree(biases, size), token // per_block(SEQUENCE_FORMAT))


def _path(tree: Tree, place: int) -> bytes:
    return b"".join(tree.node(tree.depth - k, (place >> k) ^ 1) for k in range(tree.depth))
