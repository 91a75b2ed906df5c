"""Chains, whichever they are: the embedded one, its server, a client for any other, keys at rest,
and the worker that brings transactions onto a chain exactly once."""
