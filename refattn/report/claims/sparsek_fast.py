"""Claims about SparseK attention in linear time and its generation cache (arXiv 2406.16747)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from refattn._threads import thread_count
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.report.measuring import (
    entries_that_change,
    exponent,
    peak_memory,
    rows_that_see_the_future,
    times,
)
from refattn.sparsek import (
    SparseKCache,
    sparsek_attention,
    sparsek_attention_backward,
    sparsek_attention_forward,
)
from refattn.testing import relative_error, row_errors
from refattn.testing.real_heads import load_real_heads

PAPER = "arXiv 2406.16747"
SETTING: dict[str, Any] = {"n_select": 128, "window": 128}


def _inputs(seed: int, n: int, d: int = 64, dtype: DTypeLike = np.float64) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    q, k, v = rng.standard_normal((3, n, d)).astype(dtype)
    return {"q": q, "k": k, "v": v, "scores": rng.standard_normal(n).astype(dtype)}


def _run(inputs: dict[str, Any], method: str, options: dict[str, Any]) -> dict[str, Any]:
    out, cache = sparsek_attention_forward(**inputs, **options, method=method)
    return {"out": out} | sparsek_attention_backward(np.cos(out), cache)._asdict()


def _cases(quick: bool) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, inputs and options: six kinds of scores, every gate, and heads of a language model scored by key norms."""
    n = 160 if quick else 1000
    rng, base = np.random.default_rng(0), _inputs(0, n, d=8)
    kinds = {
        "random": rng.standard_normal(n),
        "rising": np.linspace(-3, 3, n),
        "falling": np.linspace(3, -3, n),
        "constant": np.full(n, 0.3),
        "heavy-tailed": rng.standard_cauchy(n),
        "drifting": rng.standard_normal(n) + 0.01 * np.arange(n),
    }
    cases = []
    for number, (name, scores) in enumerate(kinds.items()):
        options = {"n_select": 17, "window": (0, 9, 40)[number % 3], "gate": ("kv", "k", "v", "none")[number % 4]}
        hards = (bool(number % 2),) if quick else (False, True)
        cases += [(name, base | {"scores": scores}, options | {"hard": hard}) for hard in hards]
    real = load_real_heads(dtype=np.float64)
    heads = {name: getattr(real, name)[: 1 if quick else None, ..., :n, :] for name in ("q", "k", "v")}
    heads["scores"] = -np.linalg.norm(heads["k"], axis=-1)
    return [*cases, ("SmolLM2-135M", heads, {"n_select": 32, "window": 32})]


@claim("sparsek.fast", "ours", "Blocks of queries give the paper's attention and gradients.",
       check="worst error of output rows and gradients, fast against paper",
       planted="the fast path's gradient of the scores off by 0.1 %",
       covers=("fused kernel, faster than exact attention",))  # fmt: skip
def _fast_equals_paper(quick: bool) -> Measurement:
    worst: dict[str, float] = {}
    for name, inputs, options in _cases(quick):
        found, right = _run(inputs, "fast", options), _run(inputs, "paper", options)
        errors = [float(row_errors(found["out"], right["out"]).max())]
        errors += [relative_error(found[key], right[key]) for key in ("q", "k", "v", "scores")]
        worst[name] = max(worst.get(name, 0.0), *errors)
    n = len(_cases(quick)[0][1]["scores"])
    return Measurement(
        f"six kinds of scores, four gates, hard or soft, and heads of SmolLM2-135M, n = {n}, seed 0",
        max(worst.values()),
        at_most=1e-10,
        detail=worst,
    )


_ORDERS, _NARROW_N = 8, 300
"""Orders of summation in which plain dense computation is run for its error, on inputs so long."""


@claim("sparsek.fast-float32", "ours", "In float32 no row is more than twice as wrong as plain dense computation.",
       check="worst row error to the plain one's there (largest of 8 summation orders) or its median, of five inputs",
       planted="the fast path's gradient of k rounded to half precision", must_hold=False)  # fmt: skip
def _single_precision(quick: bool) -> Measurement:
    seeds = (5,) if quick else (1, 2, 3, 4, 5)
    which = "seed 5, the worst of five where it was chosen" if quick else "seeds 1 to 5"
    ratios = {f"seed {seed}": _over_plain(seed) for seed in seeds}
    return Measurement(
        f"normal, n = {_NARROW_N}, d = 64, k = w = 64, {which}",
        max(max(of_one.values()) for of_one in ratios.values()),
        at_most=2.0,
        detail=ratios,
    )


