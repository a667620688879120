"""What the pages are made of: formulas that can be set, the command line as its parser has it, commands that exist."""

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import refattn

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def extension(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "_extensions" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def formulas():
    return extension("formulas")


def spans():
    """Yield the code spans of the pages and of the docstrings."""
    for page in DOCS.rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        yield from (span.replace(r"\|", "|") for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text))
    for file in Path(refattn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield from re.findall(r"``(.+?)``", ast.get_docstring(node) or "", re.DOTALL)


@pytest.mark.slow
def test_every_formula_can_be_set(formulas):
    found = {" ".join(span.split()) for span in spans()}
    texts = [piece for span in found if formulas.is_formula(span) for piece in formulas.pieces(span)]
    assert len(texts) > 300
    for text in texts:
        tex = formulas.to_tex(text)
        assert tex.isascii(), text
        bare = re.sub(r"\\[{}]", "", tex)
        assert bare.count("{") == bare.count("}"), text


@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("A_ij² ‖Y‖_F", r"A_{ij}^{2} \|Y\|_{F}"),
        ("2⁻⁵³ √(log₂ N/N)", r"2^{-53} \sqrt{\log _{2} N/N}"),
        ("dX = A1ᵀ dU2", r"\mathrm{d}X = {A_{1}}^{\top } \mathrm{d}{U_{2}}"),
        ("{t : f(t) ≤ k}", r"\{t : f(t) \le  k\}"),
        ("g_seg(j)[r − j]", r"g_{\operatorname{seg}(j)}[r - j]"),
        ("b̃_i − log_sum_exp_i", r"\tilde{b}_{i} - \mathtt{log\_sum\_exp}_{i}"),
    ],
)
def test_the_notation_of_the_pages(formulas, text, tex):
    assert formulas.to_tex(text) == tex


@pytest.mark.parametrize("text", ["a ⌘ b", "x^{2", "√)"])
def test_what_is_no_formula_is_refused(formulas, text):
    with pytest.raises(ValueError, match=r"came|missing|root"):
        formulas.to_tex(text)


@pytest.fixture(scope="module")
def commands():
    """Every command of the command line by its words, as ``"refattn report"``."""
    pytest.importorskip("typer", reason="needs the extra 'report'")
    from typer.main import get_command

    from refattn.cli import app

    return dict(extension("commands").commands(get_command(app), "refattn"))


def test_the_page_of_the_command_line_has_every_command_and_option(commands):
    page = extension("commands").page()
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == list(commands)
    options = {name for command in commands.values() for one in command.params for name in one.opts}
    assert {"--quick", "--json"} <= options
    assert [name for name in options if name.startswith("--") and name not in page] == []


def test_the_cheat_sheet_s_commands_are_there_and_take_what_it_gives_them(commands):
    (lines,) = re.findall(r"```sh\n(.*?)```", (DOCS / "cheat-sheet.md").read_text(encoding="utf-8"), re.DOTALL)
    used = set()
    for line in lines.splitlines():
        words = shlex.split(line, comments=True)
        name = " ".join(words[:2])
        used.add(name)
        if "--help" in words:
            assert any(known.startswith(name) for known in commands), line
        else:
            commands[name].make_context(name, words[2:], resilient_parsing=False)  # exits where it does not parse
    assert {"refattn report", "refattn conform", "refattn decompose"} <= used


def test_the_installation_page_has_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    _, _, table = (DOCS / "install.md").read_text(encoding="utf-8").partition("| extra | for |")
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(extras)
