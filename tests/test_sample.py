"""The sample that runs where nothing is asked for: something of every test that is quick, and of every room."""

import ast
from pathlib import Path
from types import SimpleNamespace

from lengths import sample

HERE = Path(__file__).parent


def item(name, *marks):
    return SimpleNamespace(nodeid=name, get_closest_marker=lambda mark: mark in marks)


def test_two_sets_of_parameters_of_every_test_that_is_not_slow():
    many = [item(f"a.py::test_many[{i}]") for i in range(100)]
    few = [item("a.py::test_one"), item("b.py::test_two[x]"), item("b.py::test_two[y]")]
    slow = [item("b.py::test_slow[0]", "slow"), item("b.py::test_slow[1]", "slow")]
    assert list(sample([*many, *few, *slow])) == [many[0], many[99], *few]


def test_every_room_has_tests_that_are_neither_slow_nor_long():
    for room in {file.parent for file in HERE.rglob("test_*.py")}:
        assert any(_quick(file) for file in room.glob("test_*.py")), room


def _quick(file):
    for one in ast.parse(file.read_text("utf-8")).body:
        if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"):
            marks = {ast.unparse(mark).partition("(")[0] for mark in one.decorator_list}
            if not {"pytest.mark.slow", "pytest.mark.long", "pytest.mark.campaign"} & marks:
                return True
    return False
