"""Loaded by the fork server: what every node process needs and what takes time to load.

Nothing here may start a thread: a forked process has only the one that forked it.
"""

from unisono.garbage import collection_paused

with collection_paused(keep=True):  # memory that nobody writes to stays shared with the processes
    from unisono.compose import node as node
    from unisono.numerics import tables
    from unisono.wire.transports import iroh as iroh
    from unisono.wire.transports import tcp as tcp

    tables.digest()
