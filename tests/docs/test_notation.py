"""The table of where each algorithm stands names files that are there, and what they define."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/explanation/notation.md").read_text(encoding="utf-8")
SUBJECTS = (
    "Recover", "Search", "exp transform", "conv attention", "training gradient", "SparseK's operator", "thresholds",
    "scoring", "SparseK attention",
)  # fmt: skip


def rows(text=TEXT):
    """Yield the subject of every row of the table, and (path, name) of all that it lists."""
    table = re.search(r"## Where each algorithm stands\n(.*?)\n## ", text, re.DOTALL)
    for line in table[1].strip().splitlines()[2:]:
        subject, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
        listed = re.findall(r"`(refattn/[\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)", " ".join(cells))
        yield subject, [(path, name) for path, names in listed for name in re.findall(r"`([\w.]+)`", names)]


def defined(path):
    """Return the functions and classes that a file defines, and the methods of its classes."""
    found = set()
    for item in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(item, (ast.FunctionDef, ast.ClassDef)):
            found.add(item.name)
            found |= {
                f"{item.name}.{one.name}" for one in getattr(item, "body", []) if isinstance(one, ast.FunctionDef)
            }
    return found


def missing(text=TEXT):
    places = [place for _, listed in rows(text) for place in listed]
    return [(path, name) for path, name in places if not (ROOT / path).is_file() or name not in defined(path)]


@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_algorithm_has_its_row(subject):
    assert any(found.startswith(subject) and places for found, places in rows())


def test_every_file_is_there_and_defines_what_is_listed():
    assert missing() == []


@pytest.mark.parametrize(
    ("right", "wrong"), [("convbasis/recovery.py`", "convbasis/recover.py`"), ("`algorithm_3`", "`algorithm_4`")]
)
def test_a_file_that_moved_or_a_name_that_changed_is_seen(right, wrong):
    assert missing(TEXT.replace(right, wrong))
