"""The two composers, a node and a gateway, and the local network made of them."""
