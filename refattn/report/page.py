"""The report as one self-contained HTML page (ours).

No network, and none possible: the page's content security policy allows its own script and style, by their hashes, and
nothing else. Without JavaScript everything can be read; with it, rows can be filtered.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from refattn.report.citation import said
from refattn.report.figures import figures
from refattn.report.selection import SHORT
from refattn.report.svg import axis_text, swatch
from refattn.report.verdict import sentence

GROUPS: dict[str, str] = {
    "dense": "Exact attention, the oracle",
    "conv": "Conv products and the conv basis",
    "recover": "Recover and Search",
    "inference": "Inference on a conv basis",
    "starts": "The choice of starts and kernels",
    "fast": "The fast path",
    "real": "Heads of a language model",
    "model": "A whole language model",
    "training": "Training with a conv basis",
    "lowrank": "Low rank with structured masks",
    "applications": "Where conv structure comes from",
    "sparsek": "SparseK attention",
}
"""Headings of the rows, by the part of the id before the dot."""


def render(document: Mapping[str, Any]) -> str:
    """Return the page of a report as `to_document` gives it or as read from its JSON: HTML, in UTF-8 when written.

    Examples
    --------
    >>> from refattn.report import Claim, Measurement, run_claims, to_document
    >>> claim = Claim("a.b", "ours", "1 < 2.", "adding", lambda quick: Measurement("none", 1.0, at_most=2.0))
    >>> "1 &lt; 2." in render(to_document(run_claims([claim], quick=True)))
    True
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("refattn.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": number, "axis": axis_text}
    environment.globals |= {"swatch": swatch, "said": said}
    style, script = (_asset(name) for name in ("report.css", "report.js"))
    found = {row["id"]: row["verdict"] for row in document["rows"]}
    groups: dict[str, list[Any]] = {}
    for row in document["rows"]:
        name = str(row["id"]).partition(".")[0]
        groups.setdefault(GROUPS.get(name, name), []).append(row)
    return environment.get_template("report.html.jinja").render(
        **document,
        sentence=sentence(document),
        groups=groups,
        figures=figures(document["rows"]),
        verdict_of=found,
        short=SHORT,
        sources=[p for p in (*SHORT, *sorted({r["paper"] for r in document["rows"]} - {*SHORT}))
                 if any(r["paper"] == p for r in document["rows"])],
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
    )  # fmt: skip


def number(value: Any) -> str:
    """Return a number to three digits, anything else as text.

    Examples
    --------
    >>> number(1.23456e-13), number(3.0), number("inf"), number(None)
    ('1.23e-13', '3', 'inf', '')
    """
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _asset(name: str) -> str:
    return files("refattn.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    """Hash of an inline element's text, as a content security policy states it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
