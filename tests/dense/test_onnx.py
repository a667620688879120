"""Exact attention against the ONNX `Attention` operator: all base cases of the backend test suite.

`attention` below translates the operator's inputs and attributes into ours. Of the operator's four outputs only ``Y``
is compared everywhere: ``present_key`` and ``present_value`` are the concatenation that the translation makes itself,
and the ``qk_matmul_output`` modes 0 to 2 (logits before and after the cap and the mask) are not offered by the package.
Mode 3, the weights, is what attention gives for the identity as values, and is compared too.
"""

import functools
import importlib
import warnings

import numpy as np
import pytest

from refattn import Causal, PromotionWarning, SlidingWindow, dense_attention
from refattn.testing import row_errors, tolerance

pytestmark = pytest.mark.usefixtures("either_way")

onnx = pytest.importorskip("onnx")

INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")

NOT_COVERED: dict[str, str] = {}
"""Base cases that our features do not cover, each with the reason; there are none."""


@functools.cache
def base_cases():
    """The operator's cases by name, without the ones that test its expansion into other operators."""
    state = np.random.get_state()  # noqa: NPY002 (ONNX seeds the global generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case import node

        importlib.import_module("onnx.backend.test.case.node.attention")  # the loader computes all operators' cases
    np.random.set_state(state)  # noqa: NPY002
    cases = node._NodeTestCases
    return {c.name: c for c in cases if c.name.startswith("test_attention") and "_expanded" not in c.name}


def read(case):
    """Inputs, attributes and expected outputs of a case, by the operator's formal names."""
    (node,) = case.model.graph.node
    ((given, expected),) = case.data_sets
    given, expected = iter(given), iter(expected)
    inputs = {formal: next(given) for formal, actual in zip(INPUTS, node.input, strict=False) if actual}
    outputs = {actual: next(expected) for actual in node.output if actual}
    return inputs, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}, outputs


def heads_first(array, heads):
    """``(batch, n, heads · d)`` as ``(batch, heads, n, d)``; four axes are in that order already."""
    return array if array.ndim == 4 else array.reshape(*array.shape[:2], heads, -1).swapaxes(1, 2)


def conditions(inputs, attributes, n_q, n_k):
    """The operator's mask as parts of ours."""
    lengths = inputs.get("nonpad_kv_seqlen")
    left, right = (attributes.get(f"{side}_window_size", -1) for side in ("left", "right"))
    causal = bool(attributes.get("is_causal"))
    if lengths is None:  # every batch has its queries at the same place: behind the past
        offset = inputs["past_key"].shape[-2] if "past_key" in inputs else 0
        if causal and left >= 0:
            yield SlidingWindow(left + 1, alignment=offset)
            left = -1
        elif causal:
            yield Causal(offset)
        causal = False
        positions = offset + np.arange(n_q)[:, None]
    else:  # queries are the last of each batch's keys that are no padding
        lengths = lengths.reshape(-1, 1, 1, 1)
        yield np.arange(n_k) < lengths
        positions = lengths - n_q + np.arange(n_q)[:, None]
    lag = positions - np.arange(n_k)
    if causal:
        yield lag >= 0
    if left >= 0:
        yield lag <= left
    if right >= 0:
        yield -lag <= right
    if "attn_mask" in inputs:
        mask = computable(inputs["attn_mask"])
        hidden = False if mask.dtype == bool else -np.inf  # keys past the end of a short mask
        pad = [(0, 0)] * (mask.ndim - 1) + [(0, n_k - mask.shape[-1])]
        yield np.pad(mask, pad, constant_values=hidden)


def computable(array):
    """bfloat16 as float32; the package promotes float16 itself."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def attention(inputs, attributes, *, weights=False):
    """ONNX's `Attention` by `dense_attention`: ``Y``, or the weights."""
    q = heads_first(computable(inputs["Q"]), attributes.get("q_num_heads"))
    k, v = (heads_first(computable(inputs[name]), attributes.get("kv_num_heads")) for name in "KV")
    if "past_key" in inputs:
        k, v = np.concatenate([inputs["past_key"], k], -2), np.concatenate([inputs["past_value"], v], -2)
    if weights:
        v = np.eye(k.shape[-2], dtype=v.dtype)
    out = dense_attention(
        q,
        k,
        v,
        mask=("full", *conditions(inputs, attributes, q.shape[-2], k.shape[-2])),
        scale=attributes.get("scale"),
        softcap=attributes.get("softcap"),
    )
    flat = inputs["Q"].ndim == 3 and not weights
    return out.swapaxes(1, 2).reshape(*out.shape[:1], out.shape[2], -1) if flat else out


def promoting(inputs):
    """Float16 inputs are promoted, and that is said."""
    return pytest.warns(PromotionWarning) if inputs["Q"].dtype == np.float16 else warnings.catch_warnings()


@pytest.mark.parametrize("name", [pytest.param(n, id=n.removeprefix("test_attention_")) for n in base_cases()])
def test_output_is_that_of_the_onnx_operator(name):
    if name in NOT_COVERED:
        pytest.skip(NOT_COVERED[name])
    inputs, attributes, outputs = read(base_cases()[name])
    with promoting(inputs):
        out = attention(inputs, attributes)
    expected = outputs["Y"]
    assert out.dtype == np.float32
    assert row_errors(out, expected.astype(np.float64)).max() <= tolerance("stored", expected.dtype).rtol


@pytest.mark.parametrize(
    "name", [pytest.param(n, id=n) for n, c in base_cases().items() if read(c)[1].get("qk_matmul_output_mode") == 3]
)
def test_weights_are_those_of_the_onnx_operator(name):
    inputs, attributes, outputs = read(base_cases()[name])
    expected = outputs["qk_matmul_output"]
    with promoting(inputs):
        weights = attention(inputs, attributes, weights=True)
    assert row_errors(weights, expected.astype(np.float64)).max() <= tolerance("stored", expected.dtype).rtol


def test_every_base_case_is_covered_or_listed_with_a_reason():
    cases = base_cases()
    covered = cases.keys() - NOT_COVERED.keys()
    assert len(cases) == 93
    assert len(covered) + len(NOT_COVERED) == len(cases)
    assert NOT_COVERED.keys() <= cases.keys()
    assert len(NOT_COVERED) < 25
    assert all(NOT_COVERED.values())


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        ({"is_causal": 0}, "test_attention_4d_causal"),
        ({"left_window_size": 1}, "test_attention_local_window"),
        ({"right_window_size": 1}, "test_attention_bidirectional_window"),
        ({"softcap": 2.02}, "test_attention_4d_softcap"),
        ({"scale": None}, "test_attention_4d_gqa_scaled"),
    ],
    ids=["causal", "left_window", "right_window", "softcap", "scale"],
)
def test_a_case_with_another_attribute_is_not_the_operators(planted, name):
    inputs, attributes, outputs = read(base_cases()[name])
    assert row_errors(attention(inputs, attributes | planted), outputs["Y"]).max() > tolerance("stored", "float32").rtol
