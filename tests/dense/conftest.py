"""What these tests draw from, `dense_definition`, can be imported; and a way to compute what is small by tiles too."""

import sys
from pathlib import Path

import pytest

from refattn.dense import fast

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def all_by_tiles(monkeypatch):
    """No head has so few entries that it is left to the definition."""
    monkeypatch.setattr(fast, "_FEW_ENTRIES", 0)


@pytest.fixture(params=["few by definition", "all by tiles"])
def either_way(request):
    """As is, and with tiles also where there are few entries."""
    if request.param == "all by tiles":
        request.getfixturevalue("all_by_tiles")
