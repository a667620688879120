"""Decoders trained from scratch to recall: accuracy by length and by distance, by method."""

from style import BLUE, GREEN, GREY, INK, ORANGE, RED, plt

from refattn.experiments.scratch.footing import uneven
from refattn.experiments.scratch.methods import EARLIER
from refattn.experiments.scratch.one_training import TIMES
from refattn.experiments.scratch.readings import gain, interval, scores
from refattn.experiments.scratch.tables import FIELD, OURS

RECORDS = "from-scratch"

LOOKS = {
    "exact": (INK, "o"),
    "window": (GREY, "s"),
    "window with sinks": (GREY, "P"),
    "strided": (GREY, "^"),
    "fixed": (GREY, "v"),
    "random blocks": (GREY, "X"),
    "hashing": (GREY, "<"),
    "routing": (GREY, ">"),
    "linear": (GREEN, "s"),
    "random features": (GREEN, "^"),
    "sparsek": (ORANGE, "D"),
    "sparsek with a window": (BLUE, "D"),
    "sparsek straight through": (RED, "D"),
}
"""Colour and marker of every method."""


def whole(rows):
    """Return the records as they are; those of a study that is not whole are refused."""
    if wrong := uneven(rows):
        raise ValueError(f"the records are not whole: {'; '.join(wrong)}")
    return rows


def draw(rows):
    """Return the figure: a panel by length, one by distance at the longest, where of the earlier the best is drawn."""
    field = FIELD[whole(rows)[0]["task"]]
    figure, (by_length, by_distance) = plt.subplots(1, 2, figsize=(6.8, 3.7), layout="constrained")
    best = gain(rows, OURS, EARLIER, field, TIMES[-1]).best
    distances = sorted({row["distance"] for row in rows if row.get("distance")})
    for place, (method, (colour, marker)) in enumerate(LOOKS.items()):
        look = {"color": colour, "marker": marker, "ms": 3.5, "lw": 0.8}
        found = [interval(list(scores(rows, field, times)[method].values())) for times in TIMES]
        values, at = [one.value for one in found], [number + 0.03 * (place - 6) for number in range(len(TIMES))]
        spread = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
        by_length.errorbar(at, values, spread, **{**look, "ls": "none"}, elinewidth=0.6, label=method)
        if method in EARLIER and method != best:
            continue
        far = [list(scores(rows, "accuracy", TIMES[-1], one).get(method, {}).values()) for one in distances]
        by_distance.plot(distances, [sum(some) / len(some) if some else None for some in far], **look)
    by_length.set_xticks(range(len(TIMES)), [f"{times} ×" for times in TIMES])
    by_length.set(xlabel="length, over the trained one", ylabel=f"{field}, and its 95 % interval")
    by_distance.set_xscale("log", base=2)
    by_distance.set(xlabel="distance, at most", ylabel=f"accuracy at {TIMES[-1]} × the length")
    figure.legend(*by_length.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
