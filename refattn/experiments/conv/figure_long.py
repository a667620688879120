"""The figure of error against k at the authors' length and in their layer, the second (arXiv 2405.05219).

`figure` has every layer at one length; here n rises to the 32,000 of the authors' script. Of the layer's nine heads the
first three are taken, as the authors' plotting script has three sets. With every position 0 the model is no less at
home at 32,000 tokens than at 10; rotary positions are taken up to the 8,192 that SmolLM2-135M was trained on. Windows
are those of up to 40 terms: more cost as much as exact attention.
"""

from __future__ import annotations

from collections.abc import Sequence

from refattn._memory import require_memory
from refattn.experiments.conv.figure import RECOVERED, SETTING, measured, needed_bytes
from refattn.experiments.conv.figure_setting import COUNTS, LAYER, SCALES
from refattn.experiments.experiment import Experiment, Item, Record
from refattn.laboratory.smollm2 import NEEDS_HAMLET

CONTEXT = 8192
"""Positions that the model was trained on."""

HEADS = 3
WINDOWS = (5, 10, 20, 40)
"""The k whose operations a window is given."""


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length, way to place the tokens and factor."""
    return [
        {"n": n, "positions": positions, "layer": LAYER, "scale": scale, **SETTING}
        for n in sizes
        for positions in (("zero", "rotary") if n <= CONTEXT else ("zero",))
        for scale in SCALES
    ]


def run(item: Item) -> list[Record]:
    """Return for every method and k what it leaves of three heads of the layer."""
    from refattn.experiments.conv.captured import captured, head_of

    n = item["n"]
    require_memory(f"conv-figure-long: n = {n}", needed_bytes(n, 1, max(COUNTS)))
    capture = captured(n, item["positions"], item["layer"])
    heads = [head_of(capture, item["layer"], place) for place in range(HEADS)]
    counts = {"first": COUNTS, "uniform": COUNTS} | ({"recover": RECOVERED} if item["scale"] == "1/d" else {})
    kept = {method: [count for count in some if count <= n] or [1] for method, some in counts.items()}
    return measured(heads, item["scale"], kept, [count for count in WINDOWS if count <= n])


EXPERIMENT = Experiment(
    name="conv-figure-long",
    question="What is the error against k at the length of the paper's figure, 32,000 tokens?",
    sizes=(1024, 8192, 32_000),
    quick_sizes=(128,),
    items=items,
    run=run,
    needs=NEEDS_HAMLET,
    timed=("seconds",),
)
