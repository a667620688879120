"""Options of kernels: a right kernel conforms in every precision, and each of many mistakes is caught and named."""

import inspect

import numpy as np
import pytest
from lengths import long
from optioned_kernel import Kernel

from refattn import dense_attention_forward
from refattn.testing import assert_conforms, check_attention
from refattn.testing.conformance import options
from refattn.testing.conformance.registry import OPERATIONS

DENSE = OPERATIONS["dense"]
CASES = [case for case in DENSE.cases if case.kind == "option"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *long(1)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_a_right_kernel_conforms(dtype, seed):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    kernel = Kernel(dtype)
    report = assert_conforms(
        kernel.forward, "dense", backward=kernel.backward, returns="out, lse", dtype=dtype, only="option", seeds=seed
    )
    assert report.counts()["pass"] == len(CASES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_result_notices_what_it_should_or_says_why(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    kernel = Kernel(dtype)
    report = check_attention(
        kernel.forward, "dense", backward=kernel.backward, returns="out, lse", dtype=dtype, only="option",
        profile="quick",
    )  # fmt: skip
    told = [power for case in report.cases for power in case.power]
    wanted = {"float32": 1e-4, "bfloat16": 0.05}[dtype]
    assert {power.result for power in told} == {"out", "lse", "dq", "dk", "dv", "dbias", "dsinks"}
    assert all(power.half <= wanted or power.why for power in told)
    assert not [power for power in told if power.blind and not power.why]


def given(changed, in_forward=True, results=lambda x: x):
    """A kernel whose options are changed on the way to it, and its results on the way back; and its backward."""
    kernel = Kernel()

    def changing(function, change):
        def run(*arrays, **o):
            o = dict(o)
            for name, how in changed.items() if change else ():
                if o.get(name) is not None:
                    o[name] = how(o[name], o)
            return results(function(*arrays, **o)) if function == kernel.forward else function(*arrays, **o)

        run.__signature__ = inspect.signature(function)
        return run

    return changing(kernel.forward, in_forward), changing(kernel.backward, True)


def nothing(value, o):
    return None


def scaled(value, o):
    return value * value.dtype.type(o["scale"])


def one_more(by):
    return lambda value, o: value + by


def log_sum_exp(of):
    return lambda results: (results[0], of(results[1]))


MUTANTS = {
    "bias ignored": ("bias shared by heads", given({"bias": lambda b, o: 0 * b})),
    "bias multiplied by the scale": ("bias shared by heads", given({"bias": scaled})),
    "bias of the first head for all": (
        "bias shared by queries", given({"bias": lambda b, o: np.broadcast_to(b[:, :1], b.shape).copy()}),
    ),
    "slopes ignored": ("ALiBi, full", given({"alibi_slopes": nothing})),
    "slopes of the wrong sign": ("ALiBi, full", given({"alibi_slopes": lambda x, o: -x})),
    "slopes of other heads": ("ALiBi, full", given({"alibi_slopes": lambda x, o: x[::-1]})),
    "softcap ignored": ("softcap 5", given({"softcap": nothing})),
    "softcap before the scale": ("softcap 5", given({"softcap": lambda c, o: c * o["scale"]})),
    "window ignored": ("window of 16", given({"window": nothing})),
    "window one too long to the left": ("window of one key", given({"window": lambda w, o: (w[0] + 1, w[1])})),
    "window one too short to the left": (
        "window of 16", given({"window": lambda w, o: (w[0] - 1, w[1])}),
    ),
    "right end of the window ignored": ("window to both sides", given({"window": lambda w, o: (w[0], 10**6)})),
    "sinks ignored": ("sinks with a window", given({"sinks": lambda s, o: s - 1e4})),
    "sinks multiplied by the scale": ("sinks with a window", given({"sinks": scaled})),
    "padding ignored": ("key padding, causal", given({"lengths": nothing})),
    "one padded key seen": ("key padding, causal", given({"lengths": one_more(1)})),
    "last key before the padding hidden": ("key padding, causal", given({"lengths": one_more(-1)})),
    "length of the first sequence for all": (
        "pages, 6", given({"lengths": lambda x, o: np.full_like(x, x[0])}),
    ),
    "packed sequences see each other": (
        "packed sequences, causal", given({f"cu_seqlens_{x}": lambda ends, o: ends[[0, -1]] for x in "qk"}),
    ),
    "packed sequences one late": (
        "packed sequences, other lengths of keys",
        given({"cu_seqlens_k": lambda ends, o: np.append(ends[:1], ends[1:] + 1)}),
    ),
    "aligned top-left": ("3 of the last queries", given({"align": nothing})),
    "dropout ignored": ("dropout, full", given({"keep": nothing})),
    "dropout without its factor": ("dropout, full", given({"dropout": lambda rate, o: 0.0})),
    "dropout inverted": ("dropout, full", given({"keep": lambda keep, o: ~keep})),
    "dropout missing in the backward": ("dropout, full", given({"keep": nothing}, in_forward=False)),
    "index −1 counts as the last key": (
        "given indices", given({"indices": lambda x, o: np.where(x < 0, x.max(), x)}),
    ),
    "last index ignored": ("given indices", given({"indices": lambda x, o: x[..., :-1]})),
    "indices of the first query for all": (
        "given indices", given({"indices": lambda x, o: np.broadcast_to(x[..., :1, :], x.shape)}),
    ),
    "blocks ignored": ("given blocks", given({"blocks": lambda x, o: np.ones_like(x)})),
    "blocks transposed": ("given blocks", given({"blocks": lambda x, o: x.swapaxes(-1, -2)})),
    "pages in the order of memory": (
        "pages, 6", given({"block_table": lambda x, o: np.arange(x.size).reshape(x.shape)}),
    ),
    "log-sum-exp of base 2": ("bias shared by heads", given({}, results=log_sum_exp(lambda x: x / np.log(2)))),
    "gradient of the log-sum-exp ignored": (
        "gradient of the log-sum-exps, full", given({"dlse": nothing}, in_forward=False),
    ),
    "gradient of the log-sum-exp of the wrong sign": (
        "gradient of the log-sum-exps, full", given({"dlse": lambda x, o: -x}, in_forward=False),
    ),
    "sinks of the wrong sign in the backward": ("sinks with a window", None),
    "softcap missing in the backward": ("softcap 5", None),
    "gradient of the bias of one batch": ("bias shared by batches", None),
    "log-sum-exp without the maximum": ("bias shared by heads", None),
    "log-sum-exp without the sinks": ("sinks with a window", None),
}  # fmt: skip


def planted(name):
    """The kernel with a mistake that no change of its options makes."""
    kernel = Kernel()

    class Wrong(Kernel):
        def attend(self, q, k, v, o):
            out, lse, s, *more = super().attend(q, k, v, o)
            top = np.where(np.isneginf(s), -1e30, s).max(axis=-1)
            if name == "log-sum-exp without the maximum" and o.dlse is None:
                lse = lse - top
            if name == "log-sum-exp without the sinks":
                lse = np.log(np.exp(s - top[..., None]).sum(axis=-1)) + top
            return out, lse, s, *more

        def pull_back(self, dout, q, k, v, o):
            found = list(kernel.pull_back(dout, q, k, v, o))
            if name == "sinks of the wrong sign in the backward" and o.sinks is not None:
                found[-1] = -found[-1]
            if name == "gradient of the bias of one batch" and np.shape(o.bias)[0] == 1:
                o.dlse = None
                last = [x[-1:] for x in (dout, q, k, v)]
                found[3] = kernel.pull_back(*last, o)[3]
            if name == "softcap missing in the backward" and o.softcap is not None:
                scaled = kernel.attend(q, k, v, o)[3]
                o.bias = kernel.attend(q, k, v, o)[2] - scaled  # the same weights without a cap
                o.bias, o.softcap = np.where(np.isfinite(o.bias), o.bias, 0), None
                found = list(kernel.pull_back(dout, q, k, v, o))[:3]
            return tuple(found)

    wrong = Wrong()
    return wrong.forward, wrong.backward


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_in_an_option_is_caught_and_named(name):
    only, functions = MUTANTS[name]
    forward, backward = functions or planted(name)
    report = check_attention(forward, "dense", backward=backward, returns="out, lse", only=only)
    assert not report.passed
    assert [cause.name for cause in report.causes][:1] == [name], str(report)


def test_every_mistake_in_an_option_has_a_mutant():
    assert set(MUTANTS) == set(options.FAULTS)


def test_options_that_a_function_does_not_take_are_not_run_and_named():
    def plain(q, k, v, *, causal, scale, mask):
        raise AssertionError("a case without options was not asked for")

    report = check_attention(plain, "dense", only="option")
    assert report.counts()["not run"] == len(CASES)
    assert {case.reason for case in report.cases} >= {"the function takes no bias", "the function takes no softcap"}


def test_a_backward_need_not_return_the_gradients_of_options():
    kernel = Kernel()

    def backward(*arrays, **given):
        return kernel.backward(*arrays, **given)[:3]

    backward.__signature__ = inspect.signature(kernel.backward)
    report = assert_conforms(kernel.forward, "dense", backward=backward, returns="out, lse", only=["bias", "sinks"])
    assert {power.result for case in report.cases for power in case.power} == {"out", "lse", "dq", "dk", "dv"}


def test_the_usual_names_are_known():
    kernel = Kernel()

    def forward(q, k, v, *, causal, scale, mask, window_size=None, logits_soft_cap=None, attn_bias=None):
        return kernel.forward(
            q, k, v, causal=causal, scale=scale, mask=mask, window=window_size, softcap=logits_soft_cap, bias=attn_bias
        )[0]

    report = check_attention(forward, "dense", only="option", without=["align", "dropout", "sinks", "alibi"])
    ran = {case.case for case in report.cases if case.verdict == "pass"}
    assert {"bias", "softcap 5", "window of 16"} <= ran
    assert report.passed


def test_options_are_judged_at_the_one_shape_that_is_taken():
    kernel = Kernel()
    report = check_attention(
        kernel.forward, "dense", backward=kernel.backward, returns="out, lse", only="option",
        takes="n=192, n_k=192, d=64, heads=4, kv_heads=2, batch=1", profile="quick",
    )  # fmt: skip
    assert report.counts()["fail"] == 0
    assert report.counts()["pass"] > 8


def test_an_option_at_a_shape_that_is_too_long_says_so():
    with pytest.raises(ValueError, match="an option is judged up to 4194304 logits, not 16777216"):
        check_attention(Kernel().forward, "dense", only="softcap", takes="n=4096, n_k=4096, heads=1, batch=1")


def test_the_worst_log_sum_exp_of_a_long_problem_is_judged():
    def forward(q, k, v, *, causal, scale, mask):
        out, cache = dense_attention_forward(q, k, v, mask="causal", scale=scale)
        return out, cache.log_sum_exp + np.where(np.arange(q.shape[-2]) == 701, np.float32(0.01), 0)

    report = check_attention(forward, "dense", returns="out, lse", only="n = 1000, last tile partial")
    assert [(j.result, j.row) for j in report.cases[0].judgements if not j.passed] == [("lse", (0, 0, 701))]
    assert report.cases[0].sampled


def test_one_that_takes_anything_says_what_it_takes():
    kernel = Kernel()

    def anything(q, k, v, **options):
        return kernel.forward(q, k, v, **options)[0]

    for named, ran in (({}, set()), ({"softcap": "softcap"}, {"softcap 5"})):
        report = check_attention(anything, "dense", only=["softcap 5", "window of 16"], names=named)
        assert {case.case for case in report.cases if case.verdict == "pass"} == ran
        assert report.counts()["refused"] == 0


def test_cases_of_the_last_queries_move_to_the_lengths_that_are_taken():
    kernel = Kernel()
    report = assert_conforms(
        kernel.forward, "dense", returns="out, lse", only="align", takes="n=4, n_k=64|128, batch=1"
    )
    assert report.counts()["pass"] >= 2
    assert all(case.shapes["q"][-2] == 4 and case.shapes["k"][-2] in (64, 128) for case in report.cases if case.shapes)
