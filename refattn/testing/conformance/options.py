"""Options of exact attention beyond causal, scale and mask: for the oracle, in a plain run, and in mistakes (ours).

By name, as a function takes them; those with an array of a batch's or a head's own need all heads in one call:

    bias (B or 1, H or 1, n_q or 1, n_k or 1)   added to the logits; has a gradient
    alibi_slopes (H,)                           −slope · |i + offset − j| added to the logits
    softcap                                     logits s become softcap · tanh(s / softcap), before what is added
    window (left, right)                        keys from i − left to i + right are seen
    sinks (H,)                                  one logit more in every row's denominator; has a gradient
    lengths (B,)                                keys of every sequence; the others are padding
    cu_seqlens_q, cu_seqlens_k (m + 1,)         where sequences packed one after another begin, and the last one's end
    align                                       "bottom-right": the last query stands at the last key
    keep (B, H, n_q, n_k), dropout              weights kept by dropout, which are divided by 1 − dropout
    indices (B, H_kv, n_q, m)                   keys of every query; −1 for none
    blocks (H, …, …), block_size                which blocks of keys blocks of queries see
    block_table (B, m)                          k and v are pages (p, H_kv, size, d); with lengths
    dlse (B, H, n_q)                            of the backward: the upstream gradient of the log-sum-exps
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._validation import FloatArray
from refattn.dense import gather_pages
from refattn.masks import Alibi, Causal, KeyBlocks, KeyIndices, KeyPadding, Packed, SlidingWindow
from refattn.testing.conformance.operation import Arrays, Problem
from refattn.testing.conformance.precision import Precision

NAMES = (
    "bias", "alibi_slopes", "softcap", "window", "sinks", "lengths", "cu_seqlens_q", "cu_seqlens_k", "align", "keep",
    "dropout", "indices", "blocks", "block_size", "block_table", "dlse",
)  # fmt: skip
WITH_GRADIENT = ("bias", "sinks")
OF_BACKWARD = ("dlse",)

MISTAKES: dict[str, dict[str, str]] = {
    "bias": {
        "bias ignored": "the bias given is not added",
        "bias multiplied by the scale": "the bias is added before the scale; it belongs to the scaled logits",
        "bias of the first head for all": "every head is given the first head's bias",
        "gradient of the bias of one batch": "the gradient of a shared bias is the last batch's, not the sum of all",
    },
    "alibi_slopes": {
        "slopes ignored": "ALiBi's slopes are not applied",
        "slopes of the wrong sign": "what is further away gets a larger logit",
        "slopes of other heads": "heads are given the slopes in the other order",
    },
    "softcap": {
        "softcap ignored": "the logits are not capped",
        "softcap before the scale": "q·k is capped and scaled afterwards",
        "softcap missing in the backward": "the backward leaves out the slope of the cap, 1 − tanh²",
    },
    "window": {
        "window ignored": "keys outside the window are seen",
        "window one too long to the left": "query i sees key i − left − 1",
        "window one too short to the left": "query i does not see key i − left",
        "right end of the window ignored": "every later key is seen",
    },
    "sinks": {
        "sinks ignored": "the sinks' logits are not in the denominator",
        "sinks multiplied by the scale": "the sinks' logits are scaled; they are logits already",
        "sinks of the wrong sign in the backward": "the gradient of the sinks has the other sign",
    },
    "lengths": {
        "padding ignored": "padded keys are seen",
        "one padded key seen": "the first key beyond the length is seen",
        "last key before the padding hidden": "the last key within the length is not seen",
        "length of the first sequence for all": "every sequence is given the first one's length",
    },
    "cu_seqlens_q": {
        "packed sequences see each other": "queries see the keys of other sequences",
        "packed sequences one late": "sequences begin one key late",
    },
    "align": {
        "aligned top-left": "query 0 stands at key 0; the last query was wanted at the last key",
    },
    "keep": {
        "dropout ignored": "no weight is dropped",
        "dropout without its factor": "the weights that are kept are not divided by 1 − dropout",
        "dropout inverted": "what should be kept is dropped",
        "dropout missing in the backward": "the backward keeps all weights",
    },
    "indices": {
        "index −1 counts as the last key": "an index that stands for no key is taken from the end",
        "last index ignored": "the last key that is listed for a query is not seen",
        "indices of the first query for all": "every query sees the first one's keys",
    },
    "blocks": {
        "blocks ignored": "every block of keys is seen",
        "blocks transposed": "blocks of queries and blocks of keys are exchanged",
    },
    "block_table": {
        "pages in the order of memory": "pages are read one after another, not as the table says",
    },
    "lse": {
        "log-sum-exp of base 2": "the logarithm is of base 2",
        "log-sum-exp without the maximum": "the row's maximum is not added again",
        "log-sum-exp without the sinks": "the sinks are not in the log-sum-exp",
    },
    "dlse": {
        "gradient of the log-sum-exp ignored": "dlse does not reach q and k",
        "gradient of the log-sum-exp of the wrong sign": "dlse is subtracted where it is to be added",
    },
}
"""By the option that a problem has to have."""

FAULTS = {name: sentence for known in MISTAKES.values() for name, sentence in known.items()}
_NEEDS = {name: option for option, known in MISTAKES.items() for name in known}


def can_make(problem: Problem, fault: str) -> bool:
    """Whether a problem has the option in which a mistake is made."""
    needs = _NEEDS.get(fault)
    return needs is None or needs in problem.options or (needs == "lse" and problem.lse)


def are_given(problem: Problem) -> bool:
    """Whether a problem has any of these options."""
    return any(name in problem.options for name in NAMES)


def for_oracle(problem: Problem) -> tuple[FloatArray, FloatArray, tuple[Any, ...], dict[str, Any]]:
    """Return keys, values, mask and further options as `refattn.dense_attention` takes them."""
    given: dict[str, Any] = problem.options
    k: FloatArray
    v: FloatArray
    k, v = (problem.arrays[x].astype(np.float64) for x in "kv")
    if "block_table" in given:
        k, v = (gather_pages(x, given["block_table"]) for x in (k, v))
    align = given.get("align", 0)
    rule: list[Any] = [Causal(align) if given["causal"] else "full"]
    if given["mask"] is not None:
        rule.append(given["mask"])
    if "window" in given:
        left, right = given["window"]
        rule.append(SlidingWindow(left + 1, alignment=align, right=right))
    if "lengths" in given:
        rule.append(KeyPadding(given["lengths"]))
    if "cu_seqlens_q" in given:
        rule.append(Packed(given["cu_seqlens_q"], given["cu_seqlens_k"]))
    if "indices" in given:
        group = problem.arrays["q"].shape[1] // k.shape[1]
        rule.append(KeyIndices(np.repeat(given["indices"], group, axis=1)))
    if "blocks" in given:
        rule.append(KeyBlocks(given["blocks"], given["block_size"], given["block_size"]))
    if "alibi_slopes" in given:
        rule.append(Alibi(given["alibi_slopes"].astype(np.float64), align))
    more = {x: given[x] for x in ("softcap", "keep", "dropout") if x in given}
    return k, v, tuple(rule), more | {x: given[x].astype(np.float64) for x in WITH_GRADIENT if x in given}


def side_by_side(problem: Problem, fault: str | None) -> Problem:
    """Return the problem with keys and values in place of their pages."""
    table = problem.options.get("block_table")
    if table is None:
        return problem
    if fault == "pages in the order of memory":
        table = np.arange(table.size).reshape(table.shape) % problem.arrays["k"].shape[0]
    arrays = dict(problem.arrays)
    for name in "kv":
        pages = problem.arrays[name][table].swapaxes(1, 2)  # (B, H_kv, m, size, d)
        arrays[name] = pages.reshape(*pages.shape[:2], -1, pages.shape[-1])
    return replace(problem, arrays=arrays)


def offset(problem: Problem, fault: str | None) -> int:
    """Return the place of the first query among the keys, which stand side by side."""
    if problem.options.get("align") != "bottom-right" or fault == "aligned top-left":
        return 0
    return int(problem.arrays["k"].shape[-2] - problem.arrays["q"].shape[-2])


def hide(problem: Problem, allowed: NDArray[np.bool_], lag: NDArray[np.int64], fault: str | None) -> NDArray[np.bool_]:
    """Return which keys are seen when the options are applied too; `lag` is how far a key is behind a query."""
    given, n_k = problem.options, lag.shape[-1]
    keys = np.arange(n_k)
    if "window" in given and fault != "window ignored":
        left, right = given["window"]
        left += {"window one too long to the left": 1, "window one too short to the left": -1}.get(fault or "", 0)
        right = n_k if fault == "right end of the window ignored" else right
        allowed = allowed & (lag <= left) & (lag >= -right)
    if "lengths" in given and fault != "padding ignored":
        lengths = given["lengths"] + {"one padded key seen": 1, "last key before the padding hidden": -1}.get(
            fault or "", 0
        )
        lengths = np.full_like(lengths, lengths[0]) if fault == "length of the first sequence for all" else lengths
        allowed = allowed & (keys < lengths[:, None, None, None])
    if "cu_seqlens_q" in given and fault != "packed sequences see each other":
        late = 1 if fault == "packed sequences one late" else 0
        of_query = np.searchsorted(given["cu_seqlens_q"][1:], np.arange(lag.shape[-2]), side="right")
        of_key = np.searchsorted(given["cu_seqlens_k"][1:] + late, keys, side="right")
        allowed = allowed & (of_query[:, None] == of_key)
    if "indices" in given:
        allowed = allowed & _listed(given["indices"], n_k, problem, fault)
    if "blocks" in given and fault != "blocks ignored":
        blocks, size = given["blocks"], given["block_size"]
        if fault == "blocks transposed" and blocks.shape[-1] == blocks.shape[-2]:
            blocks = blocks.swapaxes(-1, -2)
        allowed = allowed & blocks[..., np.arange(lag.shape[-2])[:, None] // size, keys // size]
    return allowed


def _listed(indices: NDArray[np.int64], n_k: int, problem: Problem, fault: str | None) -> NDArray[np.bool_]:
    """Which keys are listed for every query, head by head."""
    if fault == "indices of the first query for all":
        indices = np.broadcast_to(indices[..., :1, :], indices.shape)
    if fault == "last index ignored":
        indices = indices[..., :-1]
    none = n_k - 1 if fault == "index −1 counts as the last key" else n_k
    seen = np.zeros((*indices.shape[:-1], n_k + 1), np.bool_)
    np.put_along_axis(seen, np.where(indices < 0, none, indices), True, axis=-1)
    return np.repeat(seen[..., :n_k], problem.arrays["q"].shape[1] // indices.shape[1], axis=1)


def added(problem: Problem, lag: NDArray[np.int64], fault: str | None) -> FloatArray | None:
    """Return what is added to the logits, or None."""
    given, total = problem.options, None
    if "bias" in given and fault != "bias ignored":
        total = given["bias"].astype(np.float64)
        total = total * float(given["scale"]) if fault == "bias multiplied by the scale" else total
        total = np.broadcast_to(total[:, :1], total.shape) if fault == "bias of the first head for all" else total
    if "alibi_slopes" in given and fault != "slopes ignored":
        slopes = given["alibi_slopes"].astype(np.float64)
        slopes = slopes[::-1] if fault == "slopes of other heads" else slopes
        sign = 1 if fault == "slopes of the wrong sign" else -1
        alibi = sign * slopes[:, None, None] * np.abs(lag)
        total = alibi if total is None else total + alibi
    return total


def capped(problem: Problem, products: FloatArray, logits: FloatArray, fault: str | None) -> FloatArray:
    """Return the logits when the cap has been applied."""
    cap = problem.options.get("softcap")
    if cap is None or fault == "softcap ignored":
        return logits
    bound = logits.dtype.type(cap)
    if fault == "softcap before the scale":
        return np.asarray(bound * np.tanh(products / bound) * logits.dtype.type(problem.options["scale"]))
    return np.asarray(bound * np.tanh(logits / bound))


def slope_of_cap(problem: Problem, scaled: FloatArray, fault: str | None) -> Any:
    """Return the derivative of the capped logits by those that were scaled; 1 without a cap."""
    cap = problem.options.get("softcap")
    if cap is None or fault in ("softcap ignored", "softcap missing in the backward"):
        return 1.0
    return 1 - np.tanh(scaled / scaled.dtype.type(cap)) ** 2


def sink_logits(problem: Problem, fault: str | None) -> FloatArray | None:
    """Return the sinks' logits, (H, 1, 1), or None."""
    if "sinks" not in problem.options or fault == "sinks ignored":
        return None
    factor = float(problem.options["scale"]) if fault == "sinks multiplied by the scale" else 1.0
    return np.asarray(factor * problem.options["sinks"].astype(np.float64)[:, None, None])