def _over_plain(seed: int) -> dict[str, float]:
    """Return the worst row's error over that of plain computation, by result."""
    narrow, options = _inputs(seed, _NARROW_N, dtype=np.float32), {"n_select": 64, "window": 64}
    right = _run({name: array.astype(np.float64) for name, array in narrow.items()}, "oracle", options)
    fast, plain = _run(narrow, "fast", options), dict.fromkeys(("out", "q", "k", "v"), np.zeros(len(narrow["q"])))
    # One plain run errs by chance, and not at all in some rows: the sums over d are taken in several orders.
    for order_seed in range(_ORDERS):
        order = np.random.default_rng(order_seed).permutation(narrow["q"].shape[1])
        turned = narrow | {name: np.ascontiguousarray(narrow[name][:, order]) for name in ("q", "k", "v")}
        run = _run(turned, "oracle", options)
        for name in plain:
            plain[name] = np.maximum(plain[name], row_errors(run[name][:, np.argsort(order)], right[name]))
    ratios = {}
    for name, theirs in plain.items():
        ours = row_errors(fast[name], right[name])
        ratios[name] = float((ours / np.maximum(theirs, np.median(theirs))).max())
    return ratios


@claim("sparsek.fast-bits", "ours", "The number of threads changes no bit, nor does running again.",
       check="entries of output and gradients that differ",
       planted="an entry that differs from run to run")  # fmt: skip
def _same_bits(quick: bool) -> Measurement:
    inputs = _inputs(2, 3000 if quick else 30_000, dtype=np.float32)
    changed = entries_that_change(lambda: [*_run(inputs, "fast", SETTING).values()], (1, 2, 2))
    n = len(inputs["q"])
    return Measurement(f"normal, float32, n = {n}, k = w = 128, forward and backward, seed 2", changed, at_most=0.0)


@claim("sparsek.fast-causality", PAPER, "Changing the future changes no past row of the fast path, bit for bit.",
       check="rows changed before the first changed token",
       planted="every row sees the last value",
       covers=("SparseK attention: selection, gates, one softmax",))  # fmt: skip
def _causality(quick: bool) -> Measurement:
    inputs, attend = _inputs(3, 600, d=16, dtype=np.float32), partial(sparsek_attention, n_select=24, window=16)
    changed = rows_that_see_the_future(attend, inputs, range(0, 600, 67 if quick else 1), seed=3)
    return Measurement(
        f"normal, float32, n = 600, k = 24, w = 16, seed 3; {fingerprint(*inputs.values())}", changed, at_most=0.0
    )


@claim("sparsek.linear-time", PAPER, "Training takes linear time.",
       check="exponent of the time in n, forward and backward",
       planted="times that grow like n^1.2",
       covers=("training in linear time", "speed of training and inference against length"),
       must_hold=False, timed=True)  # fmt: skip
def _linear_time(quick: bool) -> Measurement:
    lengths = [4096, 8192, 16_384] if quick else [8192 << step for step in range(8)]

    def forward(n: int) -> Callable[[], object]:
        return partial(sparsek_attention, **_inputs(4, n, dtype=np.float32), **SETTING)

    def both_ways(n: int) -> Callable[[], object]:
        return partial(_run, _inputs(4, n, dtype=np.float32), "fast", SETTING)

    one_way, both = (times(make, lengths, runs=3, clock=time.perf_counter) for make in (forward, both_ways))
    detail = {"forward": exponent(one_way), "forward and backward": exponent(both)}
    return Measurement(
        f"normal, float32, d = 64, k = w = 128, n = {lengths[0]} … {lengths[-1]}, seed 4",
        max(detail.values()),
        at_most=1.10,
        detail=detail | {f"seconds forward at n = {n}": t for n, t in one_way.items()},
    )


def _peak(n: int) -> float:
    """Peak memory of forward and backward beyond inputs and results, in multiples of V."""
    inputs, results = _inputs(5, n, dtype=np.float32), {}
    peak = peak_memory(lambda: results.update(_run(inputs, "fast", SETTING)))
    upstream = inputs["v"].nbytes  # the cosine of the output
    kept = sum(array.nbytes for array in results.values()) + upstream
    return round(float((peak - kept) / inputs["v"].nbytes), 2)


@claim("sparsek.linear-memory", PAPER, "Training takes linear memory.",
       check="peak of forward and backward beyond inputs and results, in multiples of V",
       planted="memory that grows with n²",
       covers=("training in linear memory",), timed=True)  # fmt: skip
