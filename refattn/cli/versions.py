"""``refattn versions``: what results depend on."""

from __future__ import annotations

from typing import Annotated

import typer

from refattn.versions import show_versions

HELP = "Print the versions and settings that results depend on."
EXAMPLES = """\
refattn versions
refattn versions --json"""


def versions(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Run the command, as `HELP` says."""
    show_versions(json=as_json)
