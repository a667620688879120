"""Nothing shares memory with what it should not: writing zeros anywhere changes nothing that comes later.

The functions, and numbers that fit them, are those of the fuzzers' catalogue, which `test_public_functions` compares
with what the packages export; beside them stand chains of calls: a forward and its backward, a cache and its next step,
an object and its properties.
"""

import copy
import dataclasses
from functools import partial

import hypothesis
import numpy as np
import pytest
from fuzz_property import Refused, prepared, same_examples
from hypothesis import strategies as st
from test_public_functions import TARGETS

from refattn import (
    ConvBasis,
    conv_attention_backward,
    conv_attention_forward,
    decompose,
    dense_attention_backward,
    dense_attention_forward,
    lowrank_attention_backward,
    lowrank_attention_forward,
    recover,
    recover_to_tolerance,
    sparsek_attention_backward,
    sparsek_attention_forward,
)
from refattn.convbasis import Plan, least_squares_basis
from refattn.lowrank import (
    ContinuousRowsMask,
    DistinctColumnsMask,
    DistinctRowsMask,
    PolynomialFeatures,
    RandomFeatures,
    RowChangeMask,
    as_row_change,
    masked_product_backward,
    masked_product_forward,
    sliding_window,
)
from refattn.masks import RowMask
from refattn.models import Capture, Encoder, EncoderConfig, GeneratingAttention, Llama, LlamaConfig, Scorer
from refattn.patterns import indexed_attention_backward, indexed_attention_forward
from refattn.sparsek import SparseKCache, sparsek_scores_backward, sparsek_scores_forward
from refattn.testing import attention_inputs, load_vectors
from refattn.testing.real_heads import load_real_heads

N, D = 40, 4


