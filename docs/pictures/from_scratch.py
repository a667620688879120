"""Decoders trained from scratch to recall: accuracy by length and by distance, and the loss on the way, by method."""

from style import BLUE, GREEN, GREY, INK, ORANGE, RED, plt

from refattn.experiments.scratch.footing import uneven
from refattn.experiments.scratch.one_training import TIMES
from refattn.experiments.scratch.readings import at_best_rates, interval, scores
from refattn.experiments.scratch.tables import FIELD

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


def draw(rows):
    """Return the figure; records that are not whole are refused."""
    if wrong := uneven(rows):
        raise ValueError(f"the records are not whole: {'; '.join(wrong)}")
    field = FIELD[rows[0]["task"]]
    figure, (by_length, by_distance, curves) = plt.subplots(1, 3, figsize=(8.6, 3.6), layout="constrained")
    distances = sorted({row["distance"] for row in rows if row.get("distance")})
    kept = at_best_rates(rows)
    for place, (method, (colour, marker)) in enumerate(LOOKS.items()):
        look = {"color": colour, "marker": marker, "ms": 4, "lw": 1}
        found = [interval(list(scores(rows, field, times)[method].values())) for times in TIMES]
        values, at = [one.value for one in found], [number + 0.03 * (place - 6) for number in range(len(TIMES))]
        spread = [[one.value - one.low for one in found], [one.high - one.value for one in found]]
        by_length.errorbar(at, values, spread, **look, elinewidth=0.6, label=method)
        far = [list(scores(rows, "accuracy", TIMES[-1], one).get(method, {}).values()) for one in distances]
        by_distance.plot(distances, [sum(some) / len(some) if some else None for some in far], **look)
        on_the_way = [row for row in kept if row["method"] == method and row["seed"] == 0 and "step" in row]
        curves.plot([row["step"] for row in on_the_way], [row["loss"] for row in on_the_way], **{**look, "ms": 2})
    by_length.set_xticks(range(len(TIMES)), [f"{times} ×" for times in TIMES])
    by_length.set(xlabel="length, over the trained one", ylabel=f"{field}, with 95 % intervals of three seeds")
    by_distance.set_xscale("log", base=2)
    by_distance.set(xlabel="distance, at most", ylabel=f"accuracy at {TIMES[-1]} × the length")
    curves.set(xlabel="steps", ylabel="loss on validation texts, first seed")
    figure.legend(*by_length.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return figure
