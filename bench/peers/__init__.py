"""Other engines, measured on the same model as Unisono.

Nothing of these engines is here: each module drives programs that the reader has
built or installed, and finds them through an environment variable.
"""