def kept(problem: Problem, fault: str | None, backward: bool = False) -> Any:
    """Return the factor of every weight after the softmax; 1 without dropout."""
    if "keep" not in problem.options or fault == "dropout ignored":
        return 1.0
    if backward and fault == "dropout missing in the backward":
        return 1.0
    keep, rate = problem.options["keep"], problem.options["dropout"]
    keep = ~keep if fault == "dropout inverted" else keep
    return keep / (1.0 if fault == "dropout without its factor" else 1 - rate)


def with_sinks(
    softmax: Callable[[FloatArray, NDArray[np.bool_]], FloatArray],
    logits: FloatArray,
    allowed: NDArray[np.bool_],
    sinks: FloatArray | None,
) -> tuple[FloatArray, FloatArray | None]:
    """Return the weights of the keys, and that of the sink where there is one, by a softmax of all of them."""
    if sinks is None:
        return softmax(logits, allowed), None
    column = (*logits.shape[:-1], 1)
    more = np.broadcast_to(sinks, column).astype(logits.dtype)
    seen = np.concatenate([np.broadcast_to(allowed, logits.shape), np.ones(column, np.bool_)], axis=-1)
    weights = softmax(np.concatenate([logits, more], axis=-1), seen)
    return weights[..., :-1], weights[..., -1:]


