"""The walk through a page notices a step that fails and an output that does not come."""

import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "five-minutes.md"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("walk", ROOT / ".ci" / "walk.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = """Save as `word.txt`:

```python
hello
```

```sh
cat word.txt
echo and more
```

```text
hel…
and more
```
"""


def test_a_page_that_keeps_its_word_passes(tool, tmp_path):
    assert tool.walk(GOOD, [], tmp_path) == []


@pytest.mark.parametrize(
    ("part", "replacement", "failure"),
    [
        pytest.param("cat word.txt", "cat other.txt", "status 1", id="a command that fails"),
        pytest.param("cat word.txt", "cat other.txt\ntrue", "status 1", id="a failure before the last line"),
        pytest.param("```text\nhel", "```text\nhal", "the page promises", id="another output"),
        pytest.param("`word.txt`:", "`other.txt`:", "status 1", id="another file"),
    ],
)
def test_a_page_that_breaks_its_word_fails(tool, tmp_path, part, replacement, failure):
    assert part in GOOD
    failures = tool.walk(GOOD.replace(part, replacement), [], tmp_path)
    assert any(failure in line for line in failures), failures


def test_commands_are_left_out_with_their_output(tool, tmp_path):
    assert tool.walk(GOOD.replace("hel…", "never"), ["word.txt"], tmp_path) == []


def test_the_walk_installs_as_the_readme_says():
    (readme,) = re.findall(r"<!-- report-command -->\n```sh\n(.*?)\n```", (ROOT / "README.md").read_text("utf-8"), re.S)
    install, _, _ = readme.partition(" && ")
    assert f"```sh\n{install}\n```" in PAGE.read_text("utf-8")


@pytest.mark.long
def test_the_c_function_of_the_page_on_kernels_compiles_and_conforms(tool, tmp_path, monkeypatch):
    pytest.importorskip("typer", reason="needs the extra 'report'")
    if shutil.which("cc") is None:
        pytest.skip("needs cc, a C compiler")
    page = (ROOT / "docs" / "how-to" / "check-your-kernel.md").read_text("utf-8")
    (section,) = re.findall(r"^## A C function\n.*?(?=^## )", page, re.DOTALL | re.MULTILINE)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("refattn", "-m refattn"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    folder = tmp_path / "walk"
    folder.mkdir()
    assert tool.walk(section, [], folder) == []
    assert {file.name for file in folder.iterdir()} >= {"attention32.so", "attention64.so"}
