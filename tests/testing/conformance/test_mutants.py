"""Planted errors: every one is caught by `check_attention` with its default settings, and most are named."""

# ruff: noqa: E501 - a planted error is one line, that of the source

import pytest
from altered_dense import altered_dense

from refattn.convbasis import basis
from refattn.convbasis.fast import softmax as conv_fast
from refattn.convbasis.fast.cost import Plan
from refattn.convbasis.guarded import gradients
from refattn.convbasis.guarded import softmax as guarded
from refattn.sparsek import fast as sparsek_fast
from refattn.sparsek import operator, prefix
from refattn.sparsek import paper as sparsek_paper
from refattn.testing import check_attention

UNNAMED = None


def ids(table):
    return [pytest.param(key, id=key) for key in table]


def caught(report, cause):
    assert not report.passed
    assert not any("AttributeError" in case.reason or "NameError" in case.reason for case in report.failures)
    assert report.shrunk is not None
    assert report.shrunk.n <= next(case.n for case in report.failures if case.judgements)
    if cause is not UNNAMED:
        assert report.causes, str(report)
        assert report.causes[0].name == cause, str(report)


SCALE = "as_scale(scale, q.shape[-1], q.dtype)"
DENSE = {
    "scale missing": ("missing scale", [(SCALE, "1.0")]),
    "scale squared": ("scale applied twice", [(SCALE, f"{SCALE} ** 2")]),
    "scale given not used": ("scale argument ignored", [(SCALE, "as_scale(None, q.shape[-1], q.dtype)")]),
    "scale 0.1 % off": (UNNAMED, [(SCALE, f"1.001 * {SCALE}")]),
    "rows not divided": (
        "rows not normalised",
        [("np.divide(weights, total, out=weights, where=total > 0)  #", "pass  #")],
    ),
    "no maximum, overflow refused": (UNNAMED, [("np.copyto(largest, 0, where=largest == -np.inf)", "largest[...] = 0")]),
    "no maximum": (
        "unstable softmax",
        [
            ("np.copyto(largest, 0, where=largest == -np.inf)", "largest[...] = 0"),
            ('require_finite("v: output", out)', "pass"),
            ("return finite_gradients(gradients)", "return gradients"),
        ],
    ),
    "masked logits of −9": (UNNAMED, [("np.copyto(logits, -np.inf, where=~allowed)", "np.copyto(logits, -9.0, where=~allowed)")]),
    "every mask ignored": (UNNAMED, [("RowMask(mask, ", 'RowMask("full", ')]),
    "dk of dS": (
        "transposed gradient",
        [("dk_part = dlogits.swapaxes(-1, -2) @ q[..., rows, :]", "dk_part = np.zeros_like(dk); dk_part[..., rows, :] = dlogits @ q")],
    ),
    "row sums dropped": (
        "softmax correction dropped",
        [("dlogits -= flow", "pass")],
    ),
    "row sums halved": (UNNAMED, [("dlogits -= flow", "dlogits -= 0.5 * flow")]),
    "gradients without scale": ("constant factor", [("factor = np.asarray(scale, dlogits.dtype)", "factor = 1")]),
    "gradients 0.1 % off": (
        "constant factor",
        [("factor = np.asarray(scale, dlogits.dtype)", "factor = np.asarray(1.001 * scale, dlogits.dtype)")],
    ),
    "dq and dk exchanged": (
        "gradients of q and k exchanged",
        [("dq = np.empty(q.shape, q.dtype)", "dq, swapped = np.empty(q.shape, q.dtype), True"),
         ("layout.reduce_queries(dq, cache.q.shape)", "layout.reduce_queries(dk if dq.shape == dk.shape else dq, cache.q.shape)"),
         ("layout.reduce_keys(dk, cache.k.shape)", "layout.reduce_keys(dq if dq.shape == dk.shape else dk, cache.k.shape)")],
    ),
    "shared heads averaged": (
        "shared gradients averaged",
        [(f"layout.reduce_keys(d{x}, cache.{x}.shape)", f"layout.reduce_keys(d{x}, cache.{x}.shape) / layout.group")
         for x in "kv"],
    ),
    "last row left out": (
        "last row lost",
        [("slice(start, min(start + step, n))", "slice(start, min(start + step, n - 1))"),
         ("(slice(start, min(start + step, n - 1)) for start in range(0, n, step))",
          "(slice(start, min(start + step, n - 1)) for start in range(0, n - 1, step))"),
         ("np.empty", "np.zeros")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("planted", ids(DENSE))
def test_an_error_planted_in_the_dense_path_is_caught(planted, kernels):
    cause, replacements = DENSE[planted]
    forward, backward = kernels.dense(altered_dense("oracle", *replacements))
    caught(check_attention(forward, "dense", backward=backward, profile="quick"), cause)


PYTORCH = """
import torch

def attention(q, k, v, *, causal, scale, mask):
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, dim=1)
    v = v.repeat_interleave(group, dim=1)
    logits = q @ k.transpose(-1, -2)
    logits = logits * scale
    allowed = torch.ones(logits.shape[-2:], dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask
    logits = logits.masked_fill(~allowed, float("-inf"))
    largest = logits.amax(dim=-1, keepdim=True).clamp(min=-1e30).detach()
    weights = torch.exp(logits - largest)
    total = weights.sum(dim=-1, keepdim=True)
    weights = weights / total.masked_fill(total == 0, 1)
    out = weights @ v
    return out
"""
INTERLEAVE = "{0} = {0}.repeat_interleave(group, dim=1)"
TORCH = {
    "scale missing": ("missing scale", [("logits * scale", "logits")]),
    "scale of d_v": ("scale by the width of the values", [("logits * scale", "logits * v.shape[-1] ** -0.5")]),
    "heads by remainder": (
        "wrong head grouping",
        [(INTERLEAVE.format(x), f"{x} = {x}.repeat(1, group, 1, 1)") for x in "kv"],
    ),
    "first head for all": (
        "first key-value head for all",
        [(INTERLEAVE.format(x), f"{x} = {x}[:, :1].expand(-1, q.shape[1], -1, -1)") for x in "kv"],
    ),
    "values of another head": (UNNAMED, [("out = weights @ v", "out = weights @ v.flip(1)")]),
    "one key too many": ("mask off by one (sees one later key)", [("allowed.tril()", "allowed.tril(1)")]),
    "one key too few": ("mask off by one (misses its own key)", [("allowed.tril()", "allowed.tril(-1)")]),
    "not causal": ("future leak", [("if causal:", "if False:")]),
    "always causal": ("causal where full was asked", [("if causal:", "if True:")]),
    "mask ignored": ("mask argument ignored", [("if mask is not None:", "if False:")]),
    "mask inverted": ("mask inverted", [("allowed & mask", "allowed & ~mask")]),
    "last key hidden": ("last key dropped", [("    logits = logits.masked_fill", "    allowed[:, -1] = False\n    logits = logits.masked_fill")]),
    "no maximum": ("unstable softmax", [("logits.amax(dim=-1, keepdim=True).clamp(min=-1e30).detach()", "0")]),
    "logits cut off at 60": (UNNAMED, [("torch.exp(logits - largest)", "torch.exp(logits.clamp(max=60))")]),
    "zero by zero": ("NaN from empty rows", [("total.masked_fill(total == 0, 1)", "total")]),
    "mask of −10³⁰": ("mean in empty rows", [('float("-inf")', "-1e30")]),
    "powers of two": ("exponential of base 2", [("torch.exp(", "torch.exp2(")]),
    "rows not divided": ("rows not normalised", [("weights / total.masked_fill(total == 0, 1)", "weights")]),
    "mask after softmax": (
        "softmax before mask",
        [('    logits = logits.masked_fill(~allowed, float("-inf"))\n', ""), ("out = weights @ v", "out = (weights * allowed) @ v")],
    ),
    "sum without gradient": ("softmax correction dropped", [("total == 0, 1)", "total == 0, 1).detach()")]),
    "values in float16": ("wrong dtype", [("out = weights @ v", "out = (weights.half() @ v.half()).float()")]),
    "logits in bfloat16": ("wrong dtype", [("logits = q @ k.transpose(-1, -2)", "logits = (q.bfloat16() @ k.bfloat16().transpose(-1, -2)).float()")]),
    "result in float16": (UNNAMED, [("return out", "return out.half()")]),
    "rows rolled": ("rows shifted by one", [("return out", "return out.roll(1, -2)")]),
    "result transposed": (UNNAMED, [("return out", "return out.transpose(-1, -2)")]),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("planted", ids(TORCH))
def test_an_error_planted_in_a_plain_pytorch_implementation_is_caught(planted):
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    cause, replacements = TORCH[planted]
    attention = written(PYTORCH, replacements)
    caught(check_attention(attention, "dense", backward="autograd", arrays="torch", profile="quick"), cause)


def written(source, replacements):
    """The function `attention` of a text with lines replaced."""
    for right, wrong in replacements:
        assert right in source
        source = source.replace(right, wrong)
    namespace = {}
    exec(source, namespace)
    return namespace["attention"]


PLAIN = """
import numpy as np
from refattn.testing.conformance.precision import PRECISIONS

def attention(q, k, v, *, causal, scale, mask):
    group = q.shape[1] // k.shape[1]
    k = np.repeat(k, group, axis=1)
    v = np.repeat(v, group, axis=1)
    logits = q @ k.swapaxes(-1, -2)
    logits = logits * scale
    allowed = np.ones(logits.shape[-2:], dtype=bool)
    if causal:
        allowed = np.tril(allowed)
    if mask is not None:
        allowed = allowed & mask
    logits = np.where(allowed, logits, -np.inf)
    largest = np.maximum(logits.max(axis=-1, keepdims=True), -1e30)
    with np.errstate(all="ignore"):
        weights = np.exp(logits - largest)
        total = weights.sum(axis=-1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    out = weights @ v
    return out
"""
REPEAT = "{0} = np.repeat({0}, group, axis=1)"
BFLOAT16 = "PRECISIONS['bfloat16'].round"
NUMPY = {
    "scale missing": ("missing scale", [("logits * scale", "logits")]),
    "scale of d_v": ("scale by the width of the values", [("logits * scale", "logits * v.shape[-1] ** -0.5")]),
    "heads by remainder": (
        "wrong head grouping",
        [(REPEAT.format(x), f"{x} = np.tile({x}, (1, group, 1, 1))") for x in "kv"],
    ),
    "first head for all": (
        "first key-value head for all",
        [(REPEAT.format(x), f"{x} = np.repeat({x}[:, :1], q.shape[1], axis=1)") for x in "kv"],
    ),
    "index of heads cut off": (
        "last key-value head for those beyond",
        [(REPEAT.format(x), f"{x} = {x}[:, [min(h, {x}.shape[1] - 1) for h in range(q.shape[1])]]") for x in "kv"],
    ),
    "values of another head": (UNNAMED, [("out = weights @ v", "out = weights @ v[:, ::-1]")]),
    "one key too many": ("mask off by one (sees one later key)", [("np.tril(allowed)", "np.tril(allowed, 1)")]),
    "one key too few": ("mask off by one (misses its own key)", [("np.tril(allowed)", "np.tril(allowed, -1)")]),
    "not causal": ("future leak", [("if causal:", "if False:")]),
    "always causal": ("causal where full was asked", [("if causal:", "if True:")]),
    "mask ignored": ("mask argument ignored", [("if mask is not None:", "if False:")]),
    "mask inverted": ("mask inverted", [("allowed & mask", "allowed & ~mask")]),
    "last key hidden": ("last key dropped", [("    logits = np.where", "    allowed[:, -1] = False\n    logits = np.where")]),
    "last row zero": ("last row lost", [("return out", "out[..., -1, :] = 0; return out")]),
    "no maximum": ("unstable softmax", [("np.maximum(logits.max(axis=-1, keepdims=True), -1e30)", "0")]),
    "logits cut off at 60": (UNNAMED, [("np.exp(logits - largest)", "np.exp(np.minimum(logits, 60))")]),
    "zero by zero": ("NaN from empty rows", [("np.where(total == 0, 1, total)", "total")]),
    "mask of −10³⁰": ("mean in empty rows", [("logits, -np.inf)", "logits, np.float32(-1e30))")]),
    "masked keys as zero": ("masked keys counted", [("    weights = np.exp(logits - largest)\n", "    weights = np.exp(logits)\n"), ("total = weights.sum(axis=-1, keepdims=True)", "total = weights.sum(axis=-1, keepdims=True) + (~allowed).sum(axis=-1, keepdims=True, dtype=q.dtype)")]),
    "powers of two": ("exponential of base 2", [("np.exp(", "np.exp2(")]),
    "rows not divided": ("rows not normalised", [("weights / np.where(total == 0, 1, total)", "weights")]),
    "mask after softmax": (
        "softmax before mask",
        [("    logits = np.where(allowed, logits, -np.inf)\n", ""), ("out = weights @ v", "out = (weights * allowed) @ v")],
    ),
    "values in float16": ("wrong dtype", [("out = weights @ v", "out = (weights.astype('e') @ v.astype('e')).astype(q.dtype)")]),
    "logits in bfloat16": ("wrong dtype", [("logits = q @ k.swapaxes(-1, -2)", f"logits = {BFLOAT16}({BFLOAT16}(q) @ {BFLOAT16}(k).swapaxes(-1, -2))")]),
    "result in float16": (UNNAMED, [("return out", "return out.astype('e')")]),
    "rows rolled": ("rows shifted by one", [("return out", "return np.roll(out, 1, -2)")]),
    "rows rolled back": ("rows shifted by one", [("return out", "return np.roll(out, -1, -2)")]),
    "result transposed": (UNNAMED, [("return out", "return out.swapaxes(-1, -2)")]),
}  # fmt: skip


@pytest.mark.parametrize("planted", ids(NUMPY))
def test_an_error_planted_in_a_plain_numpy_implementation_is_caught(planted):
    cause, replacements = NUMPY[planted]
    caught(check_attention(written(PLAIN, replacements), "dense", profile="quick"), cause)


def test_without_a_planted_error_the_plain_implementation_conforms():
    assert check_attention(written(PLAIN, []), "dense", profile="quick").passed


CIRCULAR = """_BLOCK_ENTRIES = 1 << 21
def fft_product(a, x):
    n = len(a)
    return np.fft.irfft(np.fft.rfft(a)[:, None] * np.fft.rfft(x, axis=0), n, axis=0).astype(x.dtype)
"""
CONV = {
    "starts late": (
        "start off by one (late)",
        basis,
        [("columns = as_starts(starts, n)\n", "columns = np.minimum(np.asarray(starts) + (np.arange(len(starts)) > 0), len(q) - 1)\n")],
    ),
    "starts early": (
        "start off by one (early)",
        basis,
        [("columns = as_starts(starts, n)\n", "columns = np.asarray(starts) - (np.arange(len(starts)) > 0)\n")],
    ),
    "scale missing": ("missing scale", basis, [("as_scale(scale, q.shape[1], q.dtype)", "1.0")]),
    "kernels a row down": (
        "kernel shifted",
        basis,
        [("= (q[c:] @ k[c]) * factor", "= (q[c:] @ k[c])[np.maximum(np.arange(n - c) - 1, 0)] * factor")],
    ),
    "kernels of the segment before": (
        "kernel of the segment before",
        basis,
        [("kernel[: n - c] = (q[c:] @ k[c]) * factor",
          "b = columns[max(np.searchsorted(columns, c) - 1, 0)]; kernel[: n - c] = (q[b : b + n - c] @ k[b]) * factor")],
    ),
    "last segment left out": (
        "last segment dropped",
        guarded,
        [("    for c, end, kernel in zip(g.starts,", "    for c, end, kernel in list(zip(g.starts,"),
         ("g.kernels, strict=True):\n        if c < n:", "g.kernels, strict=True))[: max(len(g.starts) - 1, 1)]:\n        if c < n:")],
    ),
    "no padding": (UNNAMED, guarded, [("_BLOCK_ENTRIES = 1 << 21", CIRCULAR)]),
    "rows not guarded": (UNNAMED, guarded, [("self.lost = np.flatnonzero(~kept)", "self.lost = np.flatnonzero(~kept)[:0]"), ("kept = bound <= self.tol / 2 ", "kept = np.ones(bound.shape, bool) ")]),
    "no shift": (UNNAMED, guarded, [("shift = lower.largest if", "shift = 0.0 if")]),
    "only the first column": (
        UNNAMED,
        gradients,
        [("_bounded(rows[c:], columns[c:end], *((s[c:], t[c:end])", "_bounded(rows[c:], columns[c : c + 1], *((s[c:], t[c : c + 1])")],
    ),
    "q left out": ("query gradient dropped", gradients, [("drows[c:] += du_i[: u.size, None] * columns[c]", "pass")]),
    "row sums left out": ("softmax correction dropped", gradients, [("np.concatenate([G, -r], axis=1)", "np.concatenate([G, 0 * r], axis=1)"), ("(G[lost] @ V.T - r[lost])", "(G[lost] @ V.T)"), ("- r[row, 0]", "- 0 * r[row, 0]")]),
    "gradient 0.1 % off": ("constant factor", gradients, [("scaled_back(scale * dQ, units", "scaled_back(1.001 * scale * dQ, units")]),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("planted", ids(CONV))
def test_an_error_planted_in_the_papers_conv_path_is_caught(planted, kernels):
    cause, module, replacements = CONV[planted]
    part = {basis: "basis", guarded: "guarded", gradients: "gradients"}[module]
    wrong = kernels.altered(module, *replacements)
    changed = {part: wrong}
    if part == "guarded":  # the gradients' own walk over the segments is the paper's
        changed["gradients"] = kernels.altered(gradients)
        changed["gradients"].kernel_gradients.__globals__["segments"] = wrong.segments
    forward, backward = kernels.conv(**changed)
    report = check_attention(forward, "conv", backward=backward, profile="quick", strict=True)
    if planted == "no shift":  # it overflows, which is refused: there is nothing to judge, and none to make smaller
        assert {case.reason.partition(":")[0] for case in report.failures} == {"raised ValueError"}, str(report)
    else:
        caught(report, cause)


CONV_FAST = {
    "rows not guarded": (UNNAMED, "block", [("lost = np.flatnonzero(~kept)", "lost = np.flatnonzero(~kept)[:0]")]),
    "sums of columns for sums of rows": (UNNAMED, "block", [("self.below.row_sums()", "self.below.column_sums()")]),
    "kernels shifted": (
        "kernel shifted",
        "direct",
        [("basis.kernels[:used]", "basis.kernels[:used, np.maximum(np.arange(basis.n) - 1, 0)]")],
    ),
    "last segment left out": (UNNAMED, "direct", [("used = int(basis.n_terms)", "used = max(int(basis.n_terms) - 1, 1)")]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("planted", ids(CONV_FAST))
def test_an_error_planted_in_the_fast_conv_path_is_caught(planted, kernels):
    cause, path, replacements = CONV_FAST[planted]
    plan = Plan("direct") if path == "direct" else Plan("block transform", 16)
    caught(
        check_attention(kernels.conv_fast(kernels.altered(conv_fast, *replacements), plan), "conv", profile="quick"),
        cause,
    )


@pytest.mark.long
def test_the_gradient_of_exact_attention_is_told_from_that_of_its_approximation(kernels):
    forward, backward = kernels.conv(gradient="attention_gradient")
    caught(check_attention(forward, "conv", backward=backward, profile="quick"), "gradient of exact attention")


GATES = "np.clip(state.scores[chosen] - state.tau[prefix], 0, 1)"
SPARSEK = {
    "threshold of the query before": ("threshold stale", [("state.tau[prefix]", "state.tau[max(prefix - 1, 0)]")]),
    "last threshold": ("threshold of the whole sequence", [("state.tau[prefix]", "state.tau[-1]")]),
    "gates of one": ("gate dropped", [(GATES, "np.ones(chosen.size)")]),
    "keys without gate": ("gate dropped from the keys", [("problem.gates_keys", "False")]),
    "values without gate": ("gate dropped from the values", [("problem.gates_values", "False")]),
    "one pair more": ("budget off by one (n_select + 1)", [("problem.n_select", "(problem.n_select + 1)")]),
    "window counted twice": (UNNAMED, [("slice(max(prefix + 1, 0), i + 1)", "slice(max(prefix, 0), i + 1)")]),
    "scale missing": ("missing scale", [("np.asarray(problem.scale, q.dtype)", "np.asarray(1.0, q.dtype)")]),
    "row sums left out": ("softmax correction dropped", [("(dweights - query.weights @ dweights)", "dweights")]),
    "mean left out": (
        "mean dropped from the gradient of the scores",
        [("pull_back_prefixes(by_position, by_entry, state.support)", "by_entry")],
    ),
    "dk without gate": (
        "gate missing in the gradient of the keys",
        [("query.delta_k.T @ dkeys", "(query.delta_k.T > 0).astype(dkeys.dtype) @ dkeys")],
    ),
    "scores without gradient": (
        "gradient of the scores dropped",
        [("pull_back_prefixes(by_position, by_entry, state.support)", "0 * by_entry")],
    ),
}  # fmt: skip
SPARSEK_FAST = {
    "thresholds of another budget": (UNNAMED, [("float(problem.n_select)", "float(problem.n_select + 1)")]),
    "upstream of the scores a query late": (UNNAMED, [("by_query[heads.numbers, window:]", "by_query[heads.numbers, window + 1 :]"), ("by_position[:, : max(scores.shape[1] - window, 0)]", "by_position[:, : max(scores.shape[1] - window - 1, 0)]")]),
    "first head's keys": ("first key-value head for all", [("of_q, of_k, of_v, of_scores = _rows_of_heads(problem)", "of_q, *others = _rows_of_heads(problem); of_k, of_v, of_scores = (0 * rows for rows in others)")]),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("planted", ids(SPARSEK))
def test_an_error_planted_in_the_papers_sparsek_path_is_caught(planted, kernels):
    cause, replacements = SPARSEK[planted]
    forward, backward = kernels.sparsek(kernels.altered(sparsek_paper, *replacements))
    caught(check_attention(forward, "sparsek", backward=backward, profile="quick"), cause)


@pytest.mark.slow
@pytest.mark.parametrize("planted", ids(SPARSEK_FAST))
def test_an_error_planted_in_the_fast_sparsek_path_is_caught(planted, kernels):
    cause, replacements = SPARSEK_FAST[planted]
    forward, backward = kernels.sparsek(kernels.altered(sparsek_fast, *replacements))
    caught(check_attention(forward, "sparsek", backward=backward, profile="quick"), cause)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cause", "changed"),
    [
        ("window too long by one", {"window": lambda w: w + 1}),
        ("window too short by one", {"window": lambda w: max(w - 1, 0)}),
        ("budget off by one (n_select − 1)", {"n_select": lambda k: max(k - 1, 0)}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_an_option_off_by_one_is_named(cause, changed, kernels):
    forward, backward = kernels.sparsek(sparsek_paper, **changed)
    caught(check_attention(forward, "sparsek", backward=backward, profile="quick"), cause)


OPERATOR = {
    "mean left out": ("gradient without its mean", [("np.where(interior, upstream - mean, 0)", "np.where(interior, upstream, 0)")]),
    "ones not saturated": ("saturated entries pass gradient", [("interior = (p > 0) & (p < 1)", "interior = p > 0")]),
    "threshold half a unit low": (UNNAMED, [("np.clip(shifted - remainder, 0, 1)", "np.clip(shifted - remainder + 1e-3, 0, 1)")]),
    "budget of k + 1": ("budget off by one (k + 1)", [('as_real("k", k, least=0.0)', 'as_real("k", k, least=0.0) + 1')]),
}  # fmt: skip
THRESHOLDS = {
    "a prefix late": ("threshold stale", [("    return thresholds\n", "    return np.append(-np.inf, thresholds[:-1])\n")]),
    "ones never fall": (UNNAMED, [("elif from_one < solved:", "elif False:")]),
    "budget of k + 1": ("budget off by one (k + 1)", [('as_real("k", k, least=0.0)', 'as_real("k", k, least=0.0) + 1')]),
}  # fmt: skip


@pytest.mark.parametrize("planted", ids(OPERATOR))
def test_an_error_planted_in_the_operator_is_caught(planted, kernels):
    cause, replacements = OPERATOR[planted]
    forward, backward = kernels.sparsek_operator(kernels.altered(operator, *replacements))
    caught(check_attention(forward, "sparsek-operator", backward=backward, profile="quick"), cause)


@pytest.mark.parametrize("planted", ids(THRESHOLDS))
def test_an_error_planted_in_the_thresholds_of_prefixes_is_caught(planted, kernels):
    cause, replacements = THRESHOLDS[planted]
    forward, _ = kernels.thresholds(kernels.altered(prefix, *replacements))
    caught(check_attention(forward, "sparsek-thresholds", profile="quick"), cause)


def test_there_are_enough_of_them():
    tables = (DENSE, TORCH, NUMPY, CONV, CONV_FAST, SPARSEK, SPARSEK_FAST, OPERATOR, THRESHOLDS)
    planted = [entry[0] for table in tables for entry in table.values()]
    assert len(planted) >= 40
    assert sum(cause is not UNNAMED for cause in planted) >= 25
