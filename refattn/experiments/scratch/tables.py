"""The tables of a study, and its sentence; a study that is not whole has neither (ours)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from refattn.experiments.scratch.conv_from_scratch import METHODS as CONV_METHODS
from refattn.experiments.scratch.footing import uneven
from refattn.experiments.scratch.methods import EARLIER
from refattn.experiments.scratch.one_training import TIMES
from refattn.experiments.scratch.readings import Interval, at_best_rates, gain, interval, scores
from refattn.experiments.tables import grouped, median, table

FIELD = {"recall": "accuracy", "text": "loss"}
"""What each task is judged by."""
Rows = Sequence[dict[str, Any]]
OURS = "sparsek with a window"


def _whole(make: Callable[[Rows], str]) -> Callable[[Rows], str]:
    """Return the maker of a table, which makes one of what is wrong where the study is not whole or not even."""

    @wraps(make)
    def made(rows: Rows) -> str:
        wrong = uneven(rows)
        return table(["not shown, because the study is not whole"], [[one] for one in wrong]) if wrong else make(rows)

    return made


def conv(rows: Rows) -> str:
    """By task and method, what was learned with conv attention; a task that is not whole is left out."""
    lines: list[list[Any]] = []
    by_task: dict[str, list[dict[str, Any]]] = grouped(rows, "task")
    for task, some in by_task.items():
        if wrong := uneven(some, CONV_METHODS[task]):
            lines.append([task, f"not shown, because the study is not whole: {'; '.join(wrong)}", *[None] * 6])
            continue
        rates = {row["method"]: row["rate"] for row in at_best_rates(some)}
        ends = _at_the_end(some)
        for method, rate in rates.items():
            found = [_told(interval(list(scores(some, field, 1)[method].values()))) for field in _CONV_FIELDS]
            lines.append([task, method, rate, *found, *(median(ends[method], name) for name in ("residual", "output"))])
    names = ["loss", "loss, other attention in its place", "accuracy", "accuracy, other attention"]
    return table(["task", "method", "rate", *names, "logits from k-conv", "conv from exact"], lines)


_CONV_FIELDS = ("loss", "other_loss", "accuracy", "other_accuracy")


def _told(found: Interval) -> str:
    return f"{found.value:.3f} ({found.low:.3f} … {found.high:.3f})"


@_whole
def footing(rows: Rows) -> str:
    """What is equal."""
    trained = [row for row in rows if "parameters" in row]
    values = {name: sorted({row[key] for row in trained} - {None}) for key, name in _EQUAL.items()}
    values[_PAIRS] = sorted({row["pairs"] for row in trained if row["method"] != "exact"} - {None})
    lines = [[name, " to ".join(f"{one:,}" for one in sorted({some[0], some[-1]}))] for name, some in values.items()]
    rates, seeds = sorted({row["rate"] for row in trained}), {row["seed"] for row in trained}
    lines += [["rates searched, with one seed", ", ".join(f"{rate:g}" for rate in rates)]]
    return table(["the same for all methods", "is"], [*lines, ["seeds at the best rate", len(seeds)]])


_EQUAL = {"parameters": "parameters", "tokens": "tokens", "state": "numbers kept of the past, of the linear ones"}
_PAIRS = "pairs a query, of the sparse ones"


@_whole
def quality(rows: Rows) -> str:
    """By method and length, with intervals over seeds."""
    field = FIELD[str(rows[0]["task"])]
    rates = {row["method"]: row["rate"] for row in at_best_rates(rows)}
    found = [scores(rows, field, times) for times in TIMES]
    lines = [
        [method, rates[method], *(_told(interval(list(one[method].values()))) for one in found)] for method in found[0]
    ]
    return table(["method", "rate", *(f"{field} at {times} ×" for times in TIMES)], lines)


@_whole
def by_distance(rows: Rows) -> str:
    """By method, length and distance: means over seeds."""
    lines = []
    distances = sorted({row["distance"] for row in rows if row.get("distance")})
    for times in TIMES:
        found = {distance: scores(rows, "accuracy", times, distance) for distance in distances}
        for method in scores(rows, "accuracy", times):
            means = [list(found[distance].get(method, {}).values()) for distance in distances]
            lines.append([method, f"{times} ×", *(sum(one) / len(one) if one else None for one in means)])
    return table(["method", "length", *(f"≤ {distance}" for distance in distances)], lines)


def sentence(rows: Rows) -> str:
    """Return the reading: SparseK with a window against the best earlier sparse method, at every length."""
    wrong = uneven(rows)
    task = str(rows[0]["task"])
    field = FIELD[task]
    first = f"- **Trained from scratch** ({_NAMES[task]}), SparseK with a window against the best earlier sparse method"
    if wrong:
        return f"{first}: not shown, because the study is not whole.\n"
    lines = []
    for times in TIMES:
        better = gain(rows, OURS, EARLIER, field, times)
        lines.append(
            f"  - at {times} × the trained length: {_told(better.interval)} better in {field} than {better.best}."
        )
    return f"{first}, with 95 % intervals of three seeds:\n" + "\n".join(lines) + "\n"


def conv_sentence(rows: Rows) -> str:
    """Return the reading: every way to train with conv attention against exact attention, task by task."""
    lines = []
    by_task: dict[str, list[dict[str, Any]]] = grouped(rows, "task")
    for task, some in by_task.items():
        if wrong := uneven(some, CONV_METHODS[task]):
            lines.append(f"  - {task}: not shown, because the study is not whole: {'; '.join(wrong)}.")
            continue
        losses, others = scores(some, "loss", 1), scores(some, "other_loss", 1)
        exact, ends = losses.pop("exact"), _at_the_end(some)
        for method, own in losses.items():
            behind = interval([own[seed] - exact[seed] for seed in own])
            replaced = interval([others[method][seed] - own[seed] for seed in own])
            lines.append(
                f"  - {task}, {method}: {_told(behind)} nats behind exact attention; with exact attention in its place"
                f" {_told(replaced)} more; logits {median(ends[method], 'residual'):.2f} from k-conv"
                f" ({median(ends['exact'], 'residual'):.2f} where exact attention was trained)."
            )
    return (
        "- **Trained from scratch with conv attention**, small decoders, with 95 % intervals of three seeds; below 0 is"
        " ahead:\n" + "\n".join(lines) + "\n"
    )


def _at_the_end(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Return the last step's records of the trainings at the best rates, by method."""
    last = max(row["step"] for row in rows if "step" in row)
    found: dict[str, list[dict[str, Any]]] = grouped(
        [r for r in at_best_rates(rows) if r.get("step") == last], "method"
    )
    return found


_NAMES = {
    "recall": "recall: 2 layers of width 64, 2.5 million tokens",
    "text": "Shakespeare by bytes: 4 layers of width 128, a million tokens",
}
