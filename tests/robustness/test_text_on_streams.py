"""Text of the user's is shown as it is, and a stream that cannot take it never looks like a claim that fails."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")

from typer.testing import CliRunner

import refattn.report.claims
from refattn import cli
from refattn.cli._streams import plain
from refattn.report import Claim, Measurement, run_claims, to_document
from refattn.report.page import render

COMMAND = "from refattn.cli import main; main()"
# a report of one claim, which holds or not
REPORT = """
import sys
import refattn.report.claims
from refattn.cli import main
from refattn.report import Claim, Measurement
found = Measurement("none", float(sys.argv.pop(1)), at_most=1.0)
says = "\\u2016x\\u2016 \\u2264 1 " + "long " * 20000
refattn.report.claims.ALL = (Claim("a.b", "ours", says, "looking", lambda quick: found),)
main()
"""
# every command in a child that ends as an interpreter ends: what takes a second, to import everything, is done once
FORKED = """
import json, os, sys
import jinja2, pyfftw  # what commands import when they run
import refattn.decomposition, refattn.report.claims, refattn.report.page
import refattn.cli
folder, stream, commands = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
statuses = []
for number, arguments in enumerate(commands):
    child = os.fork()
    if child == 0:
        break
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    print(json.dumps(statuses), flush=True)
    os._exit(0)
def connect(number, name, flags=os.O_WRONLY | os.O_CREAT):
    opened = os.open(name, flags, 0o600)
    os.dup2(opened, number)
    os.close(opened)
connect(2, f"{folder}/{number}.err")
if stream == "read":
    connect(1, f"{folder}/{number}.out")
elif stream == "full":
    connect(1, "/dev/full", os.O_WRONLY)
elif stream == "pipe":
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(reading)
    os.close(writing)
else:
    os.close(1)
    sys.stdout = None
sys.argv[1:] = arguments
"""
NAMES = ["run$1_$2.npz", "a_b^{c.npz", "[red]x[bold].npz", "%s {0} {.npz", ":warning: é≤.npz", "<b>&amp;.npz"]


def save(folder, name="one.npz"):
    q, k, v = np.random.default_rng(0).standard_normal((3, 16, 4))
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        np.savez(file, q=q, k=k, v=v)
    return path


def run(*arguments, program=COMMAND, flags=(), **options):
    """Run the command line in a process of its own."""
    known = {**os.environ, **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, *flags, "-c", program, *arguments], env=known, **{"capture_output": True, **options}
    )


def run_each(commands, folder, stream="read", program=REPORT, **options):
    """Run commands in processes of their own; standard output is read, full, a pipe that nobody reads, or closed."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    if stream == "full" and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = run(str(folder), stream, json.dumps(commands), program=FORKED + program, **options)
    assert done.returncode == 0, done.stderr
    for number, status in enumerate(json.loads(done.stdout)):
        said = {name: (folder / f"{number}.{name}") for name in ("out", "err")}
        text = {name: path.read_bytes() if path.exists() else b"" for name, path in said.items()}
        yield subprocess.CompletedProcess(commands[number], status, text["out"], text["err"])


# --- text of the user's ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_files_name_is_no_markup_no_mathematics_and_no_format(name, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="needs the extra 'report'")
    monkeypatch.chdir(tmp_path)
    save(tmp_path, name)
    result = CliRunner().invoke(cli.app, ["decompose", name, "--png", "p$_$.png", "--json", "[j].json"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "[j].json").read_text(encoding="utf-8"))["file"] == name
    assert (tmp_path / "p$_$.png").stat().st_size > 1000
    os.remove(name)
    missing = CliRunner().invoke(cli.app, ["decompose", name])
    assert missing.exit_code == 2
    assert f"refattn: {name}: No such file" in missing.output


