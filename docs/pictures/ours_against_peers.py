"""Seconds against n beside exact attention, ours and PyTorch's, from the committed results of asv."""

import json
from itertools import product
from pathlib import Path

from style import BLUE, GREEN, GREY, INK, ORANGE, RED, plt

RESULTS = Path(__file__).parents[2] / "asv_benchmarks" / "results" / "release"

CONV, STEP = "conv.ConvAttention.time_attention", "conv_training.ConvStep.time_step"
SPARSEK = "sparsek_attention.SparseKAttention.time_"
FAST = "fast (ours)", BLUE
EXACT = {"dense": ("exact, NumPy (ours)", INK), "torch": ("exact, PyTorch", GREY)}
PANELS = {
    "Conv-Basis, k = 16, forward": (
        CONV,
        {"k": "16", "dtype": "'float32'"},
        EXACT
        | {
            "fast": FAST,
            "paper": ("conv, Algorithm 1 as written", RED),
            "long convolution": ("one long convolution", GREEN),
        },
    ),
    "Conv-Basis, forward and backward": (
        STEP,
        {"k": "16", "dtype": "'float32'"},
        EXACT | {"approximation": FAST, "attention": ("conv, gradient of exact attention", ORANGE)},
    ),
    "SparseK, 128 + window of 128, forward": (SPARSEK + "forward", {}, EXACT | {"fast": FAST}),
    "SparseK, forward and backward": (SPARSEK + "both", {}, EXACT | {"fast": FAST}),
}
"""Title: benchmark, fixed parameters, and name and colour of every implementation."""


def newest_results():
    """Return the results of the newest commit on which each was measured: benchmark → columns of asv's file."""
    files = [json.loads(path.read_text()) for path in RESULTS.glob("*-*.json")]
    return {
        name: dict(zip(file["result_columns"], row, strict=False))
        for file in sorted(files, key=lambda file: file["date"])
        for name, row in file["results"].items()
    }


def parameter_names():
    """Return the names of the parameters of every benchmark."""
    benchmarks = json.loads((RESULTS.parent / "benchmarks.json").read_text())
    return {name: entry["param_names"] for name, entry in benchmarks.items() if name != "version"}


def points(columns, names, fixed, implementation):
    """Return n and seconds of one implementation."""
    found = []
    for values, seconds in zip(product(*columns["params"]), columns["result"], strict=True):
        at = dict(zip(names, values, strict=True))
        if at["implementation"] == repr(implementation) and fixed.items() <= at.items() and seconds is not None:
            found.append((int(at["n"]), seconds))
    return sorted(point for point in found if point[1] == point[1])  # what was left out is NaN


def draw():
    """Return the figure: a panel for each question, on logarithmic axes."""
    results, names = newest_results(), parameter_names()
    figure, axes = plt.subplots(2, 2, figsize=(6.6, 5.3), layout="constrained")
    for axis, (title, (benchmark, fixed, implementations)) in zip(axes.flat, PANELS.items(), strict=True):
        for implementation, (name, colour) in implementations.items():
            curve = points(results[benchmark], names[benchmark], fixed, implementation)
            axis.plot(*zip(*curve, strict=True), color=colour, marker="o", ms=3, label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel="n", ylabel="seconds")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.lines}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3)
    return figure
