#!/usr/bin/env python3
"""Walk a page of the documentation as its reader would: save what it says to save, run what it says to run.

    python .ci/walk.py docs/tutorials/five-minutes.md [--without TEXT …] [--folder NEW]

"Save as `NAME`:" before a block of code writes that file. A block of ``sh`` runs in bash and stops at its first
failure; a block of ``text`` after it is a part of the output that has to come, in which "…" stands for anything.
Commands that hold one of the TEXTs are left out with their output: an installation, say. Everything happens in an empty
folder, which is removed, or in a NEW one, which stays. Only the standard library is needed, since the page is walked
where nothing but the package is installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(r"(?:Save as `(?P<name>[\w.]+)`[^\n]*:\n\n)?```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL)


def walk(page: str, without: list[str], folder: Path) -> list[str]:
    """Return what went otherwise than the page says, one line for each step that did."""
    failures, output = [], None
    for block in BLOCK.finditer(page):
        name, kind, body = block["name"], block["kind"], block["body"]
        if name:
            (folder / name).write_text(body, encoding="utf-8")
        elif kind == "sh":
            output = None if any(text in body for text in without) else run(body, folder, failures)
        elif kind == "text" and output is not None and not comes(body, output):
            failures.append(f"the page promises\n{body}\nand this came\n{output}")
    return failures


def run(commands: str, folder: Path, failures: list[str]) -> str:
    """Run commands and return their output; a failure is noted."""
    begun = time.monotonic()
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(f"{time.monotonic() - begun:6.1f} s  {commands.strip()}", flush=True)
    if done.returncode:
        failures.append(f"status {done.returncode} from\n{commands}\n{done.stdout}")
    return done.stdout


def comes(promised: str, output: str) -> bool:
    """Whether the lines promised come in the output, one after the other; "…" stands for any text."""
    pieces = (re.escape(piece.strip()) for piece in promised.split("…"))
    return re.search(".*?".join(pieces), output, re.DOTALL) is not None


def main() -> int:
    """Walk the page named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--without", action="append", default=[], metavar="TEXT")
    parser.add_argument("--folder", type=Path, metavar="NEW")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        folder = options.folder or Path(passing)
        folder.mkdir(exist_ok=options.folder is None)
        failures = walk(options.page.read_text(encoding="utf-8"), options.without, folder)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
