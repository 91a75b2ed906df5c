"""Light audit: check a layer of a hop without its weights.

A client that once had the verified weights keeps, per matrix, a secret random vector `r` and the
product `r·W` modulo 2**61 - 1 (`secrets`). Later it draws cells (layer, position) of an answer,
the node regenerates and opens them (`trace`), and the client checks every matrix product by
Freivalds' identity and everything else by recomputing it (`audit`).
"""
