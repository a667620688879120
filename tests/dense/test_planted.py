"""Errors planted into the source of exact attention: each fails the checks of these tests."""

import inspect
from types import SimpleNamespace

import numpy as np
import pytest
from dense_definition import check_derivatives, check_large_logits, check_layouts, check_masks, ids

import refattn.dense
from refattn import Causal, SlidingWindow
from refattn._heads import HeadLayout
from refattn.testing import GradientMismatchError


def mutant(*replacements):
    """The package's own source with lines replaced, as a module."""
    source = inspect.getsource(refattn.dense)
    for right, wrong in replacements:
        assert source.count(right) >= 1, f"no longer in dense.py: {right}"
        source = source.replace(right, wrong)
    namespace = {"__name__": "refattn.dense"}
    exec(compile(source, "mutant of dense.py", "exec"), namespace)
    return SimpleNamespace(**namespace)


def all_checks(implementation):
    """The checks of this module at one point of each table; raises at the first that fails."""
    check_masks(implementation, "all of causal, boolean and two additive", {"softcap": 0.7})
    check_masks(implementation, "causal")
    check_masks(implementation, "window 2, 1 sink")
    check_masks(implementation, "causal, bottom-right, more queries")
    check_layouts(implementation, "grouped")
    check_large_logits(implementation, 1e4)
    check_derivatives(implementation, "grouped", "causal", 3, 3, softcap=1.5, block=2)


FORWARD_MUTANTS = {
    "scale missing": [("as_scale(scale, q.shape[-1], q.dtype)", "1.0")],
    "scale 0.1 % off": [("as_scale(scale, q.shape[-1], q.dtype)", "1.001 * as_scale(scale, q.shape[-1], q.dtype)")],
    "row not divided by its sum": [("np.divide(weights, total, out=weights, where=total > 0)", "pass")],
    "unstable softmax": [("np.copyto(largest, 0, where=largest == -np.inf)", "largest[...] = 0")],
    "masked rows keep a weight": [
        ("np.copyto(logits, -np.inf, where=~allowed)", "np.copyto(logits, -9.0, where=~allowed)")
    ],
    "softcap missing": [("if softcap is not None:", "if False:")],
    "softcap before division": [("np.divide(logits, softcap, out=logits)", "pass")],
    "only one additive mask applied": [
        ("in mask.addends(rows, logits.dtype):", "in list(mask.addends(rows, logits.dtype))[:1]:")
    ],
    "last row left out": [
        ("slice(start, min(start + step, n))", "slice(start, min(start + step, n - 1))"),
        ("np.empty", "np.zeros"),  # or the row may hold what an earlier, right result left in memory
    ],
    "log-sum-exp without the largest logit": [("self.row_max + np.log", "np.log")],
}
BACKWARD_MUTANTS = {
    "gradient of q 0.1 % off": [("np.matmul(dlogits, k, out", "np.matmul(1.001 * dlogits, k, out")],
    "gradient of k 0.1 % off": [("dk += dk_part", "dk += 1.001 * dk_part")],
    "gradient of v 0.1 % off": [("dv += dv_part", "dv += 1.001 * dv_part")],
    "gradient of k transposed": [
        (
            "return dlogits.swapaxes(-1, -2) @ q[..., rows, :], dv_part",
            "part = np.zeros_like(dk); part[..., rows, :] = dlogits @ q; return part, dv_part",
        )
    ],
    "softmax correction dropped": [("dlogits -= (weights * dlogits).sum(axis=-1, keepdims=True)", "pass")],
    "softmax correction halved": [("dlogits -= (weights", "dlogits -= 0.5 * (weights")],
    "scale missing from the gradient": [("factor = np.asarray(scale, dlogits.dtype)", "factor = 1")],
    "slope of the softcap dropped": [("dlogits *= slope", "pass")],
    "gradient of the last block only": [("dk += ", "dk[...] = ")],
    "shared heads averaged": [("layout.reduce_keys(dv, cache.v.shape)", "layout.reduce_keys(dv, cache.v.shape) / 2")],
}


def test_the_unchanged_source_passes_every_check():
    all_checks(mutant())


@pytest.mark.parametrize("planted", ids(FORWARD_MUTANTS))
def test_a_planted_error_in_the_forward_is_caught(planted):
    wrong = mutant(*FORWARD_MUTANTS[planted])
    with pytest.raises((AssertionError, ValueError)):  # a wrong result, or one that is refused as not finite
        all_checks(wrong)


@pytest.mark.parametrize("planted", ids(BACKWARD_MUTANTS))
def test_a_planted_error_in_the_backward_is_caught_by_central_differences(planted):
    wrong = mutant(*BACKWARD_MUTANTS[planted])
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
