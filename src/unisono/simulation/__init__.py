"""Swarms of thousands of nodes on virtual time, driving the real routing code."""
