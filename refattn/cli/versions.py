"""``refattn versions``: what results depend on."""

from __future__ import annotations

from typing import Annotated

import typer

from refattn.versions import show_versions


def versions(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Print the versions and settings that results depend on."""
    show_versions(json=as_json)
