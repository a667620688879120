"""The grid: which options meet, where lengths lie, which cases a text names, which rows are judged."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from refattn.testing import check_attention
from refattn.testing.conformance.covering import covering, pairs
from refattn.testing.conformance.crossed_cases import CROSSED, FORBIDDEN, OPTIONS
from refattn.testing.conformance.long_cases import TILES
from refattn.testing.conformance.operation import Sample
from refattn.testing.conformance.precision import PRECISIONS
from refattn.testing.conformance.registry import OPERATIONS
from refattn.testing.conformance.sampling import sample_of
from refattn.testing.conformance.selection import matches

DENSE = OPERATIONS["dense"]


def case_named(name):
    return next(case for case in DENSE.cases if case.name == name)


@pytest.mark.parametrize(
    ("options", "forbidden"),
    [
        (OPTIONS, FORBIDDEN),
        ({"a": [0, 1, 2], "b": [0, 1], "c": [0, 1, 2, 3]}, ((("a", 2), ("c", 3)), (("b", 1), ("c", 2)))),
    ],
    ids=["dense", "small"],
)
def test_every_pair_of_values_meets_and_no_forbidden_one(options, forbidden):
    rows = covering(options, forbidden)
    met = {frozenset(pair) for row in rows for pair in combinations(row.items(), 2)}
    barred = {frozenset(pair) for pair in forbidden}
    assert met == {frozenset(pair) for pair in pairs(options)} - barred
    assert rows == covering(options, forbidden)


def test_the_crossed_cases_are_few():
    assert len(CROSSED) < 40
    assert len({case.name for case in CROSSED}) == len(CROSSED)


def test_no_two_cases_have_one_name():
    for operation in OPERATIONS.values():
        names = [case.name for case in operation.cases]
        assert len(set(names)) == len(names)


def test_lengths_lie_at_below_and_above_a_multiple_of_every_tile():
    lengths = {case.n for case in DENSE.cases if case.profile == "standard"}
    for tile in TILES:
        edges = [n for n in lengths if n % tile == 0 and n % (2 * tile) and n > tile and {n - 1, n + 1} <= lengths]
        assert edges, tile
    assert max(lengths) == 4096
    assert {case.shape.n_k for case in DENSE.cases if "decode" in case.tags} >= {100, 513, 4096}


@pytest.mark.parametrize(
    ("text", "name", "there"),
    [
        ("k = 1", "n = 96, k = 12", False),
        ("k = 1", "k = 1", True),
        ("k = 2", "k = 2.5", False),
        ("n = 6", "causal, n = 64", False),
        ("10⁴", "logits of 10⁴, full", True),
        ("causal, n =", "causal, n = 64", True),
        ("group", "grouped heads, 4 on 2", False),
        ("grouped", "one key-value head for 4", True),  # its tag
        ("mask", "mask: random", True),
    ],
)
def test_a_text_names_cases_by_their_tags_and_by_whole_words(text, name, there):
    cases = [case for operation in OPERATIONS.values() for case in operation.cases if case.name == name]
    assert any(matches(text, case) for case in cases) is there


@pytest.mark.parametrize(
    "options", [{"only": "no such"}, {"skip": " "}, {"without": "groups"}, {"only": "long"}], ids=str
)
def test_a_text_that_no_case_has_is_refused(options, kernels):
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: no case"):
        check_attention(kernels.attention, "dense", profile="quick", **options)


def test_a_feature_that_is_lacking_leaves_its_cases_out(kernels):
    def equal_heads(q, k, v, **options):
        assert q.shape[1] == k.shape[1]
        return kernels.attention(q, k, v, **options)

    report = check_attention(equal_heads, "dense", profile="quick", without=["grouped", "batch"])
    assert report.passed
    left_out = [case for case in report.cases if case.verdict == "not run" and case.kind != "option"]
    assert all("left out: without" in case.reason for case in left_out)
    assert {case.case for case in left_out} >= {"one key-value head for 4", "batch of 3", "real heads, group 0"}


def problem_and_upstream(n=300, n_k=260, mask=None):
    case = case_named("grouped heads, 6 on 2, full")
    problem = replace(case, shape=replace(case.shape, n=n, n_k=n_k)).build(n, 3)
    problem.options["mask"] = mask
    return problem, problem.upstream(PRECISIONS["float64"])


@pytest.mark.parametrize("of", ["truth", "plain"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_rows_of_a_sample_are_those_of_the_whole(of, masked, monkeypatch):
    monkeypatch.setattr("refattn.testing.conformance.sampled.AT_ONCE", 50_000)  # several blocks
    mask = np.random.default_rng(0).random((1, 6, 300, 260)) < 0.5 if masked else None
    problem, upstream = problem_and_upstream(mask=mask)
    sample = Sample(np.array([0, 7, 64, 255, 299]), np.array([0, 1, 100, 259]))
    sampled = replace(problem, sample=sample)
    if of == "truth":
        whole, rows = DENSE.truth(problem, upstream), DENSE.truth(sampled, upstream)
    else:
        float64 = PRECISIONS["float64"]
        whole, rows = DENSE.plain(problem, upstream, float64), DENSE.plain(sampled, upstream, float64)
    for name, expected in sample.of(whole).items():
        np.testing.assert_allclose(rows[name], expected, rtol=0, atol=1e-13 * np.abs(whole[name]).max(), err_msg=name)


def test_the_row_that_is_most_wrong_is_in_the_sample_wherever_it_is():
    problem, upstream = problem_and_upstream()
    whole = DENSE.whole(problem, upstream)
    for name in whole:
        got = {x: a.copy() for x, a in whole.items()}
        place = 137 if name in ("out", "dq") else 139
        got[name][0, 1, place] *= 1 + 1e-6
        assert place in sample_of(problem, got, whole).rows(name), name


@pytest.mark.parametrize("row", [256, 1000, 1531])
@pytest.mark.parametrize("result", [0, 2], ids=["dq", "dv"])
def test_one_wrong_row_of_a_long_gradient_is_found(row, result, kernels):
    forward, right = kernels.dense()

    def backward(*arrays, **options):
        gradients = right(*arrays, **options)
        if gradients[result].shape[-2] > row:
            gradients[result][..., row, :] *= 1.01
        return gradients

    report = check_attention(forward, "dense", backward=backward, only="tiles of 512, n = 1536, full", takes="n=1536")
    (failure,) = report.failures
    assert [(j.result, j.row[-1]) for j in failure.judgements if not j.passed] == [(("dq", "dk", "dv")[result], row)]
    assert "rows by query" in failure.sampled


def test_zeros_from_row_256_on_are_found(kernels):
    def kernel(*arrays, **options):
        out = kernels.attention(*arrays, **options)
        out[..., 256:, :] = 0
        return out

    assert check_attention(kernel, "dense", profile="quick").passed
    report = check_attention(kernel, "dense", only=["n = 384", "n = 383"])
    assert report.counts()["fail"] == 2
    assert report.shrunk.n == 257
