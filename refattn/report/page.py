"""The ledger as one self-contained HTML page (ours)."""

from __future__ import annotations

from refattn.report.ledger import Report


def render(report: Report) -> str:
    """Return the page: no network, no script; each row unfolds to how it was checked, on what, and further numbers."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("refattn.report"), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html.jinja").render(report.to_dict())
