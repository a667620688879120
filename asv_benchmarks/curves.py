"""The curves of asv's results as one page that needs no network: ``python asv_benchmarks/curves.py curves.html``.

Of every benchmark the latest result in a results folder (by default ``results/release``, which is in the repository) is
drawn against its number, n where there is one, with a curve for every implementation and a chart for every combination
of the other parameters. What has no number, or too few of them, is a line of a table.
"""

import argparse
import ast
import base64
import hashlib
import itertools
import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from refattn.report.page import number
from refattn.report.svg import Curve, axis_text, draw, swatch

HERE = Path(__file__).parent
STYLE = HERE.parent / "refattn/report/templates/report.css"


@dataclass(frozen=True)
class Result:
    """The latest result of a benchmark: its values by the values of its parameters."""

    name: str
    unit: str
    commit: str
    date: str
    names: tuple
    values: dict

    @property
    def module(self):
        return self.name.partition(".")[0]

    @property
    def y(self):
        """What the values are: the unit, or the benchmark's name where it has none."""
        plain = self.name.rpartition(".")[2].removeprefix("track_").replace("_", " ")
        return plain if self.unit == "unit" else self.unit


@dataclass(frozen=True)
class Chart:
    """A chart: the parameters that stand still in it, its curves, and all values as a table."""

    result: Result
    fixed: str
    x: str
    curves: tuple
    table: list

    @property
    def svg(self):
        return draw(self.curves, self.x, self.result.y, title=f"{self.result.name} {self.fixed}")


def latest(folder):
    """Return the latest result of every benchmark that asv knows of, by name, and the machine."""
    known = json.loads((folder.parent / "benchmarks.json").read_text(encoding="utf-8"))
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    records = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*-*.json")]
    found = {}
    for record in sorted(records, key=lambda record: record["date"]):
        for name, columns in record["results"].items():
            values, params = columns[:2]
            if values is None or not isinstance(about := known.get(name), dict):
                continue
            points = [tuple(value.strip("'") for value in point) for point in itertools.product(*params)]
            date = datetime.fromtimestamp(record["date"] / 1000, UTC).date().isoformat()
            found[name] = Result(name, about["unit"], record["commit_hash"][:8], date, tuple(about["param_names"]),
                                 {point: value for point, value in zip(points, values, strict=True)
                                  if value is not None and math.isfinite(value)})  # fmt: skip
    return dict(sorted(found.items())), machine


def charts(result):
    """Return the charts of a result, and the values, by parameters, that no chart with a curve of two points has."""
    values = [list(dict.fromkeys(point[i] for point in result.values)) for i in range(len(result.names))]
    numbers = [i for i, own in enumerate(values) if len(own) > 1 and all(_is_number(value) for value in own)]
    if not numbers:
        return [], result.values
    x = next((i for i in numbers if result.names[i] == "n"), numbers[-1])
    rest = [i for i in range(len(values)) if i != x]
    told = [i for i in rest if len(values[i]) > 1]
    by = next((i for i in told if result.names[i] == "implementation"), told[-1] if told else None)
    found, left = [], {}
    for fixed in itertools.product(*(values[i] for i in rest if i != by)):
        still = dict(zip([i for i in rest if i != by], fixed, strict=True))
        chosen = {p: v for p, v in result.values.items() if all(p[i] == value for i, value in still.items())}
        names = list(dict.fromkeys(p[by] if by is not None else result.name for p in chosen))
        points = {name: sorted((float(p[x]), v) for p, v in chosen.items() if by is None or p[by] == name)
                  for name in names}  # fmt: skip
        drawn = {name: tuple((a, b) for a, b in own if a > 0 and b > 0) for name, own in points.items()}
        curves = tuple(Curve(_told(result, by, name), own) for name, own in drawn.items() if len(own) > 1)
        if curves:
            said = ", ".join(_told(result, i, value) for i, value in still.items() if len(values[i]) > 1)
            found.append(Chart(result, said, result.names[x], curves, _table(points)))
        else:
            left |= chosen
    return found, left


def _is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _told(result, place, value):
    """Return the value of a parameter, with its name where the value is a number."""
    return f"{result.names[place]} = {value}" if place is not None and _is_number(value) else value


def _table(points):
    """Return the names of the columns, and for every x the value in each of them or None."""
    known = [dict(own) for own in points.values()]
    return [list(points), [(x, [own.get(x) for own in known]) for x in sorted(set().union(*known))]]


def _about(module):
    """Return the first line of a module of benchmarks."""
    text = (HERE / "benchmarks" / f"{module}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(text)).partition("\n")[0]


def render(folder):
    """Return the page of a results folder."""
    results, machine = latest(folder)
    groups = {}
    for result in results.values():
        group = groups.setdefault(result.module, {"about": _about(result.module), "charts": [], "lines": []})
        drawn, left = charts(result)
        group["charts"] += drawn
        group["lines"] += [
            (result, ", ".join(_told(result, i, value) for i, value in enumerate(point)), value)
            for point, value in left.items()
        ]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"number": number, "axis": axis_text}
    style = STYLE.read_text(encoding="utf-8").strip() + "\nfigcaption strong { overflow-wrap: anywhere; }"
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("curves.html.jinja").render(
        groups=groups, machine=machine, style=style, style_hash=f"sha256-{digest}", swatch=swatch
    )


def main():
    """Write the page to the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--results", type=Path, default=HERE / "results/release", help="a machine's results folder")
    arguments = parser.parse_args()
    arguments.file.write_text(render(arguments.results), encoding="utf-8")


if __name__ == "__main__":
    main()
