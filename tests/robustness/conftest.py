"""What the tests of this folder share: the operations, and scripts that use them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def operations():
    """The module `operations`, beside this file."""
    spec = importlib.util.spec_from_file_location("operations", FOLDER / "operations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_python(tmp_path):
    """Run a program in a process of its own, which can import `operations`; return its standard output."""

    def run(program, *arguments, status=0, seconds=900, **environment):
        path = tmp_path / "program.py"
        path.write_text(program, encoding="utf-8")
        known = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
        result = subprocess.run(
            [sys.executable, path, *arguments],
            env={**os.environ, "PYTHONPATH": known, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert result.returncode == status, result.stderr
        return result.stdout if status == 0 else result.stderr

    return run
