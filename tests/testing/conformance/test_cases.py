"""Cases one by one, as test suites take them: the plain functions, and the plugin of pytest in a suite of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refattn
from refattn.testing import check_attention, check_case, list_cases
from refattn.testing.conformance.cases import plain_words
from refattn.testing.conformance.registry import OPERATIONS


def attention(q, k, v, *, causal, scale):
    return refattn.dense_attention(q, k, v, mask="causal" if causal else "full", scale=scale)


def off_by_one(q, k, v, *, causal, scale):
    mask = np.tri(q.shape[-2], k.shape[-2], k=1, dtype=bool) if causal else "full"
    return refattn.dense_attention(q, k, v, mask=mask, scale=scale)


def backward(dout, q, k, v, *, causal, scale):
    _, cache = refattn.dense_attention_forward(q, k, v, mask="causal" if causal else "full", scale=scale)
    return refattn.dense_attention_backward(dout, cache)


@pytest.mark.parametrize("spec", OPERATIONS)
def test_every_case_has_a_name_of_its_own_that_pytest_s_expressions_take(spec):
    names = [str(case) for case in list_cases(spec, profile="long", seeds=[0, 7])]
    assert len(set(names)) == len(names)
    assert [name for name in names if not re.fullmatch(r"[\w.+/-]+", name)] == []
    assert names == [str(case) for case in list_cases(spec, profile="long", seeds=[0, 7])]


def test_signs_and_powers_stay_apart_in_names():
    assert plain_words("scale −0.25") != plain_words("scale 0.25")
    assert plain_words("values of 10³") == "values-of-1e3"


def test_the_cases_one_by_one_are_those_of_the_check_and_come_to_the_same():
    said = {"profile": "quick", "takes": "n%32, d=16", "without": ["grouped"], "only": ["ordinary", "mask"]}
    whole = check_attention(off_by_one, "dense", **said)
    cases = list_cases("dense", **said)
    reports = [check_case(off_by_one, case) for case in cases]
    ran = [case for case in whole.cases if not case.reason.startswith("left out")]
    assert [r.cases[0] for r in reports] == ran
    assert {r.causes[0].name for r in reports if r.failures} == {"mask off by one (sees one later key)"}


def test_a_case_alone_is_made_smaller_on_request_within_what_is_taken():
    (case,) = list_cases("dense", profile="quick", takes="n%32", only="causal, n = 127")
    assert check_case(off_by_one, case).shrunk is None
    report = check_case(off_by_one, case, shrink=True)
    assert report.shrunk.n == 32
    assert report.short().count("\n") <= 4


def test_inputs_and_truth_are_those_that_the_check_gives_and_judges_by():
    (case,) = list_cases("dense", profile="quick", only="4 on 2", seeds=3)
    given = []

    def spy(q, k, v, *, causal, scale):
        given.append((q, k, v))
        return attention(q, k, v, causal=causal, scale=scale)

    check_case(spy, case, backward=backward)
    inputs, options = case.inputs(), case.options()
    assert options.pop("mask") is None
    for one, other in zip(inputs.values(), given[0], strict=True):
        np.testing.assert_array_equal(one, other)
    truth = case.truth()
    assert list(truth) == ["out", "dq", "dk", "dv"]
    exact = {name: array.astype(np.float64) for name, array in inputs.items()}
    np.testing.assert_allclose(truth["out"], attention(**exact, **options), atol=1e-13)
    dk = backward(case.upstream().astype(np.float64), **exact, **options)[1]
    np.testing.assert_allclose(truth["dk"], dk, atol=1e-12)
    assert (case.inputs("bfloat16")["q"] != inputs["q"]).any()


def test_the_truth_of_a_long_case_is_refused():
    (case,) = list_cases("dense", only="129 queries, 1537 keys")
    assert case.truth()["out"].shape[-2] == 129
    (case,) = list_cases("dense", only="tiles of 512, n = 1537")
    with pytest.raises(ValueError, match="too many logits"):
        case.truth()


def test_what_is_refused_or_not_taken_is_no_pass():
    def narrow(q, k, v, *, causal, scale):
        raise RuntimeError("unsupported")

    (case,) = list_cases("dense", profile="quick", only="causal, n = 16")
    report = check_case(narrow, case)
    assert (report.passed, report.counts()["refused"]) == (False, 1)
    assert "refused: raised RuntimeError: unsupported (causal, n = 16)" in report.short()
    assert check_case(narrow, case, strict=True).failures
    (masked,) = list_cases("dense", profile="quick", only="mask: random and causal")
    assert check_case(attention, masked).counts()["not run"] == 1


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"case": "causal, n = 16"}, TypeError, "case: str came"),
        ({"profile": "quick"}, TypeError, "check_case: profile came; its options are backward"),
        ({"shrink": 1}, TypeError, "shrink"),
        ({"dtype": "float64"}, ValueError, "dtype: float64 came, which is not among the dtypes of takes"),
        ({"device": "cuda"}, ValueError, "device: 'cuda' came with arrays='numpy'"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrong_argument_is_refused_by_name(options, error, match):
    (case,) = list_cases("dense", profile="quick", takes={"dtypes": ["float32"]}, only="causal, n = 16")
    with pytest.raises(error, match=match):
        check_case(attention, **{"case": case, **options})


SUITE = """
import numpy as np
import pytest
import refattn
from refattn.testing.pytest_plugin import conformance_cases

