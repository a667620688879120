"""The kernels that conformance tests check, as a module."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def kernels():
    """The module `conformance_kernels`, beside this file."""
    path = Path(__file__).with_name("conformance_kernels.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
