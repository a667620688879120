"""Compute the reference vectors: 50 digits by mpmath, or exact fractions, rounded once to float64 (ours).

Inputs are multiples of 1/64, or integers, so they are the same numbers in float32 (in float16 where they are small).
They come from Python's own generator, whose stream is fixed; so the bytes written depend on nothing but this code.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import mpmath  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from refattn._files import write_whole
from refattn.laboratory import definitions
from refattn.testing.vectors.files import MANIFEST_FILE, SCHEMA, VectorCase, archive_bytes

DIGITS = 50
SMALLEST = 1e-40
"""Results below are stored as zero: where terms cancel, 50 digits leave residues of that size."""

Array = NDArray[Any]


def draw(seed: int, *shape: int, size: float = 1.0, unit: float = 64.0) -> NDArray[np.float64]:
    """Numbers of about normal distribution and standard deviation `size`, rounded to multiples of ``1/unit``."""
    rng = random.Random(seed)
    count = int(np.prod(shape))
    values = [round((sum(rng.random() for _ in range(12)) - 6) * size * unit) / unit for _ in range(count)]
    return np.array(values).reshape(shape)


def to_mp(array: Array) -> Any:
    """Nested lists of mpmath's numbers."""
    return mpmath.mpf(float(array)) if np.ndim(array) == 0 else [to_mp(x) for x in array]


def to_float(value: Any) -> Array:
    """An array of float64, every number rounded once; None is −∞, and what is below `SMALLEST` zero."""
    if isinstance(value, list):
        return np.stack([to_float(x) for x in value])
    number = -np.inf if value is None else float(value)
    return np.array(number if abs(number) >= SMALLEST else 0.0)


def case(
    operation: str, name: str, description: str, inputs: dict[str, Array], results: dict[str, Array], **options: Any
) -> VectorCase:
    """Return a case of these arrays."""
    return VectorCase(operation, name, description, options, {**inputs, **results}, tuple(inputs), tuple(results))


