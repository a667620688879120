"""What every command shares: each option counts or is refused, the environment is looked at first, and the streams.

An option that takes one value and is given twice would silently lose the first one.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from refattn.cli._streams import INTERRUPTED, own_streams

VARIABLES = ("REFATTN_CACHE_DIR", "REFATTN_FFT", "REFATTN_NUM_THREADS")
_REPORTS_ON_THE_CACHE = ("cache", "warmup", "versions")


class Command(TyperCommand):
    """A command that refuses an option of one value that is given twice; its epilog is lines that can be typed."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, and the examples below it as they are."""
        examples, self.epilog = self.epilog, None
        try:
            super().format_help(ctx, formatter)
        finally:
            self.epilog = examples
        if examples:
            formatter.write("Examples:\n\n" + "".join(f"  {line}\n" for line in examples.splitlines()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, after a look at how often each option stands among them."""
        order: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option in {id(one): one for one in order}.values():
            single = not getattr(option, "multiple", False) and not getattr(option, "is_flag", False)
            if single and option.param_type_name == "option" and order.count(option) > 1:
                raise typer.BadParameter(f"came {order.count(option)} times, once was wanted", ctx=ctx, param=option)
        return super().parse_args(ctx, args)


class Group(TyperGroup):
    """A group of commands; the outermost one checks the environment, and owns the streams."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run a command line."""
        with own_streams():
            return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was parsed."""
        if ctx.parent is not None:
            return super().invoke(ctx)
        try:
            named = [*getattr(ctx, "_protected_args", ()), *ctx.args]
            if not {"--help", "-h"} & {*named}:
                require_environment(cache=bool(named) and named[0] not in _REPORTS_ON_THE_CACHE)
        except (ValueError, OSError, ImportError) as error:
            print(f"refattn: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("refattn: stopped", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None


def command_line() -> str:
    """Return the command as it was typed, but for the folders that its files are in.

    >>> sys.argv, before = ["/home/me/bin/refattn", "report", "--json", "/home/me/r.json"], sys.argv
    >>> command_line()
    'refattn report --json r.json'
    >>> sys.argv = before
    """
    return shlex.join(["refattn", *(re.sub(r"^(--?[\w-]+=)?.*/(?=.)", r"\1", word) for word in sys.argv[1:])])


def require_environment(*, cache: bool) -> None:
    """Raise an error that names a variable of the environment that is not what it can be, or close to one that is."""
    from refattn import _compiled_cache, _fft, _threads

    for name in sorted(os.environ):
        near = difflib.get_close_matches(name, VARIABLES, 1, 0.85) if name.startswith("REFATTN_") else []
        if near and name not in VARIABLES:
            raise ValueError(f"{name}: no such variable is read, {near[0]} was wanted")
    _threads.thread_count()
    _fft.backend()
    if cache:
        _compiled_cache.require_folder()
