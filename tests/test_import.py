"""Importing the package is cheap: nothing is compiled, no thread is started, no optional package is touched."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest

from refattn._moved import OLD

HEAVY = ("numba", "pyfftw", "torch", "rich", "typer", "gguf", "tokenizers", "matplotlib", "pydantic", "safetensors")

PROBE = f"""
import os, sys, threading
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy
before = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else threading.active_count()
import refattn
after = len(os.listdir("/proc/self/task")) if os.path.exists("/proc/self/task") else threading.active_count()
print(sorted(set({HEAVY!r}) & set(sys.modules)), after - before)
"""


def test_import_starts_no_thread_and_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] 0"


def test_every_public_name_exists_and_is_documented():
    import refattn

    for name in refattn.__all__:
        assert getattr(refattn, name) is not None
        if not name.startswith("__"):
            assert getattr(refattn, name).__doc__, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["refattn.dense", "refattn.convbasis", "refattn.testing", "refattn.models", "refattn.training"]
)
def test_modules_import_alone(module):
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], check=True)


def test_packages_need_no_import_of_their_own():
    code = "import refattn; refattn.testing.check_attention; refattn.models.Llama"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    import refattn

    with pytest.raises(AttributeError, match="has no attribute 'tessting'"):
        refattn.tessting  # noqa: B018  the error is what is looked at


@pytest.mark.parametrize("old", OLD)
def test_an_old_name_says_the_new_one_however_it_is_asked_for_and_the_new_one_is_there(old):
    module, _, name = old.rpartition(".")
    said = re.escape(f"{old} has another name: use {OLD[old]}")
    with pytest.raises(ImportError, match=said):
        getattr(import_module(module), name)
    with pytest.raises(ImportError, match=said):
        exec(f"from {module} import {name}", {})
    home, _, name = OLD[old].rpartition(".")
    assert hasattr(import_module(home), name)


def test_the_changelog_has_the_old_names_and_the_new():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert [old for old in OLD if f"| `{old}` | `{OLD[old]}` |" not in changes] == []


def test_the_package_called_like_its_operator_says_where_that_is():
    with pytest.raises(TypeError, match=re.escape("the operator is refattn.sparsek_operator(z, k)")):
        import_module("refattn").sparsek([1.0, 2.0], 1)


def test_no_name_is_both_a_module_and_what_it_holds():
    """A submodule and a public function or class of its package never share a dotted name."""
    package = import_module("refattn")
    for found in walk_packages(package.__path__, "refattn."):
        home, _, name = found.name.rpartition(".")
        assert name not in getattr(import_module(home), "__all__", ()), found.name


ROOT = Path(__file__).parents[1]


def imported(tree):
    """Parts of the package that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("refattn"):
            names = [node.module] if "." in node.module else [f"refattn.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("refattn."))


@pytest.mark.slow
def test_imports_point_the_way_that_the_page_for_contributors_draws():
    drawn = next(line for line in (ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines() if "←" in line)
    places = {name.strip(): place for place, names in enumerate(drawn.split("←")) for name in names.split(",")}
    assert {"dense", "convbasis", "decomposition", "cli"} <= set(places)
    against = [
        f"{file}: {other}"
        for file in (ROOT / "refattn").rglob("*.py")
        if (own := file.relative_to(ROOT / "refattn").parts[0].removesuffix(".py")) not in ("__init__", "__main__")
        for other in imported(ast.parse(file.read_text("utf-8")))
        if own != other and places.get(other, 0) >= max(1, places.get(own, 0))
    ]
    assert against == []
