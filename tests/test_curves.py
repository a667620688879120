"""The page of asv's curves shows what the results hold: the latest of each benchmark, every number, no network."""

import importlib.util
import json
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
FILE = Path(__file__).parents[1] / "asv_benchmarks" / "curves.py"
if not FILE.exists():
    pytest.skip("only in the sources", allow_module_level=True)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("curves", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


KNOWN = {
    "conv.A.time_a": {"unit": "seconds", "param_names": ["implementation", "n", "dtype"]},
    "conv.A.track_b": {"unit": "unit", "param_names": []},
    "conv.A.time_gone": {"unit": "seconds", "param_names": ["n"]},
    "version": 2,
}
PARAMS = [["'fast'", "'torch'"], ["16", "256"], ["'float32'", "'float64'"]]


@pytest.fixture
def results(tmp_path):
    """A folder of two commits, of which the second has one benchmark again, and one that was not finished."""

    def record(commit, date, results):
        text = json.dumps({"commit_hash": commit, "date": date, "results": results})
        (tmp_path / "me" / f"{commit}-env.json").write_text(text)

    (tmp_path / "me").mkdir()
    (tmp_path / "benchmarks.json").write_text(json.dumps(KNOWN))
    (tmp_path / "me/machine.json").write_text(json.dumps({"cpu": "a < b", "num_cpu": "2", "os": "Linux"}))
    record("bbbbbbbbbb", 2_000_000_000_000, {"conv.A.time_a": [[1.0, 2.0, 3.0, None, 5.0, 0.0, 7.0, math.nan], PARAMS]})
    older = {"conv.A.time_a": [[9.0] * 8, PARAMS], "conv.A.track_b": [[-4.5], []]}
    record("aaaaaaaaaa", 1_000_000_000_000, older | {"conv.A.time_gone": [None, [["1", "2"]]], "conv.A.x": [[1.0], []]})
    return tmp_path / "me"


def test_the_latest_result_of_each_benchmark_is_taken_and_what_is_no_number_left_out(tool, results):
    found, _ = tool.latest(results)
    assert {name: (one.commit, one.date) for name, one in found.items()} == {
        "conv.A.time_a": ("bbbbbbbb", "2033-05-18"),
        "conv.A.track_b": ("aaaaaaaa", "2001-09-09"),
    }
    assert found["conv.A.time_a"].values == {
        ("fast", "16", "float32"): 1.0, ("fast", "16", "float64"): 2.0, ("fast", "256", "float32"): 3.0,
        ("torch", "16", "float32"): 5.0, ("torch", "16", "float64"): 0.0, ("torch", "256", "float32"): 7.0,
    }  # fmt: skip


def test_a_chart_has_a_curve_for_every_implementation_and_one_stands_for_every_dtype(tool, results):
    (chart,), left = tool.charts(tool.latest(results)[0]["conv.A.time_a"])
    assert (chart.fixed, chart.x, chart.result.y) == ("float32", "n", "seconds")
    assert [(c.name, c.points) for c in chart.curves] == [
        ("fast", ((16.0, 1.0), (256.0, 3.0))),
        ("torch", ((16.0, 5.0), (256.0, 7.0))),
    ]
    assert left == {("fast", "16", "float64"): 2.0, ("torch", "16", "float64"): 0.0}
    assert chart.table == [["fast", "torch"], [(16.0, [1.0, 5.0]), (256.0, [3.0, 7.0])]]


def test_what_has_no_curve_is_a_line_of_a_table_and_text_is_escaped(tool, results):
    page = tool.render(results)
    assert '<th scope="row">A.track_b</th><td></td><td>-4.5</td>' in page
    assert "a &lt; b" in page


def test_the_page_of_the_repository_has_every_number_and_asks_for_nothing(tool):
    folder = FILE.parent / "results" / "release"
    page = tool.render(folder)
    assert not re.search(r"https?:|url\(|<script|@import|src=", page)
    for result in tool.latest(folder)[0].values():
        assert result.name.partition(".")[2] in page
        for value in result.values.values():
            assert f">{tool.number(value)}" in page
