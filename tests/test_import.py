"""Importing the package is cheap: nothing is compiled, no thread is started, no optional package is touched."""

import subprocess
import sys

import pytest

HEAVY = ("numba", "pyfftw", "torch", "rich", "typer", "gguf", "tokenizers", "matplotlib")

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


@pytest.mark.parametrize("module", ["refattn.dense", "refattn.convbasis", "refattn.testing", "refattn.models"])
def test_modules_import_alone(module):
    subprocess.run([sys.executable, "-W", "error", "-c", f"import {module}"], check=True)


def test_packages_need_no_import_of_their_own():
    code = "import refattn; refattn.testing.check_attention; refattn.models.Llama"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    import refattn

    with pytest.raises(AttributeError, match="has no attribute 'tessting'"):
        refattn.tessting  # noqa: B018  the error is what is looked at
