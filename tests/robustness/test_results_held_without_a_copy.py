"""What a user's function returns is copied where it is held: it may be a buffer that the next call fills again."""

import numpy as np
import pytest

from refattn import dense_attention, dense_attention_backward, dense_attention_forward
from refattn.experiments.workers import compute, versions
from refattn.report import Claim, Measurement, run_claims
from refattn.report.measuring import entries_that_change, rows_that_see_the_future
from refattn.testing import GradientMismatchError, check_attention, check_gradients, check_jacobian

X = np.random.default_rng(0).standard_normal(5)
CHECKS = [pytest.param(check_gradients, id="gradients"), pytest.param(check_jacobian, id="jacobian")]


def judged(check, function, gradient, method="central"):
    """Whether the check passes."""
    try:
        check(function, gradient, {"x": X}, rtol=1e-7, method=method)
    except GradientMismatchError:
        return False
    return True


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("method", ["central", "complex-step"])
def test_an_output_buffer_that_is_filled_again_changes_no_verdict(check, method):
    buffers = {kind: np.empty(5, kind) for kind in (np.float64, np.complex128)}

    def square(x):
        return np.multiply(x, x, out=buffers[x.dtype.type])

    assert judged(check, square, lambda g: {"x": 2 * X * g}, method)
    assert not judged(check, square, lambda g: {"x": 0 * g}, method)


@pytest.mark.parametrize("check", CHECKS)
def test_a_gradient_buffer_that_is_filled_again_changes_no_verdict(check):
    buffer = np.empty(5)
    right, wrong = (lambda g, f=f: {"x": np.multiply(f * X, g, out=buffer)} for f in (2, 2.01))
    assert judged(check, lambda x: x * x, right)
    assert not judged(check, lambda x: x * x, wrong)


@pytest.mark.parametrize("check", CHECKS)
def test_a_function_that_writes_to_what_it_is_given_changes_no_verdict_and_no_input(check):
    before = X.copy()

    def square(x, y):
        np.multiply(x, x, out=x)
        y += 1  # would move the point for whoever comes next
        return x * 1.0

    def gradients(upstream):
        upstream *= 1.0
        return {"x": 2 * X * upstream, "y": 0 * upstream}

    check(square, gradients, {"x": X, "y": X}, rtol=1e-7)
    assert np.array_equal(X, before)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, bool, complex], ids=lambda t: np.dtype(t).name)
def test_the_dtype_is_the_one_that_is_said(check, dtype):
    with pytest.raises(TypeError, match=r"^function: an output of .* came, float64 was wanted"):
        check(lambda x: (x * x).astype(dtype), lambda g: {"x": 2 * X * g}, {"x": X}, rtol=1e-7)
    seen = []
    check(
        lambda x: seen.append(x.dtype) or x * x, lambda g: {"x": 2 * x32 * g}, {"x": (x32 := np.float32(X))}, rtol=1e-6
    )
    assert set(seen) == {np.dtype(np.float64)}


class Kernel:
    """Exact attention into buffers of its own."""

    def __init__(self, spoilt=1.0):
        self.buffers, self.spoilt = {}, spoilt

    def kept(self, name, array):
        buffer = self.buffers.setdefault((name, array.shape), np.empty_like(array))
        buffer[...] = array
        return buffer

    def forward(self, q, k, v, *, causal, scale):
        out = dense_attention(q, k, v, mask="causal" if causal else "full", scale=scale)
        return self.kept("out", self.spoilt * out)

    def backward(self, dout, q, k, v, *, causal, scale):
        _, cache = dense_attention_forward(q, k, v, mask="causal" if causal else "full", scale=scale)
        gradients = dense_attention_backward(dout, cache)
        for buffer in self.buffers.values():
            buffer[...] = np.nan  # whoever still looks at an older result sees it
        return tuple(self.kept(name, gradient) for name, gradient in gradients._asdict().items())


@pytest.mark.parametrize("adapter", ["BHND", "ND"])
def test_a_kernel_with_its_own_buffers_conforms_or_not_as_one_without(adapter):
    right, wrong = Kernel(), Kernel(1.01)
    options = {"adapter": adapter, "only": ["n = 16", "n = 2"]}
    assert check_attention(right.forward, "dense", backward=right.backward, **options).passed
    assert not check_attention(wrong.forward, "dense", backward=wrong.backward, **options).passed


@pytest.mark.parametrize("name", ["dout", "q", "mask"])
def test_a_kernel_that_writes_to_what_it_is_given_is_told_so(name):
    def forward(q, k, v, *, causal, scale, mask=None):
        if name == "mask" and mask is not None:
            mask[...] = True
        if name == "q":
            q *= 1.5
        rule = ("causal" if causal else "full",) if mask is None else ("causal" if causal else "full", mask)
        return dense_attention(q, k, v, mask=rule, scale=scale)

    def backward(dout, q, k, v, *, causal, scale, mask=None):
        rule = ("causal" if causal else "full",) if mask is None else ("causal" if causal else "full", mask)
        _, cache = dense_attention_forward(q, k, v, mask=rule, scale=scale)
        found = dense_attention_backward(dout, cache)
        if name == "dout":
            dout *= 0
        return tuple(found)

    report = check_attention(forward, "dense", backward=backward, only="mask: random" if name == "mask" else "n = 16")
    assert any(f"the input {name} was written to" in case.reason for case in report.cases)


def test_a_claims_details_are_those_of_its_own_run():
    detail = {}

    def measure(value):
        def found(quick):
            detail["seen"] = [value]
            return Measurement("none", value, at_most=1.0, detail=detail)

        return found

    claims = [Claim(f"a.{n}", "ours", "x", "looking", measure(n / 10)) for n in range(3)]
    rows = run_claims(claims, quick=True).rows
    assert [row.detail["seen"] for row in rows] == [[0.0], [0.1], [0.2]]


def test_an_items_records_are_those_of_its_own_run():
    record = {}

    def run(item):
        record.update(item)
        return [record]

    found = [compute(run, {"n": n}, None, versions()) for n in (1, 2)]
    assert [result.records for result in found] == [({"n": 1},), ({"n": 2},)]


def test_what_is_compared_between_runs_is_not_one_buffer():
    buffer, calls = np.zeros((4, 2)), iter(range(100))

    def differs():
        buffer[...] = next(calls)
        return [buffer]

    assert entries_that_change(differs, [1, 2]) == buffer.size

    def sees_all(x):
        buffer[...] = x.sum(axis=0)
        return buffer

    assert rows_that_see_the_future(sees_all, {"x": np.ones((4, 2))}, [2], seed=0) == 2
