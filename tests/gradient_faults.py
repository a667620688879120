"""Errors to plant in the guard of the conv gradients, one for every way in which rows have been lost.

Each takes pytest's ``monkeypatch``. They are planted in the tests of rows and in those of the ledger.
"""

from __future__ import annotations

import numpy as np

from refattn.convbasis.fast import correlations
from refattn.convbasis.fast import gradients as fast_gradients
from refattn.convbasis.fast import softmax as fast


def forward_list_reused(monkeypatch):
    """The rows that the forward lost are left out of the backward's products, and nothing else is judged."""
    write, finish = fast.FastSoftmax.write, fast.FastSoftmax.finish_transposed

    def writing(self, v, out):
        report = write(self, v, out)
        self.__dict__["lost"] = report.rows  # in the place of the cached property
        return report

    def trusting(self, w, found, columns, sizes):
        return finish(self, w, found._replace(error=np.zeros_like(found.error)), columns, sizes)

    monkeypatch.setattr(fast.FastSoftmax, "write", writing)
    monkeypatch.setattr(fast.FastSoftmax, "finish_transposed", trusting)


def column_packed(monkeypatch):
    """−r and ones travel with the last columns of an odd G and V, and the error is estimated from G and V alone."""
    apart, right = fast_gradients._beside, fast_gradients._correlations
    alone = []

    def packed(w, last):
        if w.shape[1] % 2 == 0:
            return apart(w, last)
        alone.append(w)
        return np.concatenate([w, last[:, None]], axis=1)

    def correlations(product, given, f, *transposed):
        found, noise = right(product, given, f, *transposed)
        if alone:
            _, noise = right(product, [one.copy() for one in alone], f)
            alone.clear()
        return found, noise

    terms = fast_gradients._terms
    monkeypatch.setattr(fast_gradients, "_terms", lambda units: terms(units)._replace(unit=units.V.dtype.type(1)))

    monkeypatch.setattr(fast_gradients, "_beside", packed)
    monkeypatch.setattr(fast_gradients, "_correlations", correlations)


def lags_unguarded(monkeypatch):
    """The gradients of the kernels keep every lag, whatever an FFT has made of it."""
    monkeypatch.setattr(
        fast_gradients, "lost_lags", lambda product, noise, natural, *_: np.zeros(natural.shape, dtype=bool)
    )


def tolerance_of_the_array(monkeypatch):
    """Every row is held to the largest natural size there is, not to its own."""
    for module in (fast, correlations):

        def of_the_array(error, size, size_error, right=module.row_bound):
            return right(error, np.full_like(size, np.max(size, initial=0)), 0.0)

        monkeypatch.setattr(module, "row_bound", of_the_array)


FAULTS = (forward_list_reused, column_packed, lags_unguarded, tolerance_of_the_array)