def arrays_in(value, seen=None):
    """Yield every array that a caller reaches by public names: in containers, fields, attributes and properties."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from arrays_in(one, seen)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from arrays_in(one, seen)
    elif dataclasses.is_dataclass(value) or type(value).__module__.startswith("refattn"):
        for name, one in list(getattr(value, "__dict__", {}).items()):
            if not name.startswith("_") and name not in INTERNAL:
                yield from arrays_in(one, seen)


INTERNAL = ("operators",)
"""Attributes whose classes are no part of what a caller is told of."""


def overwrite(*values):
    """Write zeros wherever that is allowed."""
    for array in arrays_in(list(values)):
        if array.flags.writeable and array.size:
            array[...] = np.zeros((), array.dtype)


def bits(*values):
    """Everything a caller sees of values, as it is now."""
    return [(a.dtype, a.shape, a.tolist() if a.dtype.hasobject else a.tobytes()) for a in arrays_in([*values])] + [
        one for one in values if isinstance(one, (float, int))
    ]


@pytest.mark.usefixtures("numbers_that_fit")
@pytest.mark.parametrize("target", [pytest.param(target, id=target.name) for target in TARGETS])
def test_a_call_shares_nothing_with_its_arguments_and_keeps_nothing_of_its_result(target):
    @same_examples(4)
    @hypothesis.given(data=st.data())
    def call_twice(data):
        arguments = data.draw(target.arguments)
        again = copy.deepcopy(arguments)
        result = prepared(target.function, arguments)
        if isinstance(result, Refused):
            return
        right = bits(result)
        overwrite(arguments)
        assert bits(result) == right, "the result shares memory with an argument"
        overwrite(result)
        assert bits(prepared(target.function, again)) == right, "the second call differs"

    call_twice()


def numbers(*shape, seed=0):
    return 0.5 * np.random.default_rng(seed).standard_normal(shape)


def forwards():
    """Forward, backward and arguments of every operation that keeps a cache."""
    q, k, v = numbers(3, 2, N, D)
    search = {"n_basis": 4, "probe": 2, "delta": 1e-3}
    basis = decompose(np.tril(numbers(N, N)))
    for method, plan in (
        ("fast", Plan("direct")),
        ("fast", Plan("block transform", 16)),
        ("paper", None),
        ("oracle", None),
    ):
        name = method if plan is None else plan.path
        for mask in ("causal", "full"):
            options = {"mask": mask, "method": method, "plan": plan, **search}
            for gradient in ("approximation", "attention"):
                backward = partial(conv_attention_backward, gradient=gradient)
                yield f"conv {name} {mask} {gradient}", conv_attention_forward, backward, (q, k, v), options
    given = {"basis": basis}
    attention = partial(conv_attention_backward, gradient="attention")
    yield "conv with a basis that is given", conv_attention_forward, attention, (q, k, v), given
    lower = np.tri(N, dtype=bool)
    bias = numbers(N, N, seed=5)
    dense = dense_attention_forward, dense_attention_backward
    yield "dense", *dense, (q, k, v), {}
    yield "dense masked by booleans", *dense, (q, k, v), {"mask": lower}
    yield "dense with a bias", *dense, (q, k, v), {"mask": ("causal", bias)}
    lists = np.where(lower, np.arange(N), -1)
    for method in ("fast", "oracle"):
        indexed = indexed_attention_forward, indexed_attention_backward
        yield f"indexed {method}", *indexed, (q, k, v, lists), {"method": method}
    for method in ("fast", "paper", "oracle"):
        sparse = sparsek_attention_forward, sparsek_attention_backward
        options = {"n_select": 3, "window": 4, "method": method}
        yield f"sparsek {method}", *sparse, (q, k, v, numbers(2, N, seed=1)), options
        low = lowrank_attention_forward, lowrank_attention_backward
        for features in (PolynomialFeatures(D, 4, 2.0), RandomFeatures(D, 8, 0)):
            name = f"lowrank {method} {type(features).__name__}"
            yield name, *low, (q, k, v), {"features": features, "method": method}
        product = masked_product_forward, masked_product_backward
        for mask in (
            sliding_window(N, 3),
            as_row_change(sliding_window(N, 3)),
            DistinctRowsMask(lower[:4], np.arange(N) % 4),
        ):
            options = {"mask": mask, "method": method}
            yield f"product {method} {type(mask).__name__}", *product, (np.abs(q), np.abs(k), v), options
    for normalise in (False, True):
        scores = sparsek_scores_forward, sparsek_scores_backward
        options = {"normalise": normalise}
        yield f"scores{' normalised' * normalise}", *scores, (q, numbers(3, D), numbers(3)), options


FORWARDS = [pytest.param(*rest, id=name) for name, *rest in forwards()]


@pytest.mark.slow
@pytest.mark.parametrize(("forward", "backward", "arrays", "options"), FORWARDS)
def test_a_backward_is_the_same_after_everything_it_came_from_is_overwritten(forward, backward, arrays, options):
    arrays, options = copy.deepcopy((arrays, options))
    out, cache = forward(*arrays, **options)
    upstream = np.cos(out)
    right = bits(backward(upstream.copy(), cache))
    about = properties(cache)
    overwrite(arrays, options, out)
    assert properties(cache) == about, "the cache shares memory with an input or the output"
    overwrite(cache)
    first = backward(upstream.copy(), cache)
    assert bits(first) == right, "the cache can be written to"
    overwrite(first)
    given = upstream.copy()
    second = backward(given, cache)
    overwrite(given)
    assert bits(second) == right, "a gradient shares memory with the cache, or with the upstream gradient"
    assert properties(cache) == about


def properties(value):
    """Everything that an object says of itself: its arrays, and its properties."""
    names = [name for name in dir(type(value)) if isinstance(getattr(type(value), name), property)]
    return bits(value, *(getattr(value, name) for name in names if not name.startswith("_")))


def results():
    """Functions that make an object, and the arrays that it is made of."""
    q, k = numbers(2, N, D)
    starts, kernels = np.array([0, 3]), np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [6.0, 7.0, 0.0, 0.0, 0.0]])
    yield "basis", ConvBasis, (starts, kernels)
    yield "decomposition", decompose, (np.tril(numbers(5, 5)),)
    yield "recovery", lambda q, k: recover(q, k, n_basis=4, probe=2, delta=1e-3), (q, k)
    yield "recovery to a tolerance", lambda q, k: recover_to_tolerance(q, k, 1e-3), (q, k)
    yield "least squares", lambda q, k: least_squares_basis(q, k, [0, 5]), (q, k)
    yield "intervals of rows", ContinuousRowsMask, (np.array([0, 0, 1]), np.array([1, 2, 3]))
    change = as_row_change(sliding_window(5, 2))
    yield "changes of rows", RowChangeMask, (change.first.copy(), change.columns.copy(), change.signs.copy())
    patterns = np.tri(3, dtype=bool)
    yield "distinct rows", DistinctRowsMask, (patterns, np.array([0, 1, 2]))
    yield "distinct columns", DistinctColumnsMask, (patterns, np.array([0, 1, 2]))
    four = np.full(1, 4)
    scorer = (numbers(1, 1, 4).astype(np.float32), numbers(1, 1).astype(np.float32), four, four.copy())
    yield "scorer", Scorer, scorer


@pytest.mark.parametrize(("make", "arrays"), [pytest.param(*rest, id=name) for name, *rest in results()])
def test_an_object_is_the_same_after_everything_it_was_made_of_and_shows_is_overwritten(make, arrays):
    arrays = copy.deepcopy(arrays)
    made = make(*arrays)
    right, dense = properties(made), dense_form(made)
    overwrite(arrays)
    assert properties(made) == right, "it shares memory with what it was made of"
    overwrite(made)
    overwrite([getattr(made, name) for name in dir(made) if name in ("vectors", "sizes", "n_terms")])
    assert properties(made) == right, "it can be written to"
    assert dense_form(made) == dense


def dense_form(value):
    return bits(value.to_dense()) if hasattr(value, "to_dense") else []


def test_a_row_mask_is_read_only():
    """What a cache shows of its mask."""
    _, cache = dense_attention_forward(*numbers(3, N, D), mask=("full", np.tri(N, dtype=bool), numbers(N, N)))
    assert isinstance(cache.mask, RowMask)
    assert not any(array.flags.writeable for array in (*cache.mask.booleans, *cache.mask.biases))


@pytest.mark.slow
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_a_generation_is_the_same_after_its_tokens_and_outputs_are_overwritten(hard):
    q, k, v = numbers(3, N, D)
    scores = numbers(N, seed=1)

    def generated(then):
        cache, out = SparseKCache(3, 4, hard=hard), []
        first = tuple(a[:9].copy() for a in (q, k, v, scores))
        for made, given in [(cache.prefill(*first), first)]:
            out.append(made.copy())
            then(made, given)
        for t in range(9, N):
            given = tuple(np.array(a[t]) for a in (q, k, v, scores))
            made = cache.step(*given)
            out.append(made.copy())
            then(made, given)
        return bits(*out)

    assert generated(overwrite) == generated(lambda *_: None)


CONFIG = LlamaConfig(
    n_layers=2, width=8, ffn_width=12, vocab_size=10, n_heads=4, n_kv_heads=2, head_width=2, context_length=64,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip


MODELS = pytest.mark.parametrize(
    ("kind", "config"),
    [
        pytest.param(Llama, CONFIG, id="llama"),
        pytest.param(Encoder, EncoderConfig(2, 8, 12, 4, 10, 16, 1e-12), id="encoder"),
    ],
)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
TOKENS = np.array([3, 1, 4, 1, 5])


def weights_for(config, dtype):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in config.tensor_shapes().items()}


@DTYPES
@MODELS
def test_a_model_is_the_same_after_its_weights_and_outputs_are_overwritten(kind, config, dtype):
    weights = weights_for(config, dtype)
    model = kind(config, weights, dtype=dtype)
    right = bits(model(TOKENS))
    overwrite(weights, model.weights, model(TOKENS))
    given = TOKENS.copy()
    out = model(given)
    overwrite(given)
    assert bits(out) == right


@DTYPES
@MODELS
def test_an_attention_cannot_write_to_what_a_model_gives_it(kind, config, dtype):
    model = kind(config, weights_for(config, dtype), dtype=dtype)

    def destructive(layer, q, k, v):
        out = q.copy()
        overwrite(q, k, v)
        assert q.any(), "it could"
        return out

    assert bits(model(TOKENS, destructive)) == bits(model(TOKENS, lambda layer, q, k, v: q))


def test_an_observer_cannot_write_to_what_the_model_still_needs():
    model = Llama(CONFIG, weights_for(CONFIG, "float32"))
    assert bits(model(TOKENS, observe=lambda layer, a: overwrite(a))) == bits(model(TOKENS))


def test_what_was_captured_stays():
    capture = Capture()
    arrays = numbers(3, 2, 5, D)
    given = [a.copy() for a in arrays]
    out = capture(0, *given)
    capture.observe(0, given[0])
    overwrite(given, out)
    assert bits(capture.q[0], capture.k[0], capture.v[0], capture.inputs[0]) == bits(*arrays, arrays[0])


def test_a_generating_attention_keeps_nothing_of_its_callers():
    scorer = Scorer(numbers(1, 1, 4).astype(np.float32), np.zeros((1, 1), np.float32), np.full(1, 2), np.full(1, 2))

    def attended(then):
        attend, out = GeneratingAttention(scorer), []
        for seed in range(8):
            a, (q, k, v) = numbers(1, 4, seed=seed), numbers(3, 1, 1, D, seed=100 + seed)
            attend.observe(0, a)
            then(a)
            made = attend(0, q, k, v)
            out.append(made.copy())
            then(q, k, v, made)
        return bits(*out)

    assert attended(overwrite) == attended(lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "load",
    [
        pytest.param(lambda: attention_inputs(5, 2, seed=0), id="inputs"),
        pytest.param(lambda: attention_inputs(5, 2, seed=0, kind="constant"), id="constant inputs"),
        pytest.param(load_real_heads, id="real heads"),
        pytest.param(lambda: [case.arrays for case in load_vectors()[:3]], id="reference vectors"),
    ],
)
def test_what_is_loaded_or_drawn_again_is_the_same(load):
    first = load()
    right = bits(first)
    overwrite(first)
    assert bits(load()) == right
