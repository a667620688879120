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


def running_mean(n: int, d: int) -> int:
    """Operations of the mean of the values so far: a sum and a quotient an entry."""
    return 2 * n * d


def equal_window(operations: int, n: int, d: int) -> int:
    """Return the width, from 1 to n, of the sliding window whose attention takes as many operations, or fewer.

    >>> equal_window(exact_attention(100, 8), 100, 8), equal_window(0, 100, 8)
    (100, 1)
    """
    pairs = (operations - n * d) / (4 * d + 2)
    if pairs >= n * (n + 1) // 2:
        return n
    # a window of w has n w − w (w − 1)/2 pairs
    return max(1, math.floor(n + 0.5 - math.sqrt(max((n + 0.5) ** 2 - 2 * pairs, 0.0))))


def authors_exact(n: int, d: int) -> int:
    """Operations of the exact attention in the authors' script, of the whole square.

    Logits, mask, exponentials and row sums are n × n; the inverse row sums are a dense diagonal matrix, which is
    multiplied with the weights as one. (They read a processor's counter; this is what their lines ask for.)
    """
    return 2 * n * n * d + 3 * n * n + 2 * n**3 + 2 * n * n * d


def authors_conv(starts: Iterable[int], n: int, d: int) -> int:
    """Operations of conv attention in the authors' script, search included.

    Every probe and every term takes a whole column of the logits; every product of a term with one of d + 1 columns
    takes three complex transforms of twice the segment's length.
    """
    total, column = n * d, 2 * n * d
    for start in starts:
        length = 2 * (n - int(start))
        total += column * (1 + math.ceil(math.log2(max(n, 2)))) + 2 * n
        total += round((d + 1) * (3 * 5 * length * math.log2(length) + 6 * length + n))
    return total
