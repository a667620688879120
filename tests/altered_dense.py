"""Exact attention from the package's own source with lines replaced: for errors planted into one of its methods."""

import inspect
import sys
from types import SimpleNamespace

import refattn.dense
from refattn.dense import _blocks, _problem, fast, oracle

METHODS = {"fast": fast, "oracle": oracle}
NOT_COMPILED = ("from refattn._compiled import compiled\n", "compiled = lambda function: function\n")
ITS_BLOCKS = ("from refattn.dense._blocks import attend\n", "attend = altered_attend\n")


def altered_dense(method, *replacements):
    """The public functions, which compute by one method whatever they are asked for; each line is found somewhere."""
    modules = [_problem, METHODS[method], sys.modules["refattn.dense.attention"], *[_blocks] * (method == "fast")]
    sources = [inspect.getsource(module) for module in modules]
    for right, wrong in replacements:
        assert any(right in source for source in sources), f"no longer in refattn.dense: {right}"
        sources = [source.replace(right, wrong) for source in sources]
    sources = [source.replace(*NOT_COMPILED).replace(*ITS_BLOCKS) for source in sources]
    spaces = [{"__name__": module.__name__, "__package__": refattn.dense.__name__} for module in modules]
    for module, source, namespace in zip(modules, sources, spaces, strict=True):
        exec(compile(source, f"altered {module.__name__}", "exec"), namespace)
    problem, computing, face, *blocks = spaces
    for namespace in blocks:
        computing["altered_attend"] = namespace["attend"]
        computing["_FEW_ENTRIES"] = 0  # else what is small would be computed by the definition
    face["as_problem"] = problem["as_problem"]
    face["_METHODS"] = dict.fromkeys(METHODS, SimpleNamespace(**computing))
    return SimpleNamespace(**face)
