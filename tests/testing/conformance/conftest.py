"""The kernels that conformance tests check, as a module; and what a problem's results should be, computed once."""

import dataclasses
import importlib.util
import pickle
from pathlib import Path

import pytest

from refattn.testing.conformance import trial
from refattn.testing.conformance.registry import OPERATIONS


@pytest.fixture(scope="session")
def kernels():
    """The module `conformance_kernels`, beside this file."""
    path = Path(__file__).with_name("conformance_kernels.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MOST_KEPT = 600
"""Results of one function; more than the problems of an operation at one seed."""


def remembered(function, key):
    """A function whose results are kept, by a key of what it is given."""
    kept = {}

    def once(*given):
        name = pickle.dumps(key(*given))
        if name not in kept:
            if len(kept) >= MOST_KEPT:
                kept.clear()
            kept[name] = function(*given)
        return kept[name]

    return once


@pytest.fixture(scope="module", autouse=True)
def problems_solved_once():
    """The truth, and what the plain implementation is off by, do not depend on the kernel: many share them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, operation in OPERATIONS.items():
            truth = remembered(operation.truth, lambda problem, upstream: (vars(problem), upstream))
            patch.setitem(OPERATIONS, name, dataclasses.replace(operation, truth=truth))
        allowances = remembered(
            trial.allowances,
            lambda operation, problem, upstream, truth, precision, factor: (
                operation.name, vars(problem), upstream, precision.name, factor,
            ),
        )  # fmt: skip
        patch.setattr(trial, "allowances", allowances)
        yield
