"""`check_attention` on what is right, and what its report says about what is not."""

import dataclasses
import json

import numpy as np
import pytest
from lengths import CAMPAIGN, long

import refattn
from refattn.convbasis import Plan
from refattn.testing import Adapter, assert_conforms, check_attention
from refattn.testing.conformance.judge import allowances, row_error
from refattn.testing.conformance.operation import Problem
from refattn.testing.conformance.precision import PRECISIONS, precision
from refattn.testing.conformance.registry import OPERATIONS
from refattn.testing.conformance.rounding import Spread

SEEDS = pytest.mark.parametrize("seeds", [range(2), *long(range(2, 20 if CAMPAIGN else 5))], ids=["2 seeds", "more"])
SEEDS_OF_PEERS = range(3 if CAMPAIGN else 1)
MANY = ["n = 4", "n = 9", "n = 16", "ties", "hard", "gate on", "10⁴", "window", "everything"]
"""Cases of SparseK attention that run on all seeds; the others on the first, and if small on the second."""


def small(operation):
    """The cases whose problems are small."""
    return [case for case in operation.cases if case.kind not in ("tiles", "long", "property")]


def numpy_attention(q, k, v, *, causal, scale, mask):
    """What a NumPy user writes."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    allowed = np.ones((q.shape[-2], k.shape[-2]), dtype=bool)
    if causal:
        allowed &= np.tri(*allowed.shape, dtype=bool)
    if mask is not None:
        allowed &= mask
    logits = np.where(allowed, q @ k.swapaxes(-1, -2) * scale, -np.inf)
    weights = np.exp(logits - np.maximum(logits.max(axis=-1, keepdims=True), -1e30))
    total = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(total > 0, total, 1) @ v


# --- no false alarm --------------------------------------------------------------------------------------------------


@SEEDS
def test_the_dense_path_conforms(kernels, seeds):
    forward, backward = kernels.dense()
    assert_conforms(forward, "dense", backward=backward, seeds=seeds, profile="quick")


@SEEDS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_plain_numpy_kernel_conforms(dtype, seeds):
    assert_conforms(numpy_attention, "dense", dtype=dtype, seeds=seeds, profile="quick")


@pytest.mark.slow
@SEEDS
def test_the_papers_conv_path_conforms(kernels, seeds):
    forward, backward = kernels.conv()
    assert_conforms(forward, "conv", backward=backward, seeds=seeds, profile="quick")


@pytest.mark.slow
@SEEDS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_fast_conv_path_conforms(kernels, dtype, seeds):
    assert_conforms(kernels.conv_public("fast"), "conv", dtype=dtype, seeds=seeds, profile="quick")


@pytest.mark.slow
@pytest.mark.parametrize("plan", [Plan("block transform", 16), Plan("direct")], ids=lambda plan: plan.path)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_fast_conv_gradient_conforms(kernels, dtype, plan):
    forward, backward = kernels.conv_public("fast"), kernels.conv_fast_backward(plan)
    assert_conforms(forward, "conv", backward=backward, dtype=dtype, seeds=range(3), profile="quick")


@pytest.mark.slow
@SEEDS
@pytest.mark.parametrize("method", ["paper", "fast"])
def test_sparsek_attention_conforms(kernels, method, seeds):
    forward, backward = kernels.sparsek_public(method)
    if seeds[0]:
        assert_conforms(forward, "sparsek", backward=backward, seeds=seeds, only=MANY)
        return
    assert_conforms(forward, "sparsek", backward=backward, seeds=seeds[:1])
    assert_conforms(forward, "sparsek", backward=backward, seeds=seeds[1:], profile="quick")


@pytest.mark.slow
@SEEDS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_operator_and_the_thresholds_conform(kernels, dtype, seeds):
    forward, backward = kernels.sparsek_operator()
    assert_conforms(forward, "sparsek-operator", backward=backward, dtype=dtype, seeds=seeds, profile="quick")
    for method in ("paper", "fast"):
        forward, _ = kernels.thresholds(method=method)
        assert_conforms(
            forward, "sparsek-thresholds", dtype=dtype, seeds=[seed for seed in seeds if seed < 7], profile="quick"
        )


def torch_sdpa(q, k, v, *, causal, scale, mask):
    torch = pytest.importorskip("torch", reason="needs the extra 'peers'")
    if mask is not None and causal:
        mask = mask.tril()
    grouped = q.shape[1] != k.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale, enable_gqa=grouped
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_pytorchs_attention_and_its_autograd_conform(dtype):
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    report = assert_conforms(
        torch_sdpa, "dense", backward="autograd", arrays="torch", dtype=dtype, seeds=SEEDS_OF_PEERS, profile="quick"
    )
    assert {case.kind for case in report.cases if case.verdict == "not run"} <= {"option"}


def test_jaxs_attention_and_its_vjp_conform():
    jax = pytest.importorskip("jax", reason="JAX is not installed")

    def attention(q, k, v, *, causal, scale, mask):
        mask = None if mask is None else mask[None, None]
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, scale=scale)

    few = ["n = 16", "4 on 2", "mask: random and"]
    assert_conforms(attention, "dense", backward="autograd", arrays="jax", adapter="(B, N, H, D)", only=few)


# --- adapters --------------------------------------------------------------------------------------------------------


def one_head(q, k, v, **options):
    return numpy_attention(q[None, None], k[None, None], v[None, None], **options)[0, 0]


def one_batch(q, k, v, **options):
    return numpy_attention(q[None], k[None], v[None], **options)[0]


def heads_behind(q, k, v, **options):
    return _swapped(numpy_attention(*map(_swapped, (q, k, v)), **options))


def named(arrays, k, v, **options):
    return {"out": numpy_attention(arrays["q"], k, v, **options)}


@pytest.mark.parametrize(
    ("adapter", "kernel"),
    [
        ("BHND", numpy_attention),
        ("(B, N, H, D)", heads_behind),
        ("(H, N, D)", one_batch),
        ("(N, D)", one_head),
        (Adapter(lambda a, name: {"q": a} if name == "q" else a, lambda r, name: r["out"]), named),
    ],
    ids=["BHND", "BNHD", "HND", "ND", "two functions"],
)
def test_layouts_and_adapters_reach_the_same_verdict(adapter, kernel):
    assert_conforms(kernel, "dense", adapter=adapter, profile="quick")


def _swapped(a):
    return a.swapaxes(1, 2)


def test_gradients_of_shared_heads_are_added_where_the_layout_has_no_heads(kernels):
    _, dense_backward = kernels.dense()

    def backward(dout, q, k, v, **options):
        return tuple(g[0, 0] for g in dense_backward(*(a[None, None] for a in (dout, q, k, v)), **options))

    assert_conforms(one_head, "dense", backward=backward, adapter="(N, D)", profile="quick")


@pytest.mark.parametrize("layout", ["BHN", "NDX", "(N, N, D)", ""], ids=str)
def test_a_layout_that_is_none_is_refused(layout):
    with pytest.raises(ValueError, match="layout"):
        check_attention(numpy_attention, "dense", adapter=layout, profile="quick")


# --- the report ------------------------------------------------------------------------------------------------------


def off_by_one(q, k, v, *, causal, scale):
    mask = np.tri(q.shape[-2], k.shape[-2], k=1, dtype=bool) if causal else None
    return numpy_attention(q, k, v, causal=False, scale=scale, mask=mask)


def test_the_report_names_the_row_both_values_the_smallest_case_and_the_cause():
    report = check_attention(off_by_one, "dense", profile="quick")
    not_run = [case.reason for case in report.cases if case.verdict == "not run" and case.kind != "option"]
    assert not_run == ["the function takes no mask"] * 5
    worst = report.failures[0].worst
    b, h, i = worst.row
    problem = next(c for c in OPERATIONS["dense"].cases if c.name == report.failures[0].case).build(2, 0)
    arrays = [a.astype(np.float32) for a in problem.arrays.values()]
    got = off_by_one(*arrays, causal=True, scale=0.25)[b, h, i]
    np.testing.assert_allclose(worst.got, got[:8], rtol=1e-6)
    np.testing.assert_allclose(worst.expected, refattn.dense_attention(*arrays)[b, h, i][:8], rtol=1e-5)
    assert report.shrunk.n == 2
    text = str(report)
    assert "not run: 13 of options that the function does not take: bias, alibi_slopes, softcap, " in text
    for said in ("not run: mask: random: the function takes no mask", "smallest failing n: 2", "sees one later key"):
        assert said in text


def test_the_report_is_json_with_nothing_lost():
    data = json.loads(json.dumps(check_attention(off_by_one, "dense", profile="quick").to_dict(), allow_nan=False))
    assert data["schema"] == "refattn-conformance/1"
    assert data["passed"] is False
    assert data["cases"][0]["judgements"][0]["result"] == "out"
    assert data["causes"][0]["name"] == "mask off by one (sees one later key)"


def test_assert_conforms_raises_with_a_few_lines_or_with_the_report():
    with pytest.raises(AssertionError, match="smallest failing n: 2") as short:
        assert_conforms(off_by_one, "dense", profile="quick")
    with pytest.raises(AssertionError, match="expected ") as long:
        assert_conforms(off_by_one, "dense", profile="quick", verbose=True)
    said = str(short.value)
    assert "FAILED causal, n = 2 (seed 0): out row (0, " in said
    assert said.endswith("(7 of 7 failing cases)")
    assert len(said.splitlines()) <= 7 < len(str(long.value).splitlines())


def test_a_scale_in_a_coarser_precision_is_named():
    def kernel(q, k, v, *, causal, scale, mask):
        root = float(np.sqrt(np.float32(abs(scale))))
        return numpy_attention(q, k, v, causal=causal, scale=np.copysign(root * root, scale), mask=mask)

    report = check_attention(kernel, "dense", dtype="float64", profile="quick")
    assert [cause.name for cause in report.causes] == ["scale in a coarser precision"]
    assert "kept in float32" in report.causes[0].explanation


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_last_bit_of_the_smallest_numbers_is_excused(name):
    least = PRECISIONS[name].least
    assert least > 0
    spread = Spread(np.zeros((1, 1)), PRECISIONS[name].unit * np.zeros((1, 1)) + least)
    assert spread.allows(6.0, True) > 0


def test_a_call_that_raises_is_refused_and_fails_where_it_has_to_be_taken():
    def broken(q, k, v, *, causal, scale, mask):
        raise RuntimeError("no such device")

    report = check_attention(broken, "dense", only=["n = 2"])
    assert report.counts() == {"pass": 0, "fail": 0, "refused": 1, "not run": 0}
    assert not report.passed
    assert "refused: raised RuntimeError: no such device (causal, n = 2)" in str(report)
    strict = check_attention(broken, "dense", only=["n = 2"], strict=True)
    assert strict.failures[0].reason == "raised RuntimeError: no such device"
    assert strict.shrunk is None


def test_a_function_that_writes_to_its_inputs_is_caught():
    def careless(q, k, v, *, causal, scale, mask):
        q *= scale
        return numpy_attention(q, k, v, causal=causal, scale=1.0, mask=mask)

    report = check_attention(careless, "dense", only=["n = 16"])
    assert report.failures[0].reason == "the input q was written to"


def test_nothing_run_is_not_a_pass():
    kinds = ["ordinary", "adversarial", "degenerate", "real"]
    report = check_attention(numpy_attention, "dense", skip=kinds, profile="quick")
    assert report.counts() == {"pass": 0, "fail": 0, "refused": 0, "not run": len(report.cases)}
    assert not report.passed


@pytest.mark.slow
def test_a_kernel_that_multiplies_in_bfloat16_may_say_so():
    low = PRECISIONS["bfloat16"].round

    def kernel(q, k, v, **options):
        return numpy_attention(low(q), low(k), low(v), **options)

    assert check_attention(kernel, "dense", profile="quick").causes[0].name == "wrong dtype"
    assert_conforms(kernel, "dense", precision="bfloat16", skip=["10⁴"], profile="quick")


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"spec": "linear"}, ValueError, "spec"),
        ({"dtype": "int8"}, ValueError, "dtype"),
        ({"arrays": "tensorflow"}, ValueError, "arrays"),
        ({"factor": 0.5}, ValueError, "factor"),
        ({"backward": 3}, TypeError, "backward"),
        ({"backward": "autograd"}, ValueError, "autograd"),
        ({"only": ["no such case"]}, ValueError, "only"),
        ({"seeds": -1}, ValueError, "seeds"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_wrong_argument_is_refused_by_name(options, error, match):
    given = {"spec": "dense", **options}
    with pytest.raises(error, match=match):
        check_attention(numpy_attention, **given)


# --- the plain implementations ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_plain_implementation_in_float64_is_the_truth(name):
    operation = OPERATIONS[name]
    for case in small(operation):
        problem = case.build(min(case.n, 40), 1)
        judged = problem.smooth and operation.differentiable
        upstream = problem.upstream(PRECISIONS["float64"]) if judged else None
        right = operation.truth(problem, upstream)
        spread = operation.spread(problem, upstream, PRECISIONS["float64"])
        for result, array in operation.plain(problem, upstream, PRECISIONS["float64"]).items():
            error = row_error(array, right[result], False)
            excused = 2 * spread[result].allows(6.0, False)
            assert (error <= excused).all(), f"{case.name}: {result}: {error.max():.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_plain_implementation_warns_whatever_its_precision_and_its_mistake(name, dtype):
    operation, precision = OPERATIONS[name], PRECISIONS[dtype]
    for case in small(operation):
        problem = case.build(min(case.n, 9), 1).rounded(precision)
        upstream = problem.upstream(precision) if operation.differentiable else None
        right = operation.plain(problem, upstream, precision)
        for fault in operation.faults:
            wrong = operation.plain(problem, upstream, precision, fault)
            assert {x: (a.shape, a.dtype) for x, a in wrong.items()} == {
                x: (a.shape, a.dtype) for x, a in right.items()
            }


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_known_mistake_changes_a_result(name):
    operation, precision = OPERATIONS[name], PRECISIONS["float64"]
    different = set()
    tiled = [case for case in operation.cases if case.name == "tiles of 128, n = 385"]
    for case in [*small(operation), *tiled]:
        problem = dataclasses.replace(case.build(case.n if case in tiled else min(case.n, 30), 1), lse=True)
        upstream = (
            problem.upstream(precision) if operation.differentiable and problem.smooth and case.gradients else None
        )
        right = operation.plain(problem, upstream, precision)
        for fault in set(operation.faults) - different:
            wrong = operation.plain(problem, upstream, precision, fault)
            if any(not np.allclose(wrong[x], right[x], rtol=1e-6, atol=0) for x in right):
                different.add(fault)
    assert different == set(operation.faults)


def test_the_derivative_of_conv_attention_is_that_of_the_papers_path(kernels):
    _, backward = kernels.conv()
    problem = next(c for c in OPERATIONS["conv"].cases if c.name == "unstructured, n = 64").build(64, 3)
    upstream = problem.upstream(PRECISIONS["float64"])
    expected = backward(upstream, *problem.arrays.values(), **problem.options)
    found = OPERATIONS["conv"].truth(problem, upstream)
    for name, gradient in zip(("dq", "dk", "dv"), expected, strict=True):
        np.testing.assert_allclose(found[name], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max())


@pytest.mark.parametrize("name", PRECISIONS)
def test_rounding_is_that_of_the_format(name):
    x = np.random.default_rng(0).standard_normal(1000) * 100
    rounded = PRECISIONS[name].round(x)
    assert (np.abs(rounded - x) <= PRECISIONS[name].unit * np.abs(x) * (1 + 1e-12)).all()
    assert np.array_equal(PRECISIONS[name].round(rounded), rounded)
    assert np.isnan(PRECISIONS[name].round(np.array([np.nan]))).all()


def test_a_row_may_be_off_by_the_worst_of_four_plain_runs_or_by_six_deviations_of_rounding():
    problem = next(c for c in OPERATIONS["sparsek-operator"].cases if c.name == "n = 5, k = 4").build(4, 0)
    errors = iter(np.array([[[1, 0, 0, 0]], [[0, 2, 0, 0]], [[0, 0, 0, 0]], [[0, 0, 0, np.nan]]], float))
    given = []

    def plain(problem, upstream, to):
        given.append(problem.arrays["z"])
        return {"out": next(errors)}

    rounding = Spread(np.array([[0.0, 0.0, 2.0, 0.0]]), np.array([[4.0, 1.0, 1.0, 1.0]]))
    operation = dataclasses.replace(OPERATIONS["sparsek-operator"], plain=plain, spread=lambda *_: {"out": rounding})
    single = PRECISIONS["float32"]
    allowed = allowances(operation, problem, None, {"out": np.zeros((1, 4))}, single, 3.0)["out"]
    np.testing.assert_array_equal(allowed.rows, [[4, 6, 13, np.inf]])
    np.testing.assert_array_equal(allowed.plain, [[1, 0, 0, 0]])
    assert next(errors, None) is None
    assert given[0] is problem.arrays["z"]
    for moved in given[1:]:
        relative = np.abs(moved / given[0] - 1)
        assert 0 < relative.max() <= single.unit * (1 + 1e-6)
    assert not np.array_equal(given[1], given[2])


def test_beyond_the_largest_number_of_a_precision_infinity_is_right():
    right, largest = np.array([1e5, -1e5, 1e5, 1.0, -np.inf]), PRECISIONS["float16"].largest
    got = np.array([np.inf, -65504.0, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(row_error(got, right, False, largest), [0, 0, np.inf, largest - 1, 0])


@pytest.mark.parametrize("name", ["float8_e4m3", "float8_e5m2"])
def test_eight_bits_are_rounded_as_the_package_that_has_them_does(name):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs ml_dtypes")
    theirs = {"float8_e4m3": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}[name]
    x = np.random.default_rng(0).standard_normal(4000).astype(np.float32) * np.float32(2) ** np.arange(-12, 8).repeat(
        200
    )
    np.testing.assert_array_equal(precision(name).round(x), x.astype(theirs).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_rounding_that_is_derived_covers_what_a_plain_run_loses(dtype):
    """In every case the error of a plain run is within what is derived, and somewhere more than a fiftieth of it."""
    operation, to = OPERATIONS["dense"], PRECISIONS[dtype]
    shares = []
    for case in operation.cases[:50]:
        problem = case.build(case.n, 2).rounded(to)
        upstream = problem.upstream(to)
        right, plain = operation.truth(problem, upstream), operation.plain(problem, upstream, to)
        for name in plain:
            spread = operation.spread(problem, upstream, to)[name]
            derived = spread.allows(6.0, True)
            shares.append((row_error(plain[name], right[name], True, to.end) / np.maximum(derived, 1e-300)).max())
    assert 0.02 < np.max(shares) <= 1


@pytest.mark.slow
def test_every_problem_is_the_same_for_the_same_seed():
    for operation in OPERATIONS.values():
        for case in small(operation):
            one, other = (case.build(min(case.n, 30), 5) for _ in range(2))
            assert isinstance(one, Problem)
            assert all(np.array_equal(one.arrays[x], other.arrays[x]) for x in one.arrays)