def log_sum_exp(
    logits: FloatArray, allowed: NDArray[np.bool_], sinks: FloatArray | None, to: Precision, fault: str | None
) -> FloatArray:
    """Return the log-sum-exp of every row, −∞ where nothing is seen."""
    hidden = np.where(allowed, logits, -np.inf)
    if sinks is not None and fault != "log-sum-exp without the sinks":
        more = np.broadcast_to(sinks, (*hidden.shape[:-1], 1)).astype(logits.dtype)
        hidden = np.concatenate([hidden, more], axis=-1)
    top = hidden.max(axis=-1, keepdims=True, initial=-np.inf)
    top = np.where(np.isneginf(top), 0, top)
    with np.errstate(divide="ignore"):
        lse = to.carry(np.log(np.exp(hidden - top).sum(axis=-1, keepdims=True)))
    if fault != "log-sum-exp without the maximum":
        lse = to.carry(lse + top)
    return np.asarray((lse / np.log(2) if fault == "log-sum-exp of base 2" else lse)[..., 0], lse.dtype)


def upstream_of_lse(problem: Problem, fault: str | None) -> Any:
    """Return dlse with an axis for keys; 0 without."""
    if "dlse" not in problem.options or fault == "gradient of the log-sum-exp ignored":
        return 0.0
    sign = -1 if fault == "gradient of the log-sum-exp of the wrong sign" else 1
    return sign * problem.options["dlse"][..., None]


def gradients(
    problem: Problem, dlogits: FloatArray, sink: FloatArray | None, delta: FloatArray, to: Precision, fault: str | None
) -> Arrays:
    """Return the gradients of the options that have one, from that of the logits and the row sums of P ∘ dP − dlse."""
    found = {}
    if "bias" in problem.options:
        alone = fault == "gradient of the bias of one batch" and problem.options["bias"].shape[0] == 1
        parts = dlogits[-1:] if alone else dlogits
        found["dbias"] = to.result(sum_to_shape(parts, problem.options["bias"].shape))
    if sink is not None:
        sign = 1 if fault == "sinks of the wrong sign in the backward" else -1
        found["dsinks"] = to.result(sign * (sink * delta).sum(axis=(0, 2, 3)))
    elif "sinks" in problem.options:
        found["dsinks"] = np.zeros(problem.options["sinks"].shape, to.work)
    return found


def sum_to_shape(array: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Add an array up over the axes that are 1 in a shape."""
    over = tuple(i for i, size in enumerate(shape) if size == 1 and array.shape[i] > 1)
    return np.asarray(array.sum(axis=over, keepdims=True) if over else array)
