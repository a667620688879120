"""Properties beyond values: bits, batches, prefixes, memory."""

import numpy as np
import pytest

from refattn.testing import assert_conforms, check_attention


def verdicts(report):
    return {case.case: (case.verdict, case.reason) for case in report.cases if case.verdict != "pass"}


ASKED = {
    "memory around the output": ("not run", "the function takes no out"),
    "NaN in masked keys": ("not run", "a convention: claims='nan-safe' asks for it"),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_right_kernel_has_them_in_every_dtype(dtype, kernels):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs the extra 'test'")
    report = assert_conforms(kernels.attention, "dense", dtype=dtype, only="property")
    assert verdicts(report) == ASKED


def test_our_own_paths_have_them(kernels):
    for spec, (forward, backward) in {"dense": kernels.dense(), "sparsek": kernels.sparsek_public("fast")}.items():
        claims = ["deterministic", "batch-invariant"] + (["prefix-invariant"] if spec == "sparsek" else [])
        assert_conforms(forward, spec, backward=backward, only="property", claims=claims)


def caught(kernel, case, told, **options):
    report = check_attention(kernel, "dense", only="property", **options)
    assert verdicts(report)[case][0] == "fail"
    assert told in verdicts(report)[case][1]


def test_results_that_change_from_run_to_run_are_caught(kernels):
    calls = []

    def kernel(*arrays, **options):
        calls.append(1)
        return kernels.attention(*arrays, **options) * np.float32(1 + 1e-3 * (len(calls) % 2))

    caught(kernel, "the same bits from run to run", "the same call gives another result: out row")


def test_bits_that_change_are_noted_and_fail_where_they_are_claimed(kernels):
    calls = []

    def kernel(*arrays, **options):
        calls.append(1)
        return kernels.attention(*arrays, **options) * np.float32(1 + 1e-7 * (len(calls) % 2))

    report = check_attention(kernel, "dense", only="again")
    assert report.passed
    assert report.cases[0].notes == ("not the same bits, which 'deterministic' would claim",)
    caught(kernel, "the same bits from run to run", "not the same bits, as claimed", claims="deterministic")


def test_a_row_that_depends_on_its_batch_is_caught(kernels):
    def kernel(q, k, v, **options):
        return kernels.attention(q, k - k.mean(axis=0) * (k.shape[0] > 1), v, **options)

    caught(kernel, "a row does not depend on its batch", "a row depends on what else is in its batch: out row")


def test_a_row_that_depends_on_what_follows_is_caught(kernels):
    def kernel(q, k, v, *, causal, scale, mask):
        return kernels.attention(q, k, v - v.mean(axis=-2, keepdims=True), causal=causal, scale=scale, mask=mask)

    caught(kernel, "a row does not depend on what follows", "a row depends on what follows it: out row")


@pytest.mark.parametrize("memory", ["transposed", "rows", "columns"])
def test_strides_that_are_ignored_are_caught(memory, kernels):
    def without_strides(a):
        return np.ndarray(a.shape, a.dtype, a if a.base is None or a.flags.c_contiguous else a.base)

    def kernel(*arrays, **options):
        return kernels.attention(*(without_strides(a) for a in arrays), **options)

    caught(kernel, f"{memory} in memory", "")


def filling(kernels, spill):
    def kernel(q, k, v, *, causal, scale, mask, out=None):
        result = kernels.attention(q, k, v, causal=causal, scale=scale, mask=mask)
        if out is None:
            return result
        out[...] = result
        if spill:
            np.copyto(out.base[-1:], 0)
        return out

    return kernel


def test_memory_around_an_output_is_watched(kernels):
    report = assert_conforms(filling(kernels, spill=False), "dense", only="buffer")
    assert report.counts()["pass"] == 1
    caught(filling(kernels, spill=True), "memory around the output", "the memory around the output was written to")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("adapter", ["BHND", "BNHD", "ND"])
def test_an_input_that_is_written_to_is_noticed_in_every_dtype_and_layout(dtype, adapter):
    def kernel(q, k, v, **options):
        v *= 2
        return np.zeros_like(v)

    report = check_attention(kernel, "dense", only="n = 16", dtype=dtype, adapter=adapter)
    assert report.failures[0].reason == "the input v was written to"


def test_nan_in_hidden_keys_is_asked_for_where_it_is_claimed(kernels):
    def safe(q, k, v, **options):
        return kernels.attention(q, np.nan_to_num(k), np.nan_to_num(v), **options)

    options = {"only": "nan-safe", "claims": "nan-safe"}
    assert_conforms(safe, "dense", **options)
    told = check_attention(kernels.attention, "dense", **options).failures[0].reason
    assert told.startswith("NaN in a hidden key reaches the output: out row")
