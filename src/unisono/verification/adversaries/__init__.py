"""Dishonest parties, one class per attack: nodes, signers of claims, and parties of disputes.

They stand in the places of honest ones (a `Decoder` in a node's engine, a party of a game), so
that what catches them is the very code of the network. Dishonest committee members need no model
and are in `simulation.adversaries_stakes`.
"""
