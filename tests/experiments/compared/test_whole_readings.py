"""Readings of the records of whole models: quotients are within rounds, overtaking lasts, searches end or do not."""

import pytest

from refattn.experiments import tables
from refattn.experiments.compared import whole_readings as readings


def timed(n, place, method, k, seconds, attention, **more):
    item = {"model": "decoder", "n": n, "part": "time", "round": place}
    return {**item, "method": method, "k": k, "layers": 30, "seconds": seconds, "attention": attention, **more}


ROWS = [
    # three rounds, of which the second was disturbed from its beginning to its end
    *(
        row
        for place, slow in enumerate((1.0, 10.0, 1.0))
        for row in (
            timed(100, place, "exact", None, 2.0 * slow, 1.0 * slow, megabytes=5.0),
            timed(100, place, "conv", 16, 4.0 * slow, 3.0 * slow, megabytes=6.0, error=0.9),
            timed(100, place, "SparseK", 128, 1.0 * slow, 0.25 * slow, megabytes=4.0, error=0.1),
        )
    ),
    timed(200, 0, "exact", None, 8.0, 4.0),
    timed(200, 0, "conv", 16, 6.0, 3.0),
    timed(200, 0, "SparseK", 128, 9.0, 5.0),
    timed(400, 0, "exact", None, 32.0, 16.0),
    timed(400, 0, "conv", 16, 16.0, 8.0),
    timed(400, 0, "SparseK", 128, 16.0, 1.0),
    *(
        {"model": "decoder", "n": 100, "part": "search", "starts": "first", **row}
        for row in (
            {"method": "exact", "k": None, "seconds": 2.0, "attention": 1.0},
            {"method": "conv", "k": 25, "seconds": 3.0, "attention": 2.0, "error": 0.45},
            {"method": "conv", "k": 50, "seconds": 5.0, "attention": 4.0, "error": 0.55},
            {"method": "conv", "k": 100, "seconds": 9.0, "attention": 8.0, "error": 0.0},
        )
    ),
]


def test_a_disturbed_round_changes_no_quotient():
    found = readings.timings(ROWS)["decoder", 100, "conv, k = 16"]
    assert (found.quotient, found.of_attention, found.share) == (2.0, 3.0, 0.75)
    assert (found.tokens, found.megabytes, found.error, found.layers) == (25.0, 6.0, 0.9, 30)


def test_a_method_overtakes_where_it_stays_ahead():
    found = readings.overtakes(ROWS)
    assert found == {("decoder", "conv, k = 16"): 200, ("decoder", "SparseK"): 400}  # not 100: at 200 it is behind
    assert readings.overtakes(ROWS[:9])["decoder", "conv, k = 16"] is None


@pytest.mark.parametrize(("tolerance", "right"), [(0.5, (25, 1.5)), (0.1, (None, None))])
def test_a_search_says_its_least_k_or_that_there_is_none(tolerance, right):
    assert readings.searched(ROWS, tolerance) == {("decoder", 100, "first"): right}


def test_what_is_the_same_work_is_taken_for_the_same_time():
    rows = [
        timed(100, 0, "exact", None, 9.0, 1.0),
        timed(100, 0, "conv", 16, 3.0, 2.0),
        timed(100, 0, "x", 1, 4.0, 2.0),
    ]
    found = readings.timings(rows)  # the rest took 8, 1 and 2
    assert found["decoder", 100, "conv, k = 16"].quotient == pytest.approx(4 / 3)
    assert found["decoder", 100, "exact"].tokens == pytest.approx(100 / 3)


def test_half_of_the_columns_are_called_so():
    assert readings.method_name({"method": "conv", "k": 50, "n": 100}) == "conv, k = n/2"
    assert readings.method_name({"method": "conv", "k": 16, "n": 32}) == "conv, k = 16"
    assert readings.method_name({"method": "conv", "k": 8, "n": 8}) == "conv, k = 8"
    assert readings.method_name({"method": "low rank", "k": 256, "n": 100}) == "low rank"


def test_tables_have_a_line_for_everything():
    assert len(tables.whole_models(ROWS).splitlines()) == 2 + 9
    assert (
        tables.whole_models_searched(ROWS).splitlines()[-1] == "| decoder | 100 | first | 25 | 1.5 | none below n | – |"
    )
    assert "| decoder | SparseK | from n = 400 |" in tables.whole_models_overtaken(ROWS)


def test_terms_are_tabled_by_length_with_their_exponent():
    row = {"inputs": "a", "scale": "1/d", "head": "0", "mean": 0.3}
    rows = [{**row, "n": n, "tolerance": t, "k": n} for n in (8, 16) for t in (0.1, 0.5)]
    lines = tables.terms_against_n(rows).splitlines()
    assert lines[2] == "| a | 1/d | 10% | 1 | 8 | 16 | 1.00 | 1.00 … 1.00 |"
    assert len(lines) == 4