def _memory(quick: bool) -> Measurement:
    n = 32_768 if quick else 262_144
    _run(_inputs(5, 2048, dtype=np.float32), "fast", SETTING)  # compiles
    return Measurement(f"normal, float32, d = 64, k = w = 128, n = {n}, seed 5", _peak(n), at_most=8.0)


def _seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


@claim("sparsek.speed", "ours", "At n = 65,536 the forward is 25 times faster than PyTorch's exact attention.",
       check="ratio of the least times, taken in turns; at a smaller n the bound is in proportion",
       planted="a run of a thousand seconds",
       covers=("fused kernel, faster than exact attention", "speed of training and inference against length"),
       needs=("torch",), must_hold=False, timed=True)  # fmt: skip
def _against_torch(quick: bool) -> Measurement:
    import torch

    n, n_torch = (16_384, 8192) if quick else (65_536, 65_536)
    inputs, threads = _inputs(6, n, dtype=np.float32), torch.get_num_threads()
    leaves = [torch.from_numpy(inputs[name][:n_torch])[None, None] for name in ("q", "k", "v")]
    forward = partial(sparsek_attention, **inputs, **SETTING)
    exact = partial(torch.nn.functional.scaled_dot_product_attention, *leaves, is_causal=True)
    forward()
    torch.set_num_threads(thread_count())
    try:
        turns = [(_seconds(forward), _seconds(exact)) for _ in range(3)]
        ours, theirs = map(min, zip(*turns, strict=True))
    finally:
        torch.set_num_threads(threads)
    scaled = "" if n == n_torch else f", PyTorch scaled from {n_torch} by n²"
    return Measurement(
        f"normal, float32, d = 64, k = w = 128, n = {n}, {thread_count()} threads, seed 6{scaled}",
        theirs * (n / n_torch) ** 2 / ours,
        at_least=25.0 * n / 65_536,
        detail={"seconds of ours": ours, "seconds of PyTorch": theirs},
    )


@claim("sparsek.cache-replay", PAPER, "Generation from the cache gives the rows of the training forward.",
       check="worst row error of steps and of a prefill",
       planted="the forward off by 0.1 %",
       covers=("generation in constant memory",))  # fmt: skip
def _replay(quick: bool) -> Measurement:
    n = 1000 if quick else 10_000
    inputs = _inputs(7, n, d=8)
    options: dict[str, Any] = {"n_select": 64, "window": 32}
    right = sparsek_attention(**inputs, **options)
    stepped, filled = SparseKCache(**options), SparseKCache(**options)
    rows = np.stack([stepped.step(*(array[t] for array in inputs.values())) for t in range(n)])
    worst = max(float(row_errors(out, right).max()) for out in (rows, filled.prefill(**inputs)))
    return Measurement(
        f"normal, {n} steps, k = 64, w = 32, seed 7; {fingerprint(*inputs.values())}", worst, at_most=1e-10
    )


def _growth(inputs: dict[str, Any], hard: bool) -> float:
    """Bytes of a cache after all tokens to those after a hundredth of them."""
    sizes = []
    for n in (len(inputs["q"]) // 100, len(inputs["q"])):
        cache = SparseKCache(16, 16, hard=hard)
        cache.prefill(**{name: array[:n] for name, array in inputs.items()})
        sizes.append(cache.nbytes)
    return sizes[1] / sizes[0]


@claim("sparsek.cache-memory", PAPER, "In generation the memory never grows.",
       check="bytes of the cache to those at a hundredth of the position; without the condition, at equal scores",
       planted="a cache larger than the one before",
       covers=("generation in constant memory",))  # fmt: skip
def _constant_memory(quick: bool) -> Measurement:
    n = 20_000 if quick else 100_000
    inputs = _inputs(8, n, d=8)
    equal = inputs | {"scores": np.zeros(n)}
    growth = {
        "soft gates, normal scores": _growth(inputs, hard=False),
        "hard gates, normal scores": _growth(inputs, hard=True),
        "hard gates, equal scores": _growth(equal, hard=True),
    }
    return Measurement(
        f"k = w = 16, positions {n // 100} and {n}, seed 8",
        max(growth.values()),
        at_most=1.0,
        condition="gates are hard, or scores are not so close that the support of SparseK grows",
        counterexample=_growth(equal, hard=False),
        detail=growth,
    )
