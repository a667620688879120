"""A reproducibility report as a folder to go on writing in, in the ML Reproducibility Challenge's form (ours).

Scope, methodology and results are filled from a report's document; what only a person can say is marked ``TODO``. The
folder compiles as it is: ``pdflatex report``, ``bibtex report`` and ``pdflatex report`` twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from refattn.report.figures import figures
from refattn.report.pictures import pdf
from refattn.report.selection import VERDICTS
from refattn.report.tables import latex, tex_templates, view


def study(document: Mapping[str, Any]) -> dict[str, str | bytes]:
    """Return the files of a reproducibility report, by their paths in the folder.

    They are ``report.tex``, ``claims.tex`` (the table), ``references.bib``, ``report.json`` (the report itself) and the
    figures.
    """
    drawn = figures(document["rows"])
    groups = [_group(document, number) for number in dict.fromkeys(row["paper"] for row in document["rows"])]
    text = tex_templates().get_template("study.tex.jinja").render(
        **view(document),
        reproduced=[group for group in groups if group["number"] in document["papers"]],
        beyond=[group for group in groups if group["number"] not in document["papers"]],
        figures=drawn,
        not_run=[row for row in document["rows"] if row["verdict"] == VERDICTS[-1]],
        not_covered=[item for item in document["coverage"] if not item["rows"]],
    )  # fmt: skip
    return {
        "report.tex": text,
        "claims.tex": latex(document),
        "references.bib": document["citation"]["bibtex"] + "\n",
        "report.json": json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        **{f"figures/{figure.id}.pdf": pdf(figure) for figure in drawn},
        **{f"figures/{figure.id}.csv": figure.csv for figure in drawn},
    }


def _group(document: Mapping[str, Any], number: str) -> dict[str, Any]:
    """The rows of one paper with their counts, the paper's title and its key in the bibliography."""
    rows = [row for row in document["rows"] if row["paper"] == number]
    bibtex = document["citation"]["bibtex"]
    entry = re.search(rf"@\w+\{{([^,\s]+),(?:(?!\n@).)*arXiv:{re.escape(number)}\b", bibtex, re.S)
    other = "Claims of our own" if number == "ours" else f"Claims of arXiv {number}"
    return {
        "number": number,
        "title": document["papers"].get(number, other),
        "key": entry.group(1) if entry else "",
        "rows": rows,
        "tally": _tally(rows),
    }


def _tally(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS}
