"""Which rows of a report are wanted: by id, by paper, by verdict (ours)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from refattn.report.coverage import CONV, SPARSEK
from refattn.report.ledger import FAILS, HOLDS, HOLDS_IF, NOT_RUN

SHORT: dict[str, str] = {CONV: "Conv-Basis", SPARSEK: "SparseK", "ours": "ours"}
"""Names of the papers, by arXiv number."""

VERDICTS = (HOLDS, HOLDS_IF, FAILS, NOT_RUN)
"""In the order of the counts."""


def papers_named(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Return the arXiv numbers, or "ours", that names mean: a number, with or without "arXiv", or a paper's short name.

    Raises ``ValueError`` for one that no claim among the `known` papers' comes from.

    >>> papers_named(["conv-basis", "arXiv:2406.16747", "ours"], {"2405.05219", "2406.16747", "ours"})
    ['2405.05219', '2406.16747', 'ours']
    """
    by_name = {short.lower(): number for number, short in SHORT.items() if number in known}
    by_name |= {number: number for number in known}
    found = []
    for name in names:
        plain = name.lower().removeprefix("arxiv").lstrip(": ")
        if plain not in by_name:
            wanted = ", ".join(sorted(known, key=lambda number: (number == "ours", number)))
            raise ValueError(f"{name!r} came, one of {wanted} was wanted")
        found.append(by_name[plain])
    return found


def verdicts_named(names: Sequence[str]) -> list[str]:
    """Return the verdicts that names mean, in which a hyphen may stand for a space.

    Raises ``ValueError`` for one that is no verdict.

    >>> verdicts_named(["holds", "does-not-hold"])
    ['holds', 'does not hold']
    """
    found = [name.lower().replace("-", " ") for name in names]
    for name, plain in zip(names, found, strict=True):
        if plain not in VERDICTS:
            wanted = ", ".join(verdict.replace(" ", "-") for verdict in VERDICTS)
            raise ValueError(f"{name!r} came, one of {wanted} was wanted")
    return found


@dataclass(frozen=True)
class Choice:
    """Rows whose id contains one of some texts, of some papers and verdicts; nothing named leaves nothing out.

    >>> choice = Choice(texts=("time",), verdicts=("does not hold", "not run"))
    >>> choice.wants("conv.time", "ours"), choice.wants("conv.time", "ours", "holds"), str(choice)
    (True, False, 'id with time; verdict does not hold or not run')
    """

    texts: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()

    def wants(self, id: str, paper: str, verdict: str | None = None) -> bool:
        """Whether a claim is chosen, or a row where its verdict is given."""
        return (
            (not self.texts or any(text in id for text in self.texts))
            and (not self.papers or paper in self.papers)
            and (not self.verdicts or verdict is None or verdict in self.verdicts)
        )

    def __str__(self) -> str:
        named = (("id with", self.texts), ("paper", self.papers), ("verdict", self.verdicts))
        return "; ".join(f"{name} {' or '.join(values)}" for name, values in named if values)
