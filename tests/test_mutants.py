"""The mutants of a source are the errors they are said to be, the same for the same seed, and known by their text."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / ".ci" / "mutants"
SOURCE = '''"""A module: 1 + 1 < 3."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    a = 1 + 2

def f(x: "int | 1", n=2, *, strict: bool = True) -> "1 + 1":
    """Return 1 + 1."""
    assert x > 1
    if not x < n or strict:
        raise ValueError(f"{x + 1} came", x + 2)
    x += g(-x, rtol=0.5)
    λ = x[n:] @ x[: n - 1]
    return min(λ, max(x)) * 3 + n

class C:
    def __repr__(self):
        return 1 + 1
'''


@pytest.fixture(scope="module")
def places():
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("places")
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("places", "bench"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def command(places):
    spec = importlib.util.spec_from_file_location("mutants", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def mutants(places, tmp_path):
    path = tmp_path / "f.py"
    path.write_text(SOURCE, encoding="utf-8")
    return list(places.mutants_of(path, "f.py"))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('def f(x: "int | 1", n=2, *, strict: bool = True) -> "1 + 1":', "n=3"),
        ('def f(x: "int | 1", n=2, *, strict: bool = True) -> "1 + 1":', "bool = False"),
        ("if not x < n or strict:", "if not x <= n or strict:"),
        ("if not x < n or strict:", "if (x < n) or strict:"),
        ("if not x < n or strict:", "if not x < n and strict:"),
        ("if not x < n or strict:", "if (not x < n):"),
        ('raise ValueError(f"{x + 1} came", x + 2)', "pass"),
        ("x += g(-x, rtol=0.5)", "x -= g(-x, rtol=0.5)"),
        ("x += g(-x, rtol=0.5)", "pass"),
        ("x += g(-x, rtol=0.5)", "x += g(x, rtol=0.5)"),
        ("x += g(-x, rtol=0.5)", "x += g(-x)"),
        ("x += g(-x, rtol=0.5)", "x += g(-x, rtol=1.0)"),
        ("λ = x[n:] @ x[: n - 1]", "λ = x[n + 1:] @ x[: n - 1]"),
        ("λ = x[n:] @ x[: n - 1]", "λ = x[n:] @ x[: (n - 1) - 1]"),
        ("λ = x[n:] @ x[: n - 1]", "λ = x[n:] @ x[: n]"),
        ("return min(λ, max(x)) * 3 + n", "return max(λ, max(x)) * 3 + n"),
        ("return min(λ, max(x)) * 3 + n", "return min(λ, max(x)) / 3 + n"),
        ("return min(λ, max(x)) * 3 + n", "return (min(λ, max(x)) * 3)"),
    ],
)
def test_an_error_of_each_kind_is_made(right, wrong, mutants):
    assert any(m.scope == "f" and m.right == right and wrong in m.wrong for m in mutants)


def test_every_mutant_changes_the_lines_it_names_and_nothing_else(mutants, places):
    lines = [line.strip() for line in SOURCE.splitlines()]
    for mutant in mutants:
        changed = [line.strip() for line in mutant.source(SOURCE.encode()).decode().splitlines()]
        place = next(i for i, (a, b) in enumerate(zip(lines, changed, strict=False)) if a != b)
        assert (lines[place], changed[place]) == (mutant.right, mutant.wrong)
        assert lines[place + 1 :] == changed[place + 1 :]


def test_words_annotations_assertions_and_messages_stay(mutants):
    kept = ('"""', "TYPE_CHECKING", "a = 1", "assert", "return 1 + 1")
    assert not any(mutant.right.startswith(kept) for mutant in mutants)
    assert not any("x + 1} came" in m.right and m.wrong != "pass" for m in mutants)


def test_a_seed_chooses_by_the_text_of_a_mutant_alone(command, tmp_path):
    (tmp_path / "refattn").mkdir()
    path = tmp_path / "refattn" / "masks.py"

    def chosen(seed, source):
        path.write_text(source, encoding="utf-8")
        return [mutant.key for _, mutant in command.choose(tmp_path, seed, [])]

    before = chosen(0, SOURCE)
    assert len(before) > 20
    assert sorted(before) == sorted(chosen(1, SOURCE))
    assert before != chosen(1, SOURCE)
    assert [key for key in chosen(0, "b = 5\n" + SOURCE) if key[1] != "module"] == before


def test_equivalents_are_read_as_mutants_are_printed(command, mutants):
    text = "# a comment\n\n" + "\n\n".join(f"{mutant}\n  because\n  it is" for mutant in mutants[:9])
    assert command.equivalents(text) == {mutant.key: "because it is" for mutant in mutants[:9]}


def test_every_equivalent_that_is_kept_has_a_reason(command):
    found = command.equivalents(command.EQUIVALENT.read_text("utf-8"))
    assert all(reason and right != wrong for (_, _, right, wrong), reason in found.items())
