"""Records of an experiment as JSON lines: what a file says, and whether to believe it (ours).

The first line is a header: the experiment, its sizes, how many items it has, the environment. Every other line is the
result of one item. A last line without its newline was being written when the writer was stopped: it does not count.
The layout is published as a JSON Schema, ``refattn/experiments/schema/records.schema.json``; a file is read with
suspicion, and refused with the line's number.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from refattn._json import parsed
from refattn._version import __version__
from refattn.experiments.experiment import Experiment, Item, Record
from refattn.versions import environment

SCHEMA = "refattn-records/1"
"""Name of the layout, raised when a field changes its meaning."""

MOST_BYTES = 2 << 20
"""Longest line that is read or written."""

_HEADER: Mapping[str, type] = {
    "schema": str,
    "experiment": str,
    "question": str,
    "version": str,
    "sizes": list,
    "items": int,
    "timed": list,
    "begun": str,
    "environment": dict,
}


@dataclass(frozen=True)
class Result:
    """What one item gave: its records, and the seconds it took."""

    item: Item
    seconds: float
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Records:
    """A file of records: its header, whose fields the schema names, and a result for every item that was finished.

    `end` is the byte at which the last whole line ends.
    """

    header: dict[str, Any]
    results: tuple[Result, ...]
    end: int = 0

    @property
    def complete(self) -> bool:
        """Whether every item was finished."""
        return bool(len(self.results) == self.header["items"])

    def rows(self) -> list[Record]:
        """Return every record with its item's fields before its own."""
        return [{**result.item, **record} for result in self.results for record in result.records]

    def reproducible(self) -> str:
        """Return as JSON lines what is the same on every run: all but the times and the clock."""
        timed = set(self.header["timed"])
        lines: list[Any] = [{key: value for key, value in self.header.items() if key != "begun"}]
        for result in self.results:
            kept = [{key: value for key, value in one.items() if key not in timed} for one in result.records]
            lines.append({"item": result.item, "records": kept})
        return "".join(map(_line, lines))

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return (_line(self.header) + "".join(map(result_line, self.results))).encode("utf-8")


def new_header(experiment: Experiment, sizes: Sequence[int], n_items: int) -> dict[str, Any]:
    """Return the header of a file that is begun now."""
    return {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "question": experiment.question,
        "version": __version__,
        "sizes": list(sizes),
        "items": n_items,
        "timed": list(experiment.timed),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
    }


def identity(item: Item) -> str:
    """Return a text that is the same for equal items only."""
    return json.dumps(item, sort_keys=True, ensure_ascii=False)


def result_line(result: Result) -> str:
    """Return the line of a result.

    Raises
    ------
    ValueError
        The item or a record is not a flat dictionary of finite JSON scalars, or all of them are too long for a line.
    """
    for one in (result.item, *result.records):
        _require_flat(one)
    line = _line({"item": result.item, "seconds": result.seconds, "records": list(result.records)})
    if len(line.encode("utf-8")) > MOST_BYTES:
        raise ValueError(f"records: a line of {len(line)} characters came, at most {MOST_BYTES} bytes were wanted")
    return line


def read_records(path: str | os.PathLike[str]) -> Records:
    """Read a file of records, complete or not: header and results, in the file's order.

    A ValueError says that it is not such a file, and names the line and what is wrong with it. Time and memory are
    proportional to the file's length; a line of more than 2 MB is refused before it is read whole.

    >>> import tempfile
    >>> from refattn.experiments.conv import by_fft
    >>> from refattn.experiments.runner import run_experiment
    >>> path = run_experiment(by_fft.EXPERIMENT, tempfile.mkdtemp(), sizes=[100])
    >>> records = read_records(path)
    >>> records.header["experiment"], records.complete
    ('conv-by-fft', True)
    """
    end = 0
    header: dict[str, Any] | None = None
    results: dict[str, Result] = {}
    for number, line in _whole_lines(path):
        try:
            data = _parsed(line)
            if header is None:
                header = _checked_header(data)
            else:
                result = _checked_result(data)
                if identity(result.item) in results:
                    raise ValueError("the item has a line already")
                results[identity(result.item)] = result
        except (ValueError, OverflowError) as error:  # a whole number may be too large for a float
            raise ValueError(f"{path}: line {number}: {error}") from None
        end += len(line)
    if header is None:
        raise ValueError(f"{path}: no whole line, records of an experiment were wanted")
    if len(results) > header["items"]:
        raise ValueError(f"{path}: {len(results)} results came, at most {header['items']} were wanted")
    return Records(header, tuple(results.values()), end)


def _whole_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            if len(line) > MOST_BYTES:
                raise ValueError(f"{path}: line {number}: longer than {MOST_BYTES} bytes")
            if line.endswith(b"\n"):
                yield number, line


def _line(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n"


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        data = parsed(line, most=MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{type(data).__name__} came, a JSON object was wanted")
    return data


def _checked_header(data: dict[str, Any]) -> dict[str, Any]:
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {data.get('schema')!r} came, {SCHEMA!r} was wanted")
    _require_keys(data, _HEADER)
    for key, kind in _HEADER.items():
        if not isinstance(data[key], kind) or isinstance(data[key], bool):
            raise ValueError(f"{key}: {data[key]!r} came, {kind.__name__} was wanted")
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in data["sizes"]):
        raise ValueError(f"sizes: {data['sizes']!r} came, whole numbers were wanted")
    if not all(isinstance(name, str) for name in data["timed"]):
        raise ValueError(f"timed: {data['timed']!r} came, names of fields were wanted")
    return data


def _checked_result(data: dict[str, Any]) -> Result:
    _require_keys(data, ("item", "seconds", "records"))
    item, seconds, records = data["item"], data["seconds"], data["records"]
    if not isinstance(records, list):
        raise ValueError(f"records: {type(records).__name__} came, a list was wanted")
    for one in (item, *records):
        _require_flat(one)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"seconds: {seconds!r} came, a number of at least 0 was wanted")
    return Result(item, float(seconds), tuple(records))


def _require_keys(data: dict[str, Any], keys: Sequence[str] | Mapping[str, type]) -> None:
    if set(data) != set(keys):
        came = ", ".join(repr(key)[:60] for key in sorted(data)[:20])
        raise ValueError(f"fields {came} came, {', '.join(sorted(keys))} were wanted")


def _require_flat(data: Any) -> None:
    """Raise unless `data` is a dictionary of JSON scalars, numbers finite."""
    if not isinstance(data, dict):
        raise ValueError(f"{type(data).__name__} came, a dictionary of scalars was wanted")
    for key, value in data.items():
        if not isinstance(key, str):
            raise ValueError(f"field {key!r}: names of fields have to be text")
        if not (value is None or isinstance(value, str | bool | int | float)):
            raise ValueError(
                f"field {key!r}: {type(value).__name__} came, text, a number, true, false or null was wanted"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"field {key!r}: {value} came, a finite number or null was wanted")
