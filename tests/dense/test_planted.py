"""Errors planted into the source of exact attention: each fails the checks of these tests."""

import numpy as np
import pytest
from altered_dense import METHODS, altered_dense
from dense_definition import check_derivatives, check_large_logits, check_layouts, check_long, check_masks

import refattn.dense
from refattn import Causal, SlidingWindow
from refattn._heads import HeadLayout
from refattn.testing import GradientMismatchError


def all_checks(implementation):
    """The checks of these tests at one point of each table; raises at the first that fails."""
    check_masks(implementation, "all of causal, boolean and two additive", {"softcap": 0.7})
    check_masks(implementation, "causal")
    check_masks(implementation, "window 2, 1 sink")
    check_masks(implementation, "causal, bottom-right, more queries")
    check_layouts(implementation, "grouped")
    check_large_logits(implementation, 1e4)
    check_derivatives(implementation, "grouped", "causal", 3, 3, softcap=1.5, block=2)
    check_derivatives(implementation, "grouped", "causal", 3, 3, block=2)
    check_long(implementation, "causal", 1.0)
    check_long(implementation, "full", 1000.0)


SCALE = "as_scale(scale, q.shape[-1], q.dtype)"
UNSTABLE = ("np.copyto(largest, 0, where=largest == -np.inf)", "largest[...] = 0")
LAST_ROW = [
    ("slice(start, min(start + step, n))", "slice(start, min(start + step, n - 1))"),
    ("np.empty", "np.zeros"),  # or the row may hold what an earlier, right result left in memory
]
LAST_ROW_OF_BLOCKS = [
    ("slice(start, min(start + step, n_q))", "slice(start, min(start + step, n_q - 1))"),
    ("np.empty", "np.zeros"),
]
FORWARD_MUTANTS = {
    "oracle": {
        "scale missing": [(SCALE, "1.0")],
        "row not divided by its sum": [("np.divide(weights, total, out=weights, where=total > 0)", "pass")],
        "unstable softmax": [UNSTABLE],
        "masked rows keep a weight": [
            ("np.copyto(logits, -np.inf, where=~allowed)", "np.copyto(logits, -9.0, where=~allowed)")
        ],
        "softcap missing": [("if softcap is not None:\n        np.divide", "if False:\n        np.divide")],
        "softcap before division": [("np.divide(logits, softcap, out=logits)", "pass")],
        "only one additive mask applied": [
            ("in mask.addends(rows, logits.dtype):", "in list(mask.addends(rows, logits.dtype))[:1]:")
        ],
        "last row left out": LAST_ROW,
        "log-sum-exp without the largest logit": [("self.row_max + np.log", "np.log")],
    },
    "fast": {
        "scale missing": [(SCALE, "1.0")],
        "scale 0.1 % off": [(SCALE, f"1.001 * {SCALE}")],
        "row not divided by its sum": [("divide_rows(out, total)", "pass")],
        "what a pattern hides keeps a weight": [("hide_out_of_sight(weights[", "print(end='') or (weights[")],
        "what a pattern hides keeps a weight beside options": [
            ("hide_out_of_sight(some, first", "print(end='') or (some, first")
        ],
        "keys that may be hidden counted from the first": [("first + some, position", "some, position")],
        "positions counted from the block": [("position + row,", "position,")],
        "what an array hides keeps a weight": [("for boolean in self.booleans:", "for boolean in ():")],
        "softcap missing": [("if cap is not None:", "if False:")],
        "softcap before division": [("out /= out.dtype.type(cap)", "pass")],
        "only one additive mask applied": [("for bias in self.biases:", "for bias in self.biases[:1]:")],
        "last row left out": LAST_ROW_OF_BLOCKS,
        "tiles before not rescaled": [("scale_rows(out, kept)", "pass")],
        "tiles before forgotten": [("scale_rows(out, kept)", "out[...] = 0")],
        "log-sum-exp without the largest logit": [("self.row_max + np.log", "np.log")],
    },
}
HEADS_AVERAGED = [("layout.reduce_keys(dv, cache.v.shape)", "layout.reduce_keys(dv, cache.v.shape) / 2")]
BACKWARD_MUTANTS = {
    "oracle": {
        "gradient of q 0.1 % off": [("np.matmul(dlogits, k, out", "np.matmul(1.001 * dlogits, k, out")],
        "gradient of k 0.1 % off": [("dk += dk_part", "dk += 1.001 * dk_part")],
        "gradient of v 0.1 % off": [("dv += dv_part", "dv += 1.001 * dv_part")],
        "gradient of k transposed": [
            (
                "dk_part = dlogits.swapaxes(-1, -2) @ q[..., rows, :]",
                "dk_part = np.zeros_like(dk); dk_part[..., rows, :] = dlogits @ q",
            )
        ],
        "softmax correction dropped": [("dlogits -= flow", "pass")],
        "softmax correction halved": [("dlogits -= flow", "dlogits -= 0.5 * flow")],
        "scale missing from the gradient": [("factor = np.asarray(scale, dlogits.dtype)", "factor = 1")],
        "slope of the softcap dropped": [("dlogits *= slope", "pass")],
        "gradient of the last block only": [("dk += ", "dk[...] = ")],
        "shared heads averaged": HEADS_AVERAGED,
    },
    "fast": {
        "gradient of q 0.1 % off": [("add_sum(flow[at], head.k", "add_sum(1.001 * flow[at], head.k")],
        "gradient of k 0.1 % off": [("add_product(flow[at], queries", "add_product(1.001 * flow[at], queries")],
        "gradient of v 0.1 % off": [("add_product(weights[at], g", "add_product(1.001 * weights[at], g")],
        "scale missing from the gradient": [("dq *= dq.dtype.type(head.problem.scale)", "pass")],
        "gradient of k of scaled queries": [
            ("add_product(flow[at], queries", "add_product(flow[at], _in_rows(scaled.T)")
        ],
        "slope of the softcap dropped": [("flow[at] *= slope", "pass")],
        "gradient of the last block only": [("add_product(weights", "dv[...] = 0; add_product(weights")],
        "shared heads averaged": HEADS_AVERAGED,
    },
}


