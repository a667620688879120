"""How to cite a report and the papers it tests, as BibTeX (ours).

The fields are those of ``CITATION.cff`` at the root of the sources, which an installed package does not carry; a test
compares the two field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from refattn._version import __version__
from refattn.report.coverage import CONV, SPARSEK
from refattn.report.coverage import PAPERS as TITLES

TITLE = "refattn: verified reference implementations of near-linear attention"
AUTHOR = "The refattn developers"
LICENSE = "BSD-3-Clause"

PAPERS: dict[str, dict[str, str]] = {
    CONV: {
        "title": TITLES[CONV],
        "author": "Liang, Yingyu and Liu, Heshan and Shi, Zhenmei and Song, Zhao and Xu, Zhuoyan and Yin, Junze",
        "year": "2024",
    },
    SPARSEK: {
        "title": TITLES[SPARSEK],
        "author": "Lou, Chao and Jia, Zixia and Zheng, Zilong and Tu, Kewei",
        "year": "2024",
    },
}
"""Fields of the papers' entries, by arXiv number."""


def bibtex(begun: datetime, sources: Mapping[str, Any]) -> str:
    """Return BibTeX entries of a report, run at that time in UTC from those sources, and of the papers it tests."""
    report = {
        "title": f"{{{TITLE}}}",
        "author": f"{{{AUTHOR}}}",
        "year": str(begun.year),
        "version": __version__,
        "note": f"report of {begun.date().isoformat()}; {said(sources)}; {LICENSE}",
    }
    papers = (
        _entry(
            "article",
            f"{fields['author'].partition(',')[0].lower()}{fields['year']}",
            fields | {"title": f"{{{fields['title']}}}", "journal": f"arXiv preprint arXiv:{number}"},
        )
        for number, fields in PAPERS.items()
    )
    return "\n\n".join((_entry("software", "refattn", report), *papers))


def said(sources: Mapping[str, Any]) -> str:
    """Return which sources ran, in words.

    >>> said({"commit": "0123456789abcdef", "changed": True, "digest": "ba7816bf8f01"})
    'sources ba7816bf8f01, commit 0123456789ab with changes'
    """
    commit = f", commit {sources['commit'][:12]}" if sources["commit"] else ""
    return f"sources {sources['digest']}{commit}{' with changes' if sources['changed'] else ''}"


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(map(len, fields))
    lines = (f"  {name:<{width}} = {{{value}}}" for name, value in fields.items())
    return "@" + kind + "{" + key + ",\n" + ",\n".join(lines) + "\n}"
