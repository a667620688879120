"""Tests as on a processor whose matrix products are summed in another order; as a plugin of pytest, from this folder:

PYTHONPATH=tests/robustness REFATTN_FFT=scipy python -m pytest -p other_order

Which kernel a BLAS takes, and with it the order of every sum, depends on the processor. Here ``a @ b`` and
``np.matmul`` in the package sum up the second half of the products first: mathematically the same, other last bits.
Compiled products of exact attention add up half as many at a time.
"""

import ast
import importlib.machinery
import sys

import numpy as np
import pytest

_matmul = np.matmul


def product(a, b, **options):
    """``a @ b``, of the two halves of the inner axis; anything but two real arrays as it is."""
    arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    if not arrays or {a.dtype.kind, b.dtype.kind} != {"f"} or a.shape[-1] < 2 or options.keys() - {"out"}:
        return _matmul(a, b, **options) if arrays else a @ b
    half = a.shape[-1] // 2
    first, second = (b[:half], b[half:]) if b.ndim == 1 else (b[..., :half, :], b[..., half:, :])
    found = _matmul(a[..., half:], second)
    return np.add(found, _matmul(a[..., :half], first), **options)


class Products(ast.NodeTransformer):
    """``a @ b`` as a call of `product`, and the compiled sum of products in smaller pieces."""

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        if node.name == "add_sum":
            smaller = ast.parse("rows = (rows + 1) // 2").body
            node.body[1:1] = smaller  # after the docstring
        return node

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        call = ast.parse('__import__("other_order").product()', mode="eval").body
        call.args = [node.left, node.right]
        return ast.copy_location(call, node)


class Loader(importlib.machinery.SourceFileLoader):
    """Python's loader, with the source's products exchanged; no bytecode is kept."""

    def get_code(self, fullname):
        tree = Products().visit(ast.parse(self.get_data(self.path), self.path))
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class Finder:
    """Finds the package's modules, but for the compiled ones, whose order of summation is their own."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] != "refattn" or name.endswith(("_loops", "_kernels")):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = Loader(name, spec.origin)
        return spec


def install():
    """Exchange the products of all modules of the package that are imported from now on."""
    assert not any(name.partition(".")[0] == "refattn" for name in sys.modules)
    sys.meta_path.insert(0, Finder)
    np.matmul = product


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests():
    """Before any test file imports the package."""
    install()
