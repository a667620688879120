"""The report's figures: curves read from the detail of rows, so a figure shows only what this run measured (ours)."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refattn.report.svg import Curve, draw


@dataclass(frozen=True)
class Source:
    """Where a curve's points are: entries of a row's detail whose names match, with x as the pattern's one group."""

    name: str
    row: str
    pattern: str


@dataclass(frozen=True)
class Plan:
    """A figure to be drawn from rows, if they were measured."""

    id: str
    title: str
    x: str
    y: str
    sources: tuple[Source, ...]
    guide: tuple[float, str] | None = None


@dataclass(frozen=True)
class Figure:
    """A drawn figure with its data."""

    id: str
    title: str
    x: str
    y: str
    rows: tuple[str, ...]
    curves: tuple[Curve, ...]
    svg: str
    guide: tuple[float, str] | None = None

    @property
    def table(self) -> list[tuple[float, list[float | None]]]:
        """The data: x, and the value of every curve there."""
        known = [dict(curve.points) for curve in self.curves]
        return [(x, [values.get(x) for values in known]) for x in sorted(set().union(*known))]

    @property
    def csv(self) -> str:
        """The data as a CSV file: what the curves show, and an empty field where one has no point."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([self.x, *(curve.name for curve in self.curves)])
        writer.writerows([x, *("" if y is None else y for y in values)] for x, values in self.table)
        return out.getvalue()

    @property
    def data_uri(self) -> str:
        """The data as a CSV file inside an address."""
        return "data:text/csv;charset=utf-8;base64," + base64.b64encode(self.csv.encode()).decode()


def _domain(dtype: str) -> tuple[Source, ...]:
    return (
        Source(f"one long FFT, {dtype}", "fast.numerical-domain", rf"{dtype}: error of one long FFT at deviation (.+)"),
        Source(f"guarded, {dtype}", "fast.numerical-domain", rf"{dtype}: error of the guarded path at deviation (.+)"),
    )


PLANS: tuple[Plan, ...] = (
    Plan("error-against-k", "Error of attention against the number of basis terms, heads of SmolLM2-135M",
         "basis terms k", "median relative error",
         (Source("first columns as starts", "real.conv-structure", r"median relative error: first starts, k = (\d+)"),
          Source("uniform starts", "real.conv-structure", r"median relative error: uniform starts, k = (\d+)")),
         (0.1, "what the claim asks for")),
    Plan("encoder-error", "Error of full attention against k/n, heads of MiniLM-L6",
         "k/n", "mean relative error",
         (Source("the better of two choices of starts", "applications.encoder-structure", r"error at k = (.+) n"),),
         (0.1, "what the claim asks for")),
    Plan("fft-error", "Worst error of a row against the deviation of the logits: one long FFT, and rows guarded",
         "deviation of the logits σ", "row error over ‖V‖_∞", (*_domain("float64"), *_domain("float32"))),
    Plan("gradient-error", "Error of the paper's gradient against the noise ε of the logits",
         "noise ε", "relative error of dQ",
         (Source("paper's gradient", "training.perturbed", r"relative error at ε = (.+)"),)),
    Plan("product-time", "conv(a) x: time against n", "n", "seconds",
         (Source("by FFT", "conv.product-time", r"seconds by FFT at n = (\d+)"),
          Source("direct product", "conv.product-time", r"seconds directly at n = (\d+)"))),
    Plan("attention-time", "Attention: time against n (different sizes of problem: compare slopes)", "n", "seconds",
         (Source("conv, forward", "inference.time", r"seconds at n = (\d+)"),
          Source("conv, forward and backward", "training.time", r"seconds at n = (\d+)"),
          Source("SparseK, forward", "sparsek.linear-time", r"seconds forward at n = (\d+)"))),
    Plan("memory", "Recover and conv attention: peak memory against n", "n", "MB",
         (Source("peak", "recover.memory", r"peak MB at n = (\d+)"),)),
)  # fmt: skip


def figures(rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Draw every figure for which these rows of a report's document hold at least two points."""
    details = {row["id"]: dict(flat(row["detail"])) for row in rows}
    found = []
    for plan in PLANS:
        curves = tuple(Curve(s.name, points) for s in plan.sources if len(points := _points(s, details)) > 1)
        if curves:
            svg = draw(curves, plan.x, plan.y, title=plan.title, guide=plan.guide)
            used = tuple(dict.fromkeys(source.row for source in plan.sources if details.get(source.row)))
            found.append(Figure(plan.id, plan.title, plan.x, plan.y, used, curves, svg, plan.guide))
    return found


def flat(detail: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a row's detail, those inside another with its name before theirs."""
    for name, value in detail.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}", value


def _points(source: Source, details: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[float, float], ...]:
    """Points in the order of x; values that a logarithmic axis cannot show are left out."""
    points = []
    for name, value in details.get(source.row, {}).items():
        match = re.fullmatch(source.pattern, name)
        if match and isinstance(value, (int, float)) and value > 0 and math.isfinite(value):
            points.append((float(match.group(1)), float(value)))
    return tuple(sorted(points))
