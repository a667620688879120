"""The page of the command line, in Markdown, from the parser that reads it: it cannot promise what is not there."""

import re

INTRODUCTION = """\
# Command line

Needs the extra `report` ([installation](../../install.md)). This page is made from the parser; `--help` of a command
says the same.
"""


def page():
    """Return the whole page: every command with its usage, what it does, and its arguments and options."""
    from typer.main import get_command

    from refattn.cli import app

    sections = [section(name, command) for name, command in commands(get_command(app), "refattn")]
    return "\n".join([INTRODUCTION, *sections])


def commands(command, name):
    """Yield (name, command) for every command that does something, those of groups by both names."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
    for word, one in (below or {}).items():
        if not getattr(one, "hidden", False):
            yield from commands(one, f"{name} {word}")


def section(name, command):
    """Return a command's part of the page."""
    context = command.make_context(name, [], resilient_parsing=True)
    records = [one.get_help_record(context) for one in command.get_params(context)]
    rows = [f"| `{left}` | {plain(right)} |" for left, right in filter(None, records)]
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    examples = getattr(command, "epilog", None)
    parts = [
        f"## {name}",
        f"```text\n{usage}\n```",
        prose(command.help or command.short_help or ""),
        f"```text\n{examples.strip()}\n```" if examples else "",
        "\n".join(["| argument | meaning |", "|---|---|", *rows]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def prose(text):
    r"""Return a help's paragraphs as Markdown; what is marked as laid out, or stands indented, as it was typed.

    >>> print(prose("Runs *all*.\n\n    refattn report"))
    Runs \*all\*.
    <BLANKLINE>
    ```text
    refattn report
    ```
    """
    found = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line for line in part.splitlines() if line.strip("\b ")]
        if "\b" in part or (lines and all(line.startswith("  ") for line in lines)):
            least = min(len(line) - len(line.lstrip()) for line in lines)
            found.append("\n".join(["```text", *(line[least:].strip("\b") for line in lines), "```"]))
        else:
            found.append(plain(" ".join(part.split())))
    return "\n\n".join(found)


def plain(text):
    r"""Return a text with what Markdown would read as markup marked as text, and options as code.

    >>> print(plain("--a-b's [default: 0] *b* <c> | `d --e`"))
    `--a-b`'s \[default: 0\] \*b\* \<c\> \| `d --e`
    """

    def marked(found):
        code, sign, option = found.groups()
        return code or (f"\\{sign}" if sign else f"`{option}`")

    return re.sub(r"(`[^`]*`)|([\[\]*_<>|$])|(?<![\w-])(--\w[\w-]*)", marked, text)
