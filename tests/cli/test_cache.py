"""``refattn cache`` and ``refattn warmup``: what is kept, removed and compiled ahead."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("typer", reason="needs the extra 'report'")

from typer.testing import CliRunner

from refattn import _compiled_cache, cli


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command line on a folder of its own."""
    monkeypatch.setenv("REFATTN_CACHE_DIR", str(tmp_path / "kept"))

    def run(*arguments, status=0):
        result = CliRunner().invoke(cli.app, list(arguments))
        assert result.exit_code == status, result.output
        return result

    return run


def test_shown_and_cleared(run, tmp_path):
    for name in ("one", "two", "three"):
        _compiled_cache.write("e", name, bytes(1 << 20))
    _compiled_cache.discard("e", "two")
    text = " ".join(run("cache").output.split())
    assert f"folder {tmp_path / 'kept'} loops 2, of 1 environments size 2.0 MiB, kept below 256 MiB" in text
    assert "found damaged 1, compiled anew" in text
    assert run("cache", "clear").output == "2 loops removed\n"
    assert "loops 0, of 0 environments" in " ".join(run("cache").output.split())
    assert list((tmp_path / "kept").iterdir()) == []


def test_the_versions_tell_where_and_how_large(run, tmp_path):
    _compiled_cache.write("e", "one", bytes(1000))
    facts = json.loads(run("versions", "--json").output)
    assert facts["compiled_loops"] == {"folder": str(tmp_path / "kept"), "loops": 1, "bytes": 1032}


def test_turned_off(run, monkeypatch):
    monkeypatch.setenv("REFATTN_CACHE_DIR", "off")
    assert "none: REFATTN_CACHE_DIR is 'off'" in run("cache").output
    assert run("cache", "clear").output == "0 loops removed\n"
    assert json.loads(run("versions", "--json").output)["compiled_loops"]["folder"] == "off"


FIRST_ASKED = """
import json, sys
sys.path.insert(0, sys.argv[2])
if sys.argv[1] == "warmup":
    from refattn.cli import cache
    for _, operation in cache._operations():
        operation()
else:
    import operations
    operations.digests()
asked = set()
for module in [module for name, module in sys.modules.items() if name.startswith("refattn")]:
    for name, loop in vars(module).items():
        if hasattr(loop, "py_func"):
            asked |= {(f"{loop.py_func.__module__}.{name}", str(one)) for one in loop.signatures}
print(json.dumps(sorted(asked)))
"""


@pytest.mark.long
def test_a_warmup_compiles_whatever_an_operation_compiles(pytestconfig):
    """Each in a process of its own: what the operations ask for, the warmup has asked for."""
    robustness = str(pytestconfig.rootpath / "tests" / "robustness")
    command = [sys.executable, "-c", FIRST_ASKED]
    warmup, needed = (
        {tuple(one) for one in json.loads(subprocess.check_output([*command, who, robustness], text=True))}
        for who in ("warmup", "operations")
    )
    assert len(needed) > 60
    assert needed - warmup == set()


@pytest.mark.slow
def test_a_warmup_says_what_it_has_kept(run):
    program = (
        "from refattn import cli; from refattn.sparsek import prefix_thresholds; "
        "cli.cache._operations = lambda: [('one', lambda: prefix_thresholds([1.0, 2.0], 1))]; cli.main()"
    )
    said = subprocess.check_output([sys.executable, "-c", program, "warmup"], text=True)
    assert said.startswith(f"{_compiled_cache.kept().loops} loops in {os.environ['REFATTN_CACHE_DIR']}, ")
    assert _compiled_cache.kept().loops > 0


@pytest.mark.slow
def test_a_folder_that_cannot_be_used_is_told_in_a_line(tmp_path):
    (tmp_path / "kept").touch()
    command = [sys.executable, "-c", "from refattn.cli import main; main()", "warmup"]
    known = {**os.environ, "REFATTN_CACHE_DIR": str(tmp_path / "kept")}
    done = subprocess.run(command, env=known, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"refattn: REFATTN_CACHE_DIR={tmp_path / 'kept'} cannot keep")