@pytest.mark.slow
def test_a_files_name_that_is_no_text_is_written_and_shown_by_its_number(tmp_path):
    path = save(tmp_path, "bad\udcff.npz")
    done = run("decompose", path, "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["file"] == "bad\udcff.npz"
    done = run("decompose", f"{path}x")
    assert done.returncode == 2
    assert b"bad\\udcff.npzx: No such file" in done.stderr


KERNEL = """
def attention(q, k, v, *, causal, scale):
    raise ValueError("[/bold] $x_1$ {0} %s [red] :warning: \\x1b")
attention.__qualname__ = "ker[nel]_{0}"
"""


def test_a_kernels_name_and_what_it_raises_are_shown_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "bracketed.py").write_text(KERNEL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "bracketed", raising=False)
    result = CliRunner().invoke(
        cli.app, ["conform", "bracketed:attention", "--op", "dense", "--only", "n = 16"], env={"COLUMNS": "200"}
    )
    assert result.exit_code == 1
    assert "ker[nel]_{0} as 'dense'" in result.output
    assert "raised ValueError: [/bold] $x_1$ {0} %s [red] :warning:" in result.output


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", "a & b < c", "[bold]{{ 1 }}", "{% raw %} \" ' $x$"])
def test_text_of_a_claim_is_shown_on_the_page_and_in_the_terminal(text, monkeypatch):
    claim = Claim("a.b", "ours", text, text, lambda quick: Measurement(text, 0.5, at_most=1.0, detail={text: text}))
    page = render(to_document(run_claims([claim], quick=True)))
    assert "<script>alert" not in page
    assert page.count("<script>") == 1
    monkeypatch.setattr(refattn.report.claims, "ALL", (claim,))
    result = CliRunner().invoke(cli.app, ["report", "--verbose"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert result.output.count(text) >= 3


# --- streams ---------------------------------------------------------------------------------------------------------

ENCODINGS = [
    pytest.param({"PYTHONIOENCODING": "latin-1"}, "latin-1", id="latin-1"),
    pytest.param({"PYTHONIOENCODING": "ascii"}, "ascii", id="ascii"),
    pytest.param({"PYTHONIOENCODING": "cp1252"}, "cp1252", id="cp1252"),
    pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "ascii", id="C"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("environment", "encoding"), ENCODINGS)
def test_output_degrades_to_what_the_stream_holds(environment, encoding, tmp_path):
    commands = [("0.5", "report", "--json", str(tmp_path / "r.json")), ("2.0", "report")]
    holds, fails = run_each(commands, tmp_path, env=environment)
    assert holds.returncode == 0, holds.stderr
    assert "||x|| <= 1" in holds.stdout.decode(encoding)
    assert "‖x‖ ≤ 1" in (tmp_path / "r.json").read_text(encoding="utf-8")
    assert fails.returncode == 1


@pytest.mark.slow
def test_help_and_errors_degrade_as_well(tmp_path):
    commands = [("decompose", "--help"), ("decompose", str(tmp_path / "é≤.npz")), ("decompose",)]
    shown, missing, wrong = run_each(
        commands, tmp_path, program="refattn.cli.main()", env={"PYTHONIOENCODING": "ascii"}
    )
    assert b"(..., n, d)" in shown.stdout
    assert missing.returncode == 2
    assert b"\\xe9" in missing.stderr
    assert b".npz: No such file" in missing.stderr
    assert wrong.returncode == 2


def test_every_character_has_a_plain_form():
    text = "".join(map(chr, [*range(32, 0x2FFF), 0xDCFF, 0x1F600]))
    assert plain(text, "ascii").isascii()
    assert plain(text[:96], "latin-1") == text[:96]
    assert plain("│┃─━╭┳ ‖Y − Ỹ‖ ≤ ε δ Σ x² ₁ …", "ascii") == "||--++ ||Y - Y~|| <= epsilon delta sum  x^2 _1 ..."


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["full", "pipe", "closed"])
def test_an_output_error_has_a_status_of_its_own(stream, tmp_path):
    programs = [("versions",), ("report",), ("decompose", save(tmp_path)), ("--help",), ("report", "--schema")]
    for done in run_each([("0.5", *arguments) for arguments in programs], tmp_path, stream):
        assert done.returncode == 3, done
        assert b"Traceback" not in done.stderr
        assert b"Exception" not in done.stderr
        assert (b"could not be written" in done.stderr) == (stream != "pipe"), done


HOLDS_AND_FAILS = {"0.5": 0, "2.0": 1}
"""What is measured, and the status."""


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_leaves_the_files_and_the_verdict(tmp_path):
    files = {measured: [tmp_path / f"{measured}.{kind}" for kind in ("json", "html")] for measured in HOLDS_AND_FAILS}
    commands = [(x, "report", "--json", str(files[x][0]), "--html", str(files[x][1])) for x in HOLDS_AND_FAILS]
    for (measured, status), done in zip(HOLDS_AND_FAILS.items(), run_each(commands, tmp_path, "pipe"), strict=True):
        assert done.returncode == status, done.stderr
        rows = json.loads(files[measured][0].read_text(encoding="utf-8"))["rows"]
        assert rows[0]["measured"] == float(measured)
        assert files[measured][1].stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_file_on_a_full_disk_has_that_status_and_the_other_file_is_written(tmp_path):
    pages = {measured: tmp_path / f"{measured}.html" for measured in HOLDS_AND_FAILS}
    commands = [(x, "report", "--json", "/dev/full", "--html", str(page)) for x, page in pages.items()]
    for page, done in zip(pages.values(), run_each(commands, tmp_path), strict=True):
        assert done.returncode == 3
        assert b"refattn: /dev/full could not be written: No space left" in done.stderr
        assert page.exists()


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="needs /dev/stdout")
def test_the_standard_output_can_be_a_target_by_its_path():
    done = run("0.5", "report", "--json", "/dev/stdout", program=REPORT)
    assert done.returncode == 0, done.stderr
    whole = done.stdout.decode("utf-8")
    assert json.loads(whole[whole.index("{") :])["schema"] == "refattn-report/2"