def by_head(
    compute: Callable[..., dict[str, Any]], inputs: dict[str, Array], shared: Iterable[str] = ()
) -> dict[str, Array]:
    """Run a definition on every query head; add up the gradients of what heads share. Axes (H, …) and (H_kv, …)."""
    heads, group = inputs["q"].shape[0], inputs["q"].shape[0] // inputs["k"].shape[0]
    found: dict[str, list[Any]] = {}
    for h in range(heads):
        own = {x: to_mp(a[h if a.shape[0] == heads else h // group]) for x, a in inputs.items()}
        for name, value in compute(**own).items():
            rows = found.setdefault(name, [])
            if name in shared and h % group:
                rows[-1] = _add(rows[-1], value)
            else:
                rows.append(value)
    return {name: to_float(value) for name, value in found.items()}


def _add(a: Any, b: Any) -> Any:
    return [_add(x, y) for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a + b


def dense_cases() -> Iterable[VectorCase]:
    """Exact attention."""
    sizes: dict[str, tuple[str, tuple[int, int, int, int, int, int], dict[str, Any]]] = {
        "causal": ("causal, 7 positions", (2, 2, 7, 7, 4, 4), {}),
        "full": ("every query sees every key; 6 queries, 9 keys, d_v ≠ d", (1, 1, 6, 9, 4, 3), {"causal": False}),
        "scale": ("a scale given", (1, 1, 9, 9, 16, 16), {"scale": 0.125}),
        "grouped": ("4 query heads on 2 key-value heads", (4, 2, 6, 6, 4, 4), {}),
        "masked": ("a random mask and causal", (1, 1, 8, 8, 4, 4), {"mask": "random"}),
        "empty_rows": ("queries 0, 3, 6 see nothing", (1, 1, 8, 8, 4, 4), {"mask": "empty", "causal": False}),
        "wide": ("logits up to about 10⁴", (1, 1, 9, 9, 4, 4), {"size": 64.0}),
        "one_hot": ("logits 0 and 10⁴", (1, 1, 8, 8, 4, 4), {"one_hot": 20000.0}),
        "constant": ("all logits equal to 200", (1, 1, 8, 8, 4, 4), {"constant": 100.0}),
        "one": ("n = 1", (1, 1, 1, 1, 4, 4), {}),
        "longer": ("17 positions, d = 16", (1, 1, 17, 17, 16, 16), {}),
    }
    for place, (name, (about, (heads, kv, n, m, d, d_v), given)) in enumerate(sizes.items()):
        seed, size = 100 * place, given.get("size", 1.0)
        q, k = draw(seed, heads, n, d, size=size), draw(seed + 1, kv, m, d, size=size)
        if "one_hot" in given:
            rng = random.Random(seed)
            q, k = (np.eye(d)[[[rng.randrange(d) for _ in range(n)]]] for _ in range(2))
            q *= given["one_hot"]
        if "constant" in given:
            q, k = np.ones_like(q), np.full_like(k, given["constant"])
        inputs: dict[str, Array] = {"q": q, "k": k}
        inputs |= {"v": draw(seed + 2, kv, m, d_v), "dout": draw(seed + 3, heads, n, d_v)}
        causal, scale = given.get("causal", True), given.get("scale", 1 / d**0.5)
        mask = np.ones((n, m), np.uint8)
        if "mask" in given:
            mask = (draw(seed + 4, n, m) > 0).astype(np.uint8)
            mask[:, 0] = 1
            if given["mask"] == "empty":
                mask[::3] = 0
        allowed = [[bool(mask[i, j]) and (not causal or j <= i) for j in range(m)] for i in range(n)]

        def compute(allowed: Any = allowed, scale: float = scale, **x: Any) -> dict[str, Any]:
            return definitions.dense(**x, allowed=allowed, scale=mpmath.mpf(scale))

        results = by_head(compute, inputs, shared=("dk", "dv"))
        if "mask" in given:
            inputs["mask"] = mask
        yield case("dense", name, about, inputs, results, causal=causal, scale=scale)


def conv_cases() -> Iterable[VectorCase]:
    """Conv bases, their exponentials, recovery, and conv attention."""
    for place, (name, starts, n) in enumerate((("basis", [0, 3, 4], 7), ("late_start", [2, 5], 8), ("full", [0], 6))):
        kernels = np.zeros((len(starts), n))
        for i, c in enumerate(starts):
            kernels[i, : n - c] = draw(1000 + 10 * place + i, n - c)
        segment = [sum(c <= j for c in starts) - 1 for j in range(n)]
        h = np.array([[kernels[segment[j], i - j] if j <= i and segment[j] >= 0 else 0.0 for j in range(n)]
                      for i in range(n)])  # fmt: skip
        vectors = kernels.copy()
        for i in range(1, len(starts)):
            vectors[i, : n - starts[i]] -= kernels[i - 1, : n - starts[i]]
        exponential = [[mpmath.exp(to_mp(h[i, j])) if j <= i else mpmath.mpf(0) for j in range(n)] for i in range(n)]
        yield case(
            "conv-basis", name, "the k-conv basis of h: starts, cumulative kernels, the paper's vectors; tril(exp(h))",
            {"h": h}, {"starts": np.array(starts, np.int64), "kernels": kernels, "vectors": vectors,
                       "exp_h": to_float(exponential)},
        )  # fmt: skip
    key = np.array([[1.0], [1.0], [1.0], [3.0], [3.0], [-2.0], [-2.0], [-2.0], [-2.0]])
    yield case(
        "conv-recover", "recover", "segments of constant keys; starts found by Recover",
        {"q": np.ones((9, 1)), "k": key}, {"starts": np.array([0, 3, 5], np.int64)},
        n_basis=3, probe=2, delta=1.0, eps=0.0, scale=1.0,
    )  # fmt: skip
    settings: dict[str, tuple[str, int, list[int], int, float]] = {
        "attention": ("three segments", 9, [0, 3, 4], 4, 1.0),
        "one_segment": ("one segment", 8, [0], 4, 1.0),
        "all_columns": ("as many segments as columns: exact attention", 6, list(range(6)), 4, 1.0),
        "wide": ("logits up to about 30", 9, [0, 2, 7], 4, 3.0),
        "longer": ("17 positions, d = 16", 17, [0, 5, 11, 12], 16, 1.0),
    }
    for place, (name, (about, n, starts, d, size)) in enumerate(settings.items()):
        seed = 2000 + 10 * place
        inputs = {x: draw(seed + i, n, d, size=size if i < 2 else 1.0) for i, x in enumerate(("q", "k", "v", "dout"))}
        scale = 1 / d**0.5
        found = definitions.conv(**{x: to_mp(a) for x, a in inputs.items()}, starts=starts, scale=mpmath.mpf(scale))
        inputs["starts"] = np.array(starts, np.int64)
        yield case("conv", name, about, inputs, {x: to_float(a) for x, a in found.items()}, scale=scale)


SCORES: dict[str, tuple[str, list[float | None], float]] = {
    "generic": ("12 scores", draw(3000, 12).tolist(), 4.0),
    "real_budget": ("a budget that is not an integer", draw(3001, 10).tolist(), 2.5),
    "sparsemax": ("k = 1", draw(3002, 10).tolist(), 1.0),
    "ties": ("many equal scores", draw(3003, 14, unit=2.0).tolist(), 5.0),
    "equal": ("all scores equal", [0.75] * 7, 3.0),
    "holes": ("scores of −∞", [0.5, None, 1.25, None, -0.75, 2.0, 0.625], 2.0),
    "large": ("scores of a million, a fraction apart", [1e6 + x for x in draw(3004, 9, unit=16.0).tolist()], 3.0),
    "hard": ("scores far apart: a hard top-k", [8.0, -4.0, 16.0, 0.0, 4.0], 2.0),
    "zero": ("k = 0", draw(3005, 5).tolist(), 0.0),
    "all": ("k = n", draw(3006, 5).tolist(), 5.0),
    "longer": ("40 scores", draw(3007, 40).tolist(), 7.0),
}
"""Scores, None for −∞, and a budget."""


def operator_cases() -> Iterable[VectorCase]:
    """The operator, its threshold and its pullback; thresholds of all prefixes."""
    later = []
    for place, (name, (about, z, k)) in enumerate(SCORES.items()):
        exact = [None if x is None else Fraction(x) for x in z]
        p, tau = definitions.sparsek(exact, Fraction(k))
        dp = draw(3100 + place, len(z))
        dz, dk = definitions.sparsek_pullback(p, [Fraction(x) for x in dp.tolist()])
        results = {"p": to_float(p), "tau": to_float(tau), "dz": to_float(dz), "dk": to_float(dk)}
        inputs = {"z": to_float(list(z))}
        yield case("sparsek-operator", name, about, {**inputs, "dp": dp}, results, k=k)
        thresholds = [definitions.sparsek(exact[: i + 1], Fraction(k))[1] for i in range(len(z))]
        later.append(case("sparsek-thresholds", f"{name}_prefixes", about, inputs, {"tau": to_float(thresholds)}, k=k))
    yield from later


def sparsek_cases() -> Iterable[VectorCase]:
    """SparseK attention with gates and a window."""
    usual: dict[str, Any] = {"n_select": 3, "window": 2, "gate": "kv", "hard": False}
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "kv": ("gates on keys and values", {}),
        "k": ("gates on keys", {"gate": "k"}),
        "v": ("gates on values", {"gate": "v"}),
        "none": ("the scores only choose", {"gate": "none"}),
        "straight_through": ("gates of one, differentiated as SparseK's", {"hard": True}),
        "no_window": ("a query's own pair is a candidate", {"window": 0}),
        "only_window": ("nothing is selected", {"n_select": 0}),
        "nothing": ("nothing to attend to", {"n_select": 0, "window": 0}),
        "grouped": ("4 query heads on 2 key-value heads", {"heads": (4, 2)}),
        "tied_scores": ("equal scores: the earlier is selected", {"unit": 2.0}),
        "wide": ("logits up to about 30", {"size": 3.0}),
        "longer": ("16 positions, d = 16", {"n": 16, "d": 16, "n_select": 5}),
    }
    for place, (name, (about, given)) in enumerate(settings.items()):
        seed = 4000 + 10 * place
        heads, kv = given.get("heads", (1, 1))
        n, d, size = given.get("n", 9), given.get("d", 4), given.get("size", 1.0)
        inputs = {
            "q": draw(seed, heads, n, d, size=size),
            "k": draw(seed + 1, kv, n, d, size=size),
            "v": draw(seed + 2, kv, n, d),
            "scores": draw(seed + 3, kv, n, unit=given.get("unit", 64.0)),
            "dout": draw(seed + 4, heads, n, d),
        }
        options = {**usual, **{x: given[x] for x in usual if x in given}, "scale": 1 / d**0.5}

        def compute(options: dict[str, Any] = options, **x: Any) -> dict[str, Any]:
            x["scores"] = [Fraction(float(one)) for one in x["scores"]]
            return definitions.sparsek_attention(**x, options={**options, "scale": mpmath.mpf(options["scale"])})

        results = by_head(compute, inputs, shared=("dk", "dv", "dscores"))
        yield case("sparsek", name, about, inputs, results, **options)


FILES: dict[str, tuple[str, Callable[[], Iterable[VectorCase]]]] = {
    "dense.npz": ("exact attention, its log-sum-exp and gradients", dense_cases),
    "conv.npz": ("conv bases, recovery, conv attention and its gradients", conv_cases),
    "sparsek_operator.npz": ("the SparseK operator, its pullback, thresholds of all prefixes", operator_cases),
    "sparsek.npz": ("SparseK attention, its gates and gradients", sparsek_cases),
}


def generate(folder: Path) -> dict[str, Any]:
    """Compute every vector, write the archives and their manifest, and return the latter: a second, the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "digits": DIGITS,
        "command": "refattn vectors generate --out DIR",
        "files": {},
    }
    with mpmath.workdps(DIGITS):
        for name, (about, cases) in FILES.items():
            listed = list(cases())
            arrays = {f"{one.name}.{x}": a for one in listed for x, a in one.arrays.items()}
            content = archive_bytes(arrays)
            write_whole(folder / name, content)
            manifest["files"][name] = {
                "about": about,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
                "cases": [_described(one) for one in listed],
            }
    write_whole(folder / MANIFEST_FILE, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def _described(one: VectorCase) -> dict[str, Any]:
    arrays = {x: {"dtype": a.dtype.newbyteorder("<").str, "shape": list(a.shape)} for x, a in one.arrays.items()}
    names = ("operation", "name", "description", "options", "inputs", "results")
    return {name: getattr(one, name) for name in names} | {"arrays": arrays}
