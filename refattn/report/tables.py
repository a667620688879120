"""The ledger as a table of a paper: Markdown (GitHub's tables) and LaTeX (longtable and booktabs) (ours).

Both are made from the report's document, as the page is, by templates; what a template prints is escaped unless it is
marked as written in the target's language. A table can be cut to some rows; it then says so, and the counts stay those
of the whole report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from refattn.report import tex
from refattn.report.page import number
from refattn.report.selection import Choice

if TYPE_CHECKING:
    from jinja2 import Environment

EVERYTHING = Choice()


class Raw(str):
    """Text that is written in the target's language already, which a template prints as it is."""


def markdown(document: Mapping[str, Any], choice: Choice = EVERYTHING) -> str:
    r"""Return a report's rows, or some of them, as a Markdown table with its provenance.

    >>> from refattn.report import Claim, Measurement, run_claims, to_document
    >>> claim = Claim("a.b", "ours", "|x| < 2.", "adding", lambda quick: Measurement("none", 1.0, at_most=2.0))
    >>> [line for line in markdown(to_document(run_claims([claim], quick=True))).splitlines() if "a.b" in line]
    ['| `a.b` | \\|x\\| \\< 2. | ours | 1 | ≤ 2 | holds |']
    """
    environment = templates(escape_markdown, {"code": markdown_code, "number": lambda value: Raw(number(value))})
    return environment.get_template("ledger.md.jinja").render(**view(document, choice))


def latex(document: Mapping[str, Any], choice: Choice = EVERYTHING) -> str:
    r"""Return a report's rows, or some of them, as a LaTeX table with its provenance, in ASCII.

    >>> from refattn.report import Claim, Measurement, run_claims, to_document
    >>> claim = Claim("a.b", "ours", "ε ≤ 2.", "adding", lambda quick: Measurement("none", 1e-3, at_most=2.0))
    >>> r"$\varepsilon $ $\le $ 2." in latex(to_document(run_claims([claim], quick=True)))
    True
    """
    environment = tex_templates()
    return environment.get_template("ledger.tex.jinja").render(**view(document, choice))


def view(document: Mapping[str, Any], choice: Choice = EVERYTHING) -> dict[str, Any]:
    """Return what a table's template reads: the document, the rows that are shown, and where they come from."""
    shown = [row for row in document["rows"] if choice.wants(row["id"], row["paper"], row["verdict"])]
    return {
        **document,
        "shown": shown,
        "choice": str(choice),
        "provenance": provenance(document),
    }


def provenance(document: Mapping[str, Any]) -> dict[str, str]:
    """Return, by name, where a report's numbers come from: sources, command, machine, libraries, time."""
    environment, run, machine = document["environment"], document["run"], document["environment"]["machine"]
    sources = environment["sources"]
    commit = f", commit {sources['commit']}" if sources["commit"] else ""
    commit += " with changes" if sources["changed"] else ""
    memory = f", {machine['memory_gib']} GiB" if machine["memory_gib"] else ""
    processor = f"{machine['cpu']}, {machine['cores']} cores{memory}"
    blas = [f"{one['internal_api']} {one.get('version', '')} {one.get('architecture', '')}".strip()
            for one in environment["blas"] if one["internal_api"] != "openmp"]  # fmt: skip
    packages = [f"{name} {environment['packages'][name]}" for name in ("numpy", "scipy", "numba")]
    return {
        "sources": f"refattn {document['version']}{commit}, digest {sources['digest']}",
        "command": run["command"],
        "run": f"begun {run['begun'].replace('T', ' ').replace('+00:00', ' UTC')}, {run['seconds']:.0f} s, "
        f"{'quick: smaller sizes and fewer seeds' if document['quick'] else 'full sizes'}",
        "machine": f"{processor}, {machine['architecture']}, {machine['system']}",
        "libraries": ", ".join([f"Python {environment['python']}", *packages, *dict.fromkeys(blas)]),
        "threads": str(environment["threads"]),
    }


def templates(escape: Callable[[str], str], filters: Mapping[str, Callable[..., Any]], **marks: Any) -> Environment:
    """Return the report's templates, in which everything that is printed is escaped, but for what is `Raw`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined

    def printed(value: Any) -> Any:
        return value if isinstance(value, (Raw, Undefined)) else escape(str(value))

    environment = Environment(
        loader=PackageLoader("refattn.report"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=printed,
        **marks,
    )
    environment.filters |= {name: _raw(function) for name, function in filters.items()}
    return environment


def tex_templates() -> Environment:
    """Return the templates of LaTeX, whose marks are brackets that LaTeX does not use."""
    return templates(
        tex.escape,
        {"code": tex.code, "number": tex.number, "bound": _tex_bound, "list": _tex_list, "raw": str},
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
    )


def escape_markdown(text: str) -> str:
    r"""Return text as a cell of a Markdown table shows it: in one line, without markup.

    >>> print(escape_markdown("a|b  *c* <d>"))
    a\|b \*c\* \<d\>
    """
    return re.sub(r"([\\`*_{}\[\]<>|~&$@#^])", r"\\\1", " ".join(text.split()))


def markdown_code(text: str) -> str:
    r"""Return an id or a command as a code span; with a backtick or a bar, which one in a table cannot hold, as text.

    >>> print(markdown_code("a.b"), markdown_code("a|b"))
    `a.b` a\|b
    """
    line = " ".join(text.split())
    return escape_markdown(line) if re.search("[`|]", line) or not line else f"`{line}`"


def _raw(function: Callable[..., str]) -> Callable[..., Raw]:
    return lambda *arguments: Raw(function(*arguments))


def _tex_bound(row: Mapping[str, Any]) -> str:
    """The bound of a row, in math mode."""
    for sign, limit in ((r"\le", row["at_most"]), (r"\ge", row["at_least"])):
        if limit is not None:
            return f"${sign} {tex.number(limit).strip('$')}$"
    return ""


def _tex_list(values: Collection[str]) -> str:
    return ", ".join(map(tex.code, values))