@pytest.mark.slow
def test_the_standard_output_can_be_a_target(tmp_path):
    path, here = save(tmp_path), tmp_path / "here"
    here.mkdir()
    commands = [("0.5", "report", "--json", "-"), ("0.5", "decompose", path, "--json", "-")]
    report, decomposed = run_each(commands, tmp_path, cwd=here)
    assert report.returncode == 0, report.stderr
    assert report.stdout.startswith(b"{")
    assert json.loads(report.stdout)["schema"] == "refattn-report/2"
    assert "1 claim: 1 holds" in report.stderr.decode("utf-8")
    assert list(here.iterdir()) == []
    assert json.loads(decomposed.stdout)["file"] == "one.npz"


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "--html", "."),
        ("report", "--json", ""),
        ("report", "--json", "no/such/folder/r.json"),
        ("report", "--json", "same", "--html", "same"),
        ("report", "--json", "-", "--html", "-"),
        ("report", "--json", "r" * 300),
        ("decompose", "one.npz", "--json", "one.npz"),
        ("decompose", "one.npz", "--json", "./one.npz"),
        ("decompose", "one.npz", "--png", "-"),
        ("decompose", "one.npz", "--png", "."),
        ("conform", "refattn:dense_attention", "--op", "dense", "--json", "."),
    ],
    ids=lambda arguments: " ".join(arguments)[:50],
)
def test_a_target_that_cannot_be_written_is_refused_before_anything_runs(arguments, tmp_path, monkeypatch):
    def must_not_run(quick):
        raise AssertionError("it ran")

    monkeypatch.chdir(tmp_path)
    save(tmp_path)
    before = (tmp_path / "one.npz").read_bytes()
    claim = Claim("a.b", "ours", "x", "looking", must_not_run)
    monkeypatch.setattr(refattn.report.claims, "ALL", (claim,))
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == 2, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["one.npz"]
    assert (tmp_path / "one.npz").read_bytes() == before


HELP = """
from typer.testing import CliRunner
from refattn import cli
for command in ("report", "experiment", "decompose", "conform", "versions", "warmup", "vectors verify", "cache clear"):
    print(CliRunner().invoke(cli.app, [*command.split(), "--help"]).output)
"""


@pytest.mark.slow
def test_without_docstrings_the_commands_keep_their_help():
    with_them, without = (run(program=HELP, flags=flags).stdout for flags in ((), ("-OO",)))
    assert with_them == without
    assert len(without) > 4000
