"""The compiled form of the decoder for CPUs: C++ in `cpp/`, loaded through ctypes.

It computes the same integers as `unisono.numerics`, in fewer and wider instructions. A machine
without a compiler installs without it and uses torch; `library.load` says which it is.
"""
