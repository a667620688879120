"""A kernel that aborts, hangs, writes where it may not, or follows another convention."""

import faulthandler
import os
import time

import numpy as np
import pytest

from refattn import dense_attention_forward
from refattn.testing import assert_conforms, check_attention

fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that are copies of this one")


@fork
def test_an_abort_and_a_hang_are_verdicts_and_the_check_goes_on(kernels):
    def kernel(q, k, v, **options):
        if q.shape[-2] == 3:
            faulthandler.disable()  # the abort is meant: no traceback in the tests' output
            os.abort()
        if q.shape[-2] == 63:
            time.sleep(600)
        if q.shape[-2] == 65:
            os._exit(3)
        if q.shape[-2] == 127:
            raise KeyError("q")
        return kernels.attention(q, k, v, **options)

    only = [f"causal, n = {n}" for n in (2, 3, 63, 64, 65, 127)]
    report = check_attention(kernel, "dense", only=only, timeout=4.0)
    found = {case.n: (case.verdict, case.reason) for case in report.cases}
    assert found == {
        2: ("pass", ""),
        3: ("fail", "the process ended with signal SIGABRT"),
        63: ("fail", "timed out after 4 s"),
        64: ("pass", ""),
        65: ("fail", "the process ended with exit status 3"),
        127: ("refused", "raised KeyError: 'q'"),
    }
    assert report.shrunk is None


@fork
def test_what_is_found_in_a_child_process_is_what_is_found_here(kernels):
    forward, backward = kernels.dense()

    def wrong(*arrays, **options):
        arrays[1][...] *= 1.5
        return forward(*arrays, **options)

    options = {"only": ["n = 16", "4 on 2", "mask: random"], "profile": "quick"}
    assert_conforms(forward, "dense", backward=backward, isolate=True, **options)
    reports = [check_attention(wrong, "dense", isolate=isolate, **options) for isolate in (False, True)]
    assert {case.reason for case in reports[0].cases} == {"the input k was written to"}
    assert [case.reason for case in reports[0].cases] == [case.reason for case in reports[1].cases]


def test_a_backward_that_raises_leaves_the_verdict_of_the_forward(kernels):
    forward, _ = kernels.dense()

    def backward(dout, q, k, v, *, causal, scale, mask):
        raise RuntimeError("not on this device")

    report = check_attention(forward, "dense", backward=backward, only=["n = 16", "n = 64"])
    assert report.counts()["pass"] == 3
    assert not report.passed  # not one gradient was judged
    assert "gradients refused: raised RuntimeError: not on this device (causal, n = 16, " in str(report)
    strict = check_attention(forward, "dense", backward=backward, only="n = 16", strict=True)
    assert strict.failures[0].reason == "backward raised RuntimeError: not on this device"


def test_numpy_arrays_given_to_pytorch_are_hinted_at():
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    report = check_attention(lambda q, k, v: torch.softmax(q, -1), "dense", only="n = 16")
    assert report.cases[0].reason.endswith("it was given NumPy arrays: pass arrays='torch'")


EMPTY = {"zeros": 0.0, "nan": np.nan, "mean": None}


@pytest.mark.parametrize("gives", EMPTY)
@pytest.mark.parametrize("convention", ["zeros", "mean", "nan", "skip"])
def test_rows_that_see_nothing_follow_the_convention_that_is_named(gives, convention, kernels):
    def kernel(q, k, v, *, causal, scale, mask):
        out = kernels.attention(q, k, v, causal=causal, scale=scale, mask=mask)
        seen = mask & np.tri(*mask.shape, dtype=bool) if causal else mask
        empty = ~seen.any(axis=-1)
        mean = np.repeat(v.mean(axis=-2, keepdims=True), q.shape[1] // v.shape[1], axis=1)
        out[..., empty, :] = mean if EMPTY[gives] is None else EMPTY[gives]
        return out

    report = check_attention(kernel, "dense", only="empty-rows", empty_rows=convention)
    assert report.counts()["pass" if convention in (gives, "skip") else "fail"] == 2


def test_only_the_rows_that_see_nothing_are_let_off(kernels):
    def kernel(q, k, v, **options):
        out = kernels.attention(q, k, v, **options)
        out[..., 1, :] *= 1.01
        return out

    for convention in ("mean", "nan", "skip"):
        assert check_attention(kernel, "dense", only="empty-rows", empty_rows=convention).counts()["fail"] == 2


def test_gradients_beside_rows_of_means_are_judged(kernels):
    forward, right = kernels.dense()

    def kernel(q, k, v, *, causal, scale, mask):
        out = forward(q, k, v, causal=causal, scale=scale, mask=mask)
        seen = mask & np.tri(*mask.shape, dtype=bool) if causal else mask
        mean = np.repeat(v.mean(axis=-2, keepdims=True), q.shape[1] // v.shape[1], axis=1)
        return np.where(seen.any(axis=-1)[:, None], out, mean)

    options = {"only": "empty-rows", "empty_rows": "mean"}
    assert_conforms(kernel, "dense", backward=right, **options)
    wrong = check_attention(kernel, "dense", backward=lambda *a, **o: [1.01 * g for g in right(*a, **o)], **options)
    assert len(wrong.failures) == 2


@pytest.mark.parametrize("names", [None, {"causal": "is_causal", "scale": "s", "mask": "bias"}], ids=["known", "given"])
def test_parameters_may_have_other_names(names, kernels):
    def known(q, k, v, attn_mask=None, is_causal=True, sm_scale=None):
        return kernels.attention(q, k, v, causal=is_causal, scale=sm_scale or q.shape[-1] ** -0.5, mask=attn_mask)

    def given(q, k, v, bias, is_causal, s):
        return known(q, k, v, bias, is_causal, s)

    only = ["n = 16", "scale given", "mask: random"]
    report = assert_conforms(known if names is None else given, "dense", names=names, only=only)
    assert report.counts()["not run"] == 0


def test_a_log_sum_exp_may_come_beside_the_output(kernels):
    def two(q, k, v, **options):
        ones = np.ones((*k.shape[:-1], 1), k.dtype)
        rule = ["causal" if options["causal"] else "full", options["mask"]]
        rule = tuple(part for part in rule if part is not None)
        _, cache = dense_attention_forward(q, k, ones, mask=rule, scale=options["scale"])
        return kernels.attention(q, k, v, **options), cache.log_sum_exp

    def one_head(q, k, v, **options):
        out, lse = two(q[None, None], k[None, None], v[None, None], **options)
        return out[0, 0], lse[0, 0]

    assert_conforms(two, "dense", returns="out, lse", only=["n = 16", "4 on 2"])
    assert_conforms(one_head, "dense", returns="out, lse", adapter="(N, D)", only="4 on 2")
    report = check_attention(two, "dense", only="n = 16")
    assert report.failures[0].reason == "2 results came, 1 (out) were wanted; say returns='out, lse' if they are these"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"empty_rows": "ones"}, "empty_rows"),
        ({"profile": "huge"}, "profile"),
        ({"claims": "fast"}, "claims"),
        ({"names": {"windows": "w"}}, "names"),
        ({"returns": "lse"}, "returns"),
        ({"timeout": 0}, "timeout"),
        ({"strict": "yes"}, "strict"),
        ({"isolate": 1}, "isolate"),
        ({"names": {"mask": 3}}, "names"),
        ({"without": [3]}, "without"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_refused_by_name(options, told, kernels):
    with pytest.raises((TypeError, ValueError), match=f"^{told}"):
        check_attention(kernels.attention, "dense", **options)
