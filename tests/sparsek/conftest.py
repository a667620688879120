from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], ModuleType]:
    """Return a copy of a module with one line of its source replaced: a planted error.

    Compiled loops run as Python in the copy: an error may leave an array, which only Python notices.
    """

    def planted(name: str, right: str, wrong: str) -> ModuleType:
        source = inspect.getsource(importlib.import_module(name))
        assert source.count(right) == 1, f"{source.count(right)} places in {name} read {right!r}"
        spec = importlib.util.spec_from_loader(name + "_mutant", loader=None)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        source = source.replace(right, wrong).replace("import compiled\n", "import Function; compiled = lambda f: f\n")
        exec(compile(source, f"<{spec.name}>", "exec"), module.__dict__)
        return module

    return planted


@pytest.fixture(scope="session")
def away_from_kinks() -> Callable[..., np.ndarray]:
    """Return a maker of scores whose prefix operators all keep a distance from every kink and every tie."""
    from refattn.sparsek import sparsek_threshold

    def scores(seed: int, n: int, k: float, spread: float = 0.7, clearance: float = 2e-3) -> np.ndarray:
        rng = np.random.default_rng(seed)
        for _ in range(2000):
            z = rng.normal(0, spread, n)
            margin = np.diff(np.sort(z)).min(initial=np.inf)
            for i in range(n):
                above = z[: i + 1] - sparsek_threshold(z[: i + 1], k)
                if not ((above > 0) & (above < 1)).any():
                    above = above[above != 0]  # τ is free to move: z_(k+1) = τ is no kink
                margin = min(margin, np.abs(above).min(initial=np.inf), np.abs(above - 1).min(initial=np.inf))
            if margin > clearance:
                return z
        raise AssertionError("no scores away from the kinks were found")

    return scores
