"""Loaded by the fork server: what every node process needs and what takes time to load."""

from unisono.compose import node as node
from unisono.numerics import tables

tables.digest()
