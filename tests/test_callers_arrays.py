"""Dense and SparseK attention, masks and the generation cache: the caller's arrays and ours are never the same.

What is written to an argument or to a result after a call changes nothing that comes later, and how an argument lies in
memory changes no bit.
"""

import numpy as np
import pytest

from refattn import SparseKCache, dense_attention_backward, dense_attention_forward
from refattn._kept import kept
from refattn.sparsek import (
    sparsek_attention_backward,
    sparsek_attention_forward,
    sparsek_scores_backward,
    sparsek_scores_forward,
)

N = 70


def inputs(dtype=np.float64):
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((2, N, d)).astype(dtype) for d in (5, 5, 3, 3))
    return {"q": q, "k": k, "v": v, "scores": rng.standard_normal((2, N)).astype(dtype), "dout": dout}


def dense(mask):
    def forward(q, k, v, scores):
        return dense_attention_forward(q, k, v, mask=mask, softcap=3.0)

    return forward, dense_attention_backward


def sparsek(**options):
    def forward(q, k, v, scores):
        return sparsek_attention_forward(q, k, v, scores, n_select=6, window=4, **options)

    return forward, sparsek_attention_backward


def scoring():
    def forward(q, k, v, scores):
        return sparsek_scores_forward(q, k[0, :2], v[0, 0, :2], normalise=True)

    return forward, lambda dout, cache: sparsek_scores_backward(dout[..., :2].swapaxes(-1, -2), cache)


BIAS, ALLOWED = np.random.default_rng(1).standard_normal((N, N)), np.tri(N, dtype=bool)
FUNCTIONS = {
    "dense": dense("causal"),
    "dense, masks": dense((BIAS, ALLOWED)),
    "sparsek": sparsek(),
    "sparsek, hard": sparsek(hard=True),
    "sparsek, paper": sparsek(method="paper"),
    "sparsek, oracle": sparsek(method="oracle"),
    "scores": scoring(),
}


def overwrite(array):
    if array.flags.writeable:
        array[...] = 7 if array.dtype != bool else ~array


def arrays_of(thing):
    """Every array that can be reached from a result or a cache."""
    if isinstance(thing, np.ndarray):
        yield thing
    elif isinstance(thing, (tuple, list)):
        for part in thing:
            yield from arrays_of(part)
    elif hasattr(thing, "__dict__"):
        yield from arrays_of(list(vars(thing).values()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nothing_written_after_the_call_changes_the_gradients(name):
    forward, backward = FUNCTIONS[name]
    masks = BIAS.copy(), ALLOWED.copy()
    given = inputs()
    dout = given.pop("dout")
    right = [one.copy() for one in backward(dout, forward(**given)[1])]
    out, cache = forward(**given)
    try:
        for array in (*given.values(), out, BIAS, ALLOWED, *arrays_of(cache)):
            overwrite(array)
        first = backward(dout, cache)
        for found, wanted in zip(first, right, strict=True):
            np.testing.assert_array_equal(found, wanted)
        for array in first:
            overwrite(array)
        for found, wanted in zip(backward(dout, cache), right, strict=True):
            np.testing.assert_array_equal(found, wanted)
    finally:
        BIAS[...], ALLOWED[...] = masks


@pytest.mark.parametrize("prompt", [0, 30], ids=["steps", "prefill, steps"])
def test_nothing_written_after_a_step_changes_the_next(prompt):
    def replay(spoil):
        given = inputs()
        cache, rows = SparseKCache(6, 4), []
        if prompt:
            part = {name: given[name][:, :prompt].copy() for name in ("q", "k", "v", "scores")}
            rows.append(cache.prefill(**part).copy())
            for array in part.values():
                spoil(array)
        for t in range(prompt, N):
            token = [given[name][:, t].copy() for name in ("q", "k", "v", "scores")]
            out = cache.step(*token)
            rows.append(out.copy())
            for array in (*token, out):
                spoil(array)
        return rows

    for found, wanted in zip(replay(overwrite), replay(lambda array: None), strict=True):
        np.testing.assert_array_equal(found, wanted)


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "negative strides": lambda x: x[..., ::-1].copy()[..., ::-1],
    "every other": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "read-only": lambda x: np.lib.stride_tricks.as_strided(x, writeable=False),
    "the other byte order": lambda x: x.astype(x.dtype.newbyteorder("S")),
    "axes exchanged": lambda x: np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_layout_of_an_argument_changes_no_bit(name, layout, dtype):
    forward, backward = FUNCTIONS[name]
    found = []
    for change in (np.ascontiguousarray, LAYOUTS[layout]):
        given = {key: change(array) for key, array in inputs(dtype).items()}
        dout = given.pop("dout")
        out, cache = forward(**given)
        found.append([out, *backward(dout, cache)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_broadcast_argument_gives_the_bits_of_its_copy(name):
    forward, backward = FUNCTIONS[name]
    found = []
    for change in (np.array, lambda x: x):
        given = {key: change(np.broadcast_to(array[:1, :1], array.shape)) for key, array in inputs().items()}
        dout = given.pop("dout")
        out, cache = forward(**given)
        found.append([out, *backward(dout, cache)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_a_token_changes_no_bit(layout):
    found = []
    for change in (np.ascontiguousarray, LAYOUTS[layout]):
        given, cache = {key: change(array) for key, array in inputs().items()}, SparseKCache(6, 4)
        rows = [cache.prefill(*(given[name][:, :30] for name in ("q", "k", "v", "scores")))]
        rows += [cache.step(*(given[name][:, t] for name in ("q", "k", "v", "scores"))) for t in range(30, N)]
        found.append(rows)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_a_mask_changes_no_bit(layout):
    given = inputs()
    q, k, v = given["q"], given["k"], given["v"]
    for mask in (BIAS, ALLOWED):
        if mask.dtype == bool and layout == "the other byte order":
            continue
        found = [dense_attention_forward(q, k, v, mask=change(mask)) for change in (np.array, LAYOUTS[layout])]
        np.testing.assert_array_equal(found[0][0], found[1][0])
        gradients = [dense_attention_backward(given["dout"], cache) for _, cache in found]
        for one, other in zip(*gradients, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 2), (2,), (3,), (0, 1, 2, 3)], ids=str)
def test_what_is_kept_is_a_copy_row_by_row_which_only_heads_may_share(axes):
    whole = np.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    array = np.broadcast_to(whole[tuple(slice(1) if axis in axes else slice(None) for axis in range(4))], whole.shape)
    copy = kept(array)
    np.testing.assert_array_equal(copy, array)
    assert not copy.flags.writeable
    assert not np.may_share_memory(copy, whole)
    assert copy.strides[-2:] == (5 * 8, 8)
    assert [stride == 0 for stride in copy.strides[:-2]] == [axis in axes for axis in range(2)]


@pytest.mark.parametrize("array", [np.float32(3.0), np.arange(4, dtype=">f4"), np.arange(6.0).reshape(3, 2).T], ids=str)
def test_what_is_kept_has_the_byte_order_of_the_machine(array):
    copy = kept(np.asarray(array))
    np.testing.assert_array_equal(copy, array)
    assert copy.dtype.isnative
    assert copy.flags.c_contiguous
