"""Terms against n: what is known of an input comes out, exponents are those of curves that are made with one."""

from itertools import pairwise

import numpy as np
import pytest

from refattn.experiments.conv import terms_against_n as terms


def needed(kind, n, methods=("uniform",), scale="1/sqrt(d)", tolerance=0.1):
    found = terms.terms_needed(terms.structured(kind, n, 0), scale, methods, [tolerance])
    return {one["method"]: one["k"] for one in found}


@pytest.mark.parametrize("n", [130, 512])
def test_sixteen_segments_take_sixteen_terms_at_any_length(n):
    assert needed("16 segments", n) == {"uniform": 16}


@pytest.mark.parametrize("n", [256, 512])
def test_segments_of_one_length_take_as_many_terms_as_there_are(n):
    assert needed("64 tokens each", n) == {"uniform": n // 64}


def test_segments_that_double_take_few_terms_where_they_begin():
    head, starts = terms.structured("doubling segments", 512, 0), terms.STARTS["doubling segments"](512)
    assert starts.tolist() == [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
    (found,) = terms.with_known_starts(head, "1/sqrt(d)", starts, [1e-5])
    assert found["k"] == 10
    assert needed("doubling segments", 512)["uniform"] > 100


def test_without_structure_nearly_every_column_is_a_term():
    assert min(needed("independent", 128, ("first", "uniform")).values()) >= 112


def test_a_tolerance_that_nothing_meets_is_said():
    found = list(terms.terms_needed(terms.structured("independent", 512, 0), "1/sqrt(d)", ["best"], [0.01, 5.0]))
    assert [(one["tolerance"], one["k"]) for one in found] == [(5.0, 1), (0.01, None)]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_exponent_is_that_of_the_curve(power):
    curves = [{n: size * n**power for n in (128, 512, 2048)} for size in (1, 2, 3)]
    assert terms.exponent(curves) == pytest.approx((power, power, power, 3), abs=1e-6)


def test_the_interval_holds_the_median_and_widens_with_the_heads():
    curves = [{n: n**power for n in (128, 512)} for power in (0.1, 0.5, 0.6, 0.9)]
    found = terms.exponent(curves)
    assert found.low < found.value == 0.55 < found.high


def test_the_ladder_ends_at_every_column():
    for n in (1, 2, 7, 128, 4096):
        rungs = terms.ladder(n)
        assert rungs == sorted(set(rungs))
        assert (rungs[0], rungs[-1]) == (1, n)
        assert all(b <= max(a + 1, 1.6 * a) for a, b in pairwise(rungs))


def test_items_have_every_input_and_the_encoder_no_more_than_its_positions():
    found = terms.items([512, 1024])
    assert {one["inputs"] for one in found if one["n"] == 1024} == {"decoder", *terms.KINDS}
    assert {one["inputs"] for one in found if one["n"] == 512} == {"decoder", "encoder", *terms.KINDS}
    assert len({tuple(one.values()) for one in found}) == len(found)


def test_a_structured_item_names_its_draws_and_its_running_mean():
    records = terms.run({"n": 64, "inputs": "16 segments", "layer": None, "scale": "1/d"})
    assert {one["head"] for one in records} == {"0", "1", "2"}
    assert len(records) == 3 * (len(terms.METHODS) + 1) * len(terms.TOLERANCES)
    assert all(one["k"] == 16 and one["error"] < 1e-5 for one in records if one["method"] == "known")
    assert all(0 < one["mean"] < 1 for one in records)


def test_an_unknown_structure_is_refused():
    with pytest.raises(ValueError, match="kind: 'banded' came"):
        terms.structured("banded", 64, 0)


def test_a_length_beyond_memory_is_refused_with_the_estimate():
    (item, *_) = terms.items([10**10])
    with pytest.raises(MemoryError, match=r"terms-against-n: n = 10000000000: about .* of memory would be needed"):
        terms.run(item)


def test_of_several_ways_the_fewest_terms_count():
    row = {"inputs": "a", "scale": "1/d", "head": "0", "tolerance": 0.1}
    rows = [{**row, "n": n, "k": k} for n in (8, 16) for k in (n, n // 2, None)]
    assert terms.fewest(rows, 0.1) == {("a", "1/d", "0"): {8: 4, 16: 8}}
    assert np.isclose(terms.exponent(terms.fewest(rows, 0.1).values()).value, 1.0)