CASES = conformance_cases("dense", profile="quick", only=["ordinary", "mask: random"], skip="causal, n = 2")

def kernel(q, k, v, *, causal, scale):
    if q.shape[-1] != v.shape[-1]:
        raise RuntimeError("d_v is d")
    mask = "causal" if causal and q.shape[-2] != 65 else "full"
    return refattn.dense_attention(q, k, v, mask=mask, scale=scale)

@pytest.mark.parametrize("conformance_case", CASES)
def test_kernel(conforms):
    conforms(kernel)

@pytest.mark.parametrize("conformance_case", conformance_cases("dense", profile="quick", only="causal, n = 63"))
def test_by_hand(conformance_case, conformance_inputs, conformance_truth):
    options = conformance_case.options()
    assert options.pop("mask") is None
    out = kernel(**conformance_inputs, **options)
    np.testing.assert_allclose(out, conformance_truth["out"], atol=1e-5)

def test_without_a_case(conforms):
    pass
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Run pytest in a suite of its own that asks for the plugin."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "conftest.py").write_text('pytest_plugins = ["refattn.testing.pytest_plugin"]\n', encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers -rs -W error\n", encoding="utf-8")
    (folder / "test_kernel.py").write_text(SUITE, encoding="utf-8")
    place = str(Path(refattn.__file__).parents[1])
    path = {"PYTHONPATH": os.pathsep.join([place, os.environ.get("PYTHONPATH", "")])}

    def run(*arguments):
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
        return subprocess.run(command, cwd=folder, env=kept | path, capture_output=True, text=True, check=False).stdout

    return run


@pytest.mark.slow
def test_a_suite_has_a_test_for_every_case_and_a_short_failure(suite):
    said = suite()
    assert "_ test_kernel[ordinary-causal-n65] _" in said
    assert "cause: future leak: causal attention sees every later key (1 of 1 failing cases)" in said
    assert "expected [" not in said
    assert "refused: raised RuntimeError: d_v is d" in said
    assert "not run: the function takes no mask" in said
    assert "left out, as asked" in said
    assert "the test needs @pytest.mark.parametrize('conformance_case', conformance_cases(…))" in said
    again = suite("--lf", "-vv", "-k", "n65")  # -q is one of them
    assert "expected [" in again
    assert "1 failed" in again


@pytest.mark.slow
def test_tags_choose_cases(suite):
    assert re.search(r"^3 passed, \d+ deselected", suite("-k", "grouped and not mask"), re.MULTILINE)


@pytest.mark.long
def test_processes_share_the_cases(suite):
    assert re.search(r"1 failed, \d+ passed, \d+ skipped", suite("-n", "2", "-k", "test_kernel and not without"))
