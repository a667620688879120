"""How many floating-point operations things take, by counting (ours).

A sum or product of reals counts one, an exponential one. A real transform of length L counts 2.5 L log₂ L: half of
5 L log₂ L, the convention of FFTW's benchmarks for a complex one. A product of two spectra of a real transform has
L/2 + 1 complex products of 6 operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from refattn import _fft


def direct_product(n: int) -> int:
    """Operations of ``conv(a) x`` by its definition: n (n + 1)/2 products and n (n − 1)/2 sums.

    >>> direct_product(3)
    9
    """
    return n * n


def fft_product(n: int, columns: int = 1) -> int:
    """Operations of ``conv(a) X`` by FFT, for so many columns: transforms of length L ≥ 2n − 1, one of them of a.

    >>> fft_product(100), fft_product(10_000) / direct_product(10_000) < 0.03
    (12072, True)
    """
    length = _fft.fast_length(2 * n - 1)
    transform = 2.5 * length * math.log2(max(length, 2))
    return round((1 + 2 * columns) * transform) + columns * 6 * (length // 2 + 1)


def exact_attention(n: int, d: int) -> int:
    """Operations of causal softmax attention of one head: logits, exponentials, sums, weighted sums, quotients."""
    pairs = n * (n + 1) // 2
    return pairs * (2 * d + 1 + 1 + 2 * d) + n * d


def conv_attention(starts: Iterable[int], n: int, d: int) -> int:
    """Operations of conv attention of one head: k columns of the logits, k products by FFT of d + 1 columns each.

    The search for the starts is not counted, nor is any fast path of ours: this is Algorithm 1.
    """
    total = n * d
    for start in starts:
        m = n - int(start)
        total += m * (2 * d + 1) + fft_product(m, d + 1) + m * (d + 1)
    return total
