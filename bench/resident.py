"""Prints the bytes that a node process of some layers holds after a prompt of 256 rows and, if it
chooses tokens, after choosing 64.

python -m bench.resident START:STOP
"""

from __future__ import annotations

import sys

import numpy as np

from bench.ours import stored
from unisono.cli.node import parse_layers
from unisono.models.decoder import GREEDY, Segment, make_decoder
from unisono.models.loading import load_block
from unisono.observe.machine import resident_bytes


def main() -> None:
    from unisono.compose import node_process  # what a node process has loaded

    model, layers = stored(), parse_layers(sys.argv[1])
    decoder = make_decoder(model.manifest.config, load_block(model, layers), threads=1)
    cache = decoder.new_cache(256)
    rows = np.ones((256, model.manifest.config.hidden_size), dtype=np.int64)
    rows = decoder.forward(rows, [Segment(cache, 0, 256)])
    if decoder.ends[1]:
        for row in range(64):
            decoder.choose(rows, [(row, row + 1, GREEDY)])
    sys.stdout.write(f"{resident_bytes()}\n")
    del node_process


if __name__ == "__main__":
    main()
