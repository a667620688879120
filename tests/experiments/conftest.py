"""The toy experiment, imported by its own name so that other processes can be handed its functions."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from refattn.experiments.records import read_records

TOY_FILE = Path(__file__).parent / "toy_experiment.py"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("toy_experiment")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What an undisturbed run gives, without times; in a process of its own, as the environment is recorded."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run([sys.executable, str(TOY_FILE), str(folder), "here"], check=True, capture_output=True)
    return read_records(folder / "toy.jsonl")


@pytest.fixture
def same_records(undisturbed):
    """Compare a file with the undisturbed run's: the whole, or all but the environment of this process."""

    def same(path, *, environment=True):
        found = read_records(path)
        if not environment:
            found.header["environment"] = undisturbed.header["environment"]
        return found.complete and found.reproducible() == undisturbed.reproducible()

    return same
