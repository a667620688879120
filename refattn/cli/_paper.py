"""What ``refattn report`` writes for a paper: which rows, from which report, and into which folders."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from refattn._needs import missing, not_there
from refattn.cli._files import STANDARD_OUTPUT, write_one
from refattn.report.selection import Choice, papers_named, verdicts_named

FIGURES, TEMPLATE = "--figures", "--template"


def read_report(file: Path, option: str) -> dict[str, Any]:
    """Return a report from its JSON file, or refuse the file in one line."""
    from refattn.report import stored

    try:
        return stored.read(file.read_bytes())
    except OSError as error:
        told = error.strerror
    except ValueError as error:
        told = str(error)
    raise typer.BadParameter(f"{file}: {told}", param_hint=option)


def choose(
    known: Mapping[str, str],
    only: list[str],
    papers: list[str],
    verdicts: list[str],
    *,
    tables: bool,
    stored: bool,
) -> Choice:
    """Return what is chosen of the `known` ids, given with their papers; refuse what names nothing or has no effect."""
    options = {"--only": only, "--paper": papers, "--verdict": verdicts}
    for option in options if stored else ("--verdict",):
        if options[option] and not tables:
            told = "came without --markdown or --latex, whose rows it chooses"
            raise typer.BadParameter(told, param_hint=option)
    for text in only:
        if not any(text in id for id in known):
            raise typer.BadParameter(f"no claim's id contains {text!r}", param_hint="--only")
    option = "--paper"
    try:
        numbers = papers_named(papers, set(known.values()))
        option = "--verdict"
        choice = Choice(tuple(only), tuple(numbers), tuple(verdicts_named(verdicts)))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    if not any(choice.wants(id, paper) for id, paper in known.items()):
        raise typer.BadParameter("no claim of these papers has such an id", param_hint="--only")
    return choice


def require_folders(figures: Path | None, template: Path | None) -> None:
    """Refuse folders that cannot be written to, or a template's that is not empty, before anything is computed."""
    for option, folder in ((FIGURES, figures), (TEMPLATE, template)):
        if folder is not None and (told := _why_no_folder(folder, empty=option == TEMPLATE)):
            raise typer.BadParameter(told, param_hint=option)
    if figures and template and os.path.realpath(figures) == os.path.realpath(template):
        told = f"{template} is the target of {FIGURES} as well, a folder of its own was wanted"
        raise typer.BadParameter(told, param_hint=TEMPLATE)


def require_modules(targets: Mapping[str, Path | None]) -> None:
    """Refuse targets, by option, that need a library which is not installed, before anything is computed."""
    for option, target in targets.items():
        wanted = () if option == "--json" else ("matplotlib",) if option == FIGURES else ("jinja2",)
        absent = not_there((*wanted, "matplotlib") if option == TEMPLATE else wanted)
        if target is not None and absent:
            raise typer.BadParameter(str(missing("this", *absent)), param_hint=option)


def _why_no_folder(folder: Path, *, empty: bool) -> str:
    """Why files cannot be written into a folder, which may have to be made; or nothing."""
    if folder == STANDARD_OUTPUT:
        return "- is the standard output, a folder was wanted"
    place = Path(os.path.realpath(folder))
    try:
        if place.exists() and not place.is_dir():
            return f"{folder} is a file, a folder was wanted"
        if not place.is_dir() and not place.parent.is_dir():
            return f"the folder of {folder} does not exist"
        if empty and place.is_dir() and any(place.iterdir()):
            return f"{folder} is not empty, a new or an empty folder was wanted"
        tempfile.TemporaryFile(dir=place if place.is_dir() else place.parent).close()
    except OSError as error:
        return f"{folder} cannot be written: {error.strerror}"
    return ""


def write_folder(folder: Path, files: Callable[[], Mapping[str, str | bytes]]) -> bool:
    """Write files into a folder by their paths in it; say in a line what could not be, and return whether all were."""
    contents = files()
    try:
        for name in contents or {"": ""}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = error.strerror or os.strerror(errno.EIO)
        print(f"refattn: {folder} could not be written: {told}", file=sys.stderr)
        return False
    written = [write_one(folder / name, content) for name, content in contents.items()]
    return all(written)


def figure_files(document: Mapping[str, Any]) -> dict[str, str | bytes]:
    """Return the figures of a report as PDF and their numbers as CSV, by file name; say so if there are none."""
    from refattn.report.figures import figures
    from refattn.report.pictures import pdf

    drawn = figures(document["rows"])
    if not drawn:
        print("refattn: the rows of this report hold no curve: no figure was drawn", file=sys.stderr)
    return {f"{one.id}.{kind}": pdf(one) if kind == "pdf" else one.csv for one in drawn for kind in ("pdf", "csv")}
