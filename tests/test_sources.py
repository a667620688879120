"""Which sources ran: the commit of a checkout, whether files differ from it, and a digest that follows the contents."""

import json
import shutil
import subprocess
import sys

import pytest

from refattn import _sources


@pytest.fixture
def copied(tmp_path):
    """The package in a folder of its own, and git there."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    shutil.copytree(_sources.PACKAGE, tmp_path / "refattn", ignore=shutil.ignore_patterns("__pycache__"))

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    return tmp_path, git


def sources_of(folder):
    program = "from refattn._sources import sources; import json; print(json.dumps(sources()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_a_checkout_a_change_and_no_checkout(copied, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    folder, git = copied
    plain = sources_of(folder)
    assert plain == {"commit": None, "changed": None, "digest": _sources.sources()["digest"]}
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "all")
    assert sources_of(folder) == {"commit": git("rev-parse", "HEAD"), "changed": False, "digest": plain["digest"]}
    with (folder / "refattn" / "masks.py").open("a") as file:
        file.write("# a change\n")
    changed = sources_of(folder)
    assert changed["changed"] is True
    assert changed["digest"] != plain["digest"]


def test_a_package_inside_somebody_elses_repository_has_no_commit(copied, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    folder, git = copied
    (folder / "other").write_text("x")
    git("init", "-q")
    git("add", "other")
    git("commit", "-qm", "theirs")
    assert sources_of(folder)["commit"] is None
