"""The fuzzers can fail: functions with one planted error each are found."""

import time
import warnings

import fuzz_property
import hypothesis
import numpy as np
import pytest
from fuzz_dense import _attention, _backward, _expected, _expected_backward
from fuzz_inputs import Array, calls
from fuzz_property import BrokenPropertyError, Target

from refattn import dense_attention, dense_attention_backward
from refattn.dense import AttentionGradients


def mean(x):
    """A function that has the property: refuses what it must, and gives the mean of the rest."""
    try:
        array = np.asarray(x, float)
    except (TypeError, ValueError, np.exceptions.ComplexWarning):
        raise TypeError("x: numbers were wanted") from None
    with np.errstate(all="ignore"):
        found = array.mean() if array.size else np.inf
    if not np.isfinite(found):
        raise ValueError("x: finite numbers were wanted")
    return found


def nan(x):
    return mean(x) * np.float64(np.nan)


def infinity(x):
    return mean(x) + np.float64(np.inf)


def writes(x):
    if isinstance(x, np.ndarray) and x.flags.writeable and x.size:
        x.flat[0] = 7.5
    return mean(x)


def unlocks(x):
    if isinstance(x, np.ndarray) and x.flags.owndata:
        x.flags.writeable = not x.flags.writeable
    return mean(x)


def leaks(x):
    return mean(x) + np.log(np.zeros(()))


def warns(x):
    warnings.warn("careful", stacklevel=1)
    return mean(x)


def index(x):
    return [mean(x)][1]


def attribute(x):
    return mean(x.shaped if np.ndim(x) else x)


def unnamed(x):
    raise ValueError("something is wrong")


def other_name(x):
    raise ValueError("y: something is wrong")


def exhausts(x):
    return np.empty(1 << 60)


def hangs(x):
    while True:
        pass


def waits(x):
    time.sleep(1000)


def run(target, examples=60):
    @hypothesis.settings(max_examples=examples, derandomize=True, database=None, deadline=None)
    @hypothesis.given(arguments=target.arguments)
    def check(arguments):
        target.check(arguments)

    check()


def test_a_right_function_passes():
    run(Target("mean", mean, calls(lambda _: {"x": Array((4,))})))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "message"),
    [
        pytest.param(nan, "nan came of finite input", id="NaN"),
        pytest.param(infinity, "inf came of finite input", id="infinity"),
        pytest.param(writes, "x: was written to", id="writes"),
        pytest.param(unlocks, "x: was written to", id="changes a flag"),
        pytest.param(leaks, "RuntimeWarning: divide by zero", id="leaks NumPy's warning"),
        pytest.param(warns, "UserWarning: careful", id="warns"),
        pytest.param(index, "IndexError came through", id="IndexError"),
        pytest.param(attribute, "AttributeError came through", id="AttributeError"),
        pytest.param(unnamed, "does not begin with the name", id="names nothing"),
        pytest.param(other_name, "does not begin with the name", id="names another"),
        pytest.param(exhausts, "does not begin with the name", id="exhausts memory"),
    ],
)
def test_a_planted_error_is_found(function, message):
    with pytest.raises(BrokenPropertyError, match=message):
        run(Target(function.__name__, function, calls(lambda _: {"x": Array((4,))})))


@pytest.mark.parametrize("function", [hangs, waits], ids=["runs for ever", "waits for ever"])
def test_a_call_that_does_not_end_is_found(function, monkeypatch):
    monkeypatch.setattr(fuzz_property, "SECONDS", 0.2)
    monkeypatch.setattr(fuzz_property, "WAITING", 1.0)
    target = Target(function.__name__, function, None)
    with pytest.raises(BrokenPropertyError, match="did not end"):
        target.check({"x": 1.0})


def forgets_the_scale(q, k, v, *, scale=None, **options):
    return dense_attention(q, k, v, scale=1.0 if scale is None else scale, **options)


def loses_a_row(q, k, v, **options):
    out = dense_attention(q, k, v, **options)
    out[..., -1, :] = 0
    return out


def off_by_a_thousandth(q, k, v, **options):
    return dense_attention(q, k, v, **options) * np.float32(1.001)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [forgets_the_scale, loses_a_row, off_by_a_thousandth], ids=lambda f: f.__name__)
def test_a_wrong_result_is_found(wrong):
    def planted(q, k, v, mask, scale, softcap, block, method, check_finite):
        options = {"block": block, "method": method, "check_finite": check_finite}
        return wrong(q, k, v, mask=mask, scale=scale, softcap=softcap, **options)

    with pytest.raises(AssertionError, match="is right, within"):
        run(Target("planted", planted, calls(_attention), _expected), examples=200)


@pytest.mark.slow
def test_a_wrong_gradient_is_found():
    def planted(dout, cache):
        found = dense_attention_backward(dout, cache)
        return AttentionGradients(found.q, found.k * np.float32(1.001), found.v)

    with pytest.raises(AssertionError, match=r"dk.*is right, within"):
        run(Target("planted", planted, calls(_backward), _expected_backward), examples=200)
