"""The layers of a decoder, each a forward and a backward derived by hand.

Every layer is ``forward(…) -> (out, cache)`` and ``backward(dout, cache) -> gradients``, one under the other; the
backward's docstring has the derivation, and each of its lines is headed by the forward line it reverses. Nothing is
kept but the cache, and no input is written to.
"""