def of_methods(mutants):
    return [pytest.param(method, name, id=f"{method}: {name}") for method in mutants for name in mutants[method]]


@pytest.mark.parametrize("method", METHODS)
def test_the_unchanged_source_passes_every_check(method):
    all_checks(altered_dense(method))


@pytest.mark.parametrize(("method", "planted"), of_methods(FORWARD_MUTANTS))
def test_a_planted_error_in_the_forward_is_caught(method, planted):
    wrong = altered_dense(method, *FORWARD_MUTANTS[method][planted])
    with pytest.raises((AssertionError, ValueError)):  # a wrong result, or one that is refused as not finite
        all_checks(wrong)


@pytest.mark.parametrize(("method", "planted"), of_methods(BACKWARD_MUTANTS))
def test_a_planted_error_in_the_backward_is_caught_by_central_differences(method, planted):
    wrong = altered_dense(method, *BACKWARD_MUTANTS[method][planted])
    with pytest.raises(GradientMismatchError, match="direction"):
        all_checks(wrong)


@pytest.mark.parametrize("shift", [-1, 1], ids=str)
@pytest.mark.parametrize("pattern", [Causal, SlidingWindow], ids=["causal", "window"])
def test_a_mask_off_by_one_is_caught(monkeypatch, pattern, shift):
    right = pattern.allowed
    monkeypatch.setattr(
        pattern,
        "allowed",
        lambda self, rows, n_q, n_k: right(self, slice(rows.start + shift, rows.stop + shift), n_q, n_k),
    )
    with pytest.raises(AssertionError):
        all_checks(refattn.dense)


def test_heads_grouped_by_remainder_are_caught(monkeypatch):
    split, merge = HeadLayout.split_heads, HeadLayout.merge

    def remainder(lead, group):  # query head h meets key-value head h % H_kv
        heads_kv = lead[-1] // group
        return [h + heads_kv * g for h in range(heads_kv) for g in range(group)]

    def wrong_split(self, array):
        if self.group > 1 and array.ndim > 2 and array.shape[-3] == self.lead[-1]:
            array = array[..., remainder(self.lead, self.group), :, :]
        return split(self, array)

    def wrong_merge(self, array):
        merged = merge(self, array)
        return merged[..., np.argsort(remainder(self.lead, self.group)), :, :] if self.group > 1 else merged

    monkeypatch.setattr(HeadLayout, "split_heads", wrong_split)
    monkeypatch.setattr(HeadLayout, "merge", wrong_merge)
    check_derivatives(refattn.dense, "grouped", "causal", 3, 3)  # consistent with itself, so only the definition tells
    with pytest.raises(AssertionError):
        check_layouts(refattn.dense, "grouped")
