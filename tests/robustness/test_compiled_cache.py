"""Compiled loops kept on disk: the same bits, never a stale loop, and nothing that another user could have written."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest
from lengths import CAMPAIGN, long

import refattn
from refattn import _compiled_cache
from refattn._compiled_cache import CompiledCacheWarning

ROOT = Path(refattn.__file__).parents[1]
FIRST = """
import json, sys, warnings
import numpy as np
from refattn.sparsek import prefix_thresholds
z = np.random.default_rng(0).standard_normal((3, 200))
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    found = [prefix_thresholds(row, 7) for row in z]
from refattn.sparsek import prefix
loops = sys.modules["refattn.sparsek." + sys.argv[1]]
stats = [loop.stats for loop in vars(loops).values() if hasattr(loop, "stats")]
print(json.dumps({
    "bits": b"".join(row.tobytes() for row in found).hex(),
    "hits": sum(sum(one.cache_hits.values()) for one in stats),
    "compiled": sum(sum(one.cache_misses.values()) for one in stats),
    "warned": [[one.category.__name__, str(one.message)] for one in seen],
}))
"""
LOOPS = next(path.stem for path in (ROOT / "refattn" / "sparsek").glob("*.py") if "def _push(" in path.read_text())


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


def run_first(folder, package=ROOT, **environment):
    known = {**os.environ, "PYTHONPATH": str(package), "REFATTN_CACHE_DIR": str(folder), **environment}
    known = {name: value for name, value in known.items() if value is not None}
    command = [sys.executable, "-c", FIRST, LOOPS]
    return subprocess.run(command, env=known, cwd=package, capture_output=True, text=True, timeout=900)


def first(*arguments, **options):
    """Compute thresholds in a process of its own; return their bits and what was read, compiled and warned of."""
    done = run_first(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def right():
    """What is found without a cache."""
    return first("off")


@pytest.fixture(scope="module")
def filled(tmp_path_factory, right):
    """A folder that holds the loops of `FIRST`; tests copy it."""
    kept = tmp_path_factory.mktemp("filled") / "kept"
    found = first(kept)
    assert found["bits"] == right["bits"]
    assert found["compiled"] == right["compiled"] > 0
    return kept


def files(folder):
    return sorted(path for path in folder.glob("loops-*/*.loop"))


@pytest.mark.slow
def test_the_next_process_compiles_nothing_and_finds_the_same_bits(right, filled):
    found = first(filled)
    assert (found["bits"], found["compiled"], found["warned"]) == (right["bits"], 0, [])
    assert found["hits"] > 0


@pytest.mark.slow
def test_folders_and_files_are_the_users_alone_whatever_the_mask(tmp_path):
    old = os.umask(0)
    try:
        first(tmp_path / "new" / "kept")
    finally:
        os.umask(old)
    kept = tmp_path / "new" / "kept"
    assert {path.stat().st_mode & 0o777 for path in [kept, *kept.glob("loops-*")]} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in files(kept)} == {0o600}


@pytest.mark.slow
def test_a_helper_that_changes_is_compiled_anew_with_all_that_calls_it(right, filled, tmp_path):
    package = tmp_path / "installed"
    shutil.copytree(ROOT / "refattn", package / "refattn", ignore=shutil.ignore_patterns("__pycache__", "data"))
    kept = shutil.copytree(filled, tmp_path / "copy")
    same = first(kept, package=package)
    assert (same["bits"], same["compiled"]) == (right["bits"], 0), "a loop is known by what it is, not by where"

    source, helper = (package / "refattn" / "sparsek" / f"{name}.py" for name in (LOOPS, "another_loops"))
    text = source.read_text(encoding="utf-8")
    head, start = text[: text.index("@compiled")], text.index("@compiled\ndef _push(")
    end = text.index("@compiled", start + 1)
    body = text[start:end]
    helper.write_text(head + body, encoding="utf-8")  # one that is called moves to a file of its own
    callers = "from refattn.sparsek.another_loops import _push\n\n\n" + text[len(head) : start] + text[end:]
    source.write_text(head + callers, encoding="utf-8")
    moved = first(kept, package=package)
    assert (moved["bits"], moved["compiled"] > 0) == (right["bits"], True)
    assert first(kept, package=package)["compiled"] == 0

    assert body.count("heap[hole] = value") == 1
    helper.write_text(head + body.replace("heap[hole] = value", "heap[hole] = 1.5 * value"), encoding="utf-8")
    changed = first(kept, package=package)
    assert changed["bits"] != right["bits"], "the old helper's code was used"
    assert changed["bits"] == first("off", package=package)["bits"]
    helper.write_text(head + body, encoding="utf-8")
    again = first(kept, package=package)
    assert (again["bits"], again["compiled"]) == (right["bits"], 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NUMBA_OPT", "1"),
        pytest.param("NUMBA_CPU_NAME", "generic", marks=pytest.mark.long),
        pytest.param("NUMBA_BOUNDSCHECK", "1", marks=pytest.mark.long),
    ],
)
def test_another_processor_or_setting_of_the_compiler_has_loops_of_its_own(variable, value, filled, tmp_path):
    kept = shutil.copytree(filled, tmp_path / "copy")
    assert first(kept, **{variable: value})["compiled"] > 0
    assert len(list(kept.glob("loops-*"))) == 2
    assert first(kept, **{variable: value})["compiled"] == 0


@pytest.mark.parametrize(
    "fact",
    ["refattn._compiled.__version__", "numba.__version__", "llvmlite.__version__", "numpy.__version__", "sys.version"],
)
def test_another_version_has_loops_of_its_own(fact, monkeypatch):
    from numba.core.registry import cpu_target

    from refattn import _compiled

    codegen = cpu_target.target_context.codegen()
    before = _compiled._environment(codegen)
    monkeypatch.setattr(fact, "9.9")
    _compiled._digest.cache_clear()
    try:
        assert _compiled._environment(codegen) != before
    finally:
        monkeypatch.undo()
        _compiled._digest.cache_clear()
    assert _compiled._environment(codegen) == before


@pytest.mark.slow
def test_processes_that_start_at_once_with_nothing_kept_find_the_right_bits(folder, right):
    known = {**os.environ, "PYTHONPATH": str(ROOT), "REFATTN_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", FIRST, LOOPS]
    running = [
        subprocess.Popen(command, env=known, stdout=subprocess.PIPE, text=True) for _ in range(20 if CAMPAIGN else 4)
    ]
    assert {json.loads(one.communicate(timeout=900)[0])["bits"] for one in running} == {right["bits"]}
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]


SLOW = """
import os, time
replace = os.replace
def late(*arguments, **options):
    print("unfinished", flush=True)
    time.sleep(0.05)
    replace(*arguments, **options)
os.replace = late
"""


@pytest.mark.long
def test_a_process_killed_while_it_writes_leaves_what_works(folder, right):
    known = {**os.environ, "PYTHONPATH": str(ROOT), "REFATTN_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", SLOW + FIRST, LOOPS]
    attempts = 100 if CAMPAIGN else 3
    for attempt in range(attempts):
        running = subprocess.Popen(command, env=known, stdout=subprocess.PIPE, text=True)
        for _ in range(1 + attempt % 4):
            running.stdout.readline()
        time.sleep(0.001 * (attempt % 60))  # before, while and after a file takes its place
        running.kill()
        running.communicate()
        if attempt % 4 == 3:
            assert first(folder)["bits"] == right["bits"]
            shutil.rmtree(folder)
    assert first(folder)["bits"] == right["bits"]
    assert first(folder)["compiled"] == 0
    assert _compiled_cache.kept().damaged == 0


@pytest.mark.slow
@pytest.mark.parametrize("damages", [("one bit", "cut", "empty", "pickle"), ("writable", "link")], ids=" ".join)
def test_a_damaged_file_is_compiled_anew_in_silence_and_counted(damages, right, filled, tmp_path):
    """Every file is damaged, each in another way."""
    kept = shutil.copytree(filled, tmp_path / "copy")
    text = b"not what a pickle is"
    assert len(files(kept)) == right["compiled"] >= len(damages)
    for path, damage in zip(files(kept), itertools.cycle(damages)):
        content = path.read_bytes()
        wrong = bytearray(content)
        wrong[len(wrong) // 2] ^= 1
        whole = {"cut": content[:-1], "empty": b"", "one bit": bytes(wrong), "pickle": sha256(text).digest() + text}
        path.write_bytes(whole.get(damage, content))
        if damage == "writable":
            path.chmod(0o622)
        elif damage == "link":
            path.unlink()
            path.symlink_to(filled / path.relative_to(kept))
    found = first(kept)
    assert (found["bits"], found["warned"]) == (right["bits"], [])
    assert found["compiled"] == right["compiled"]
    assert first(kept)["compiled"] == 0
    assert (kept / "damaged").stat().st_size == right["compiled"]
    assert (filled / "damaged").exists() is False


def unusable(kind, kept):
    """Make a folder that must not be used."""
    if kind == "file":
        kept.write_text("in the way")
        return
    kept.mkdir()
    if kind == "another user's":
        os.chown(kept, 12345, 12345)
    elif kind == "inner":
        for inner in kept.parent.glob("copy/loops-*"):
            shutil.copytree(inner, kept / inner.name)
            os.chmod(kept / inner.name, 0o777)
    else:
        kept.chmod({"the group's": 0o770, "everybody's": 0o702}[kind])


KINDS = ["everybody's", *long("file", "the group's", "inner")]
if os.geteuid() == 0:  # who can give a folder away
    KINDS.append("another user's")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_others_can_write_to_is_an_error_if_named_and_else_not_used(kind, right, filled, tmp_path):
    shutil.copytree(filled, tmp_path / "copy")
    kept = tmp_path / "refattn"
    unusable(kind, kept)
    before = sorted(tmp_path.rglob("*"))
    done = run_first(kept)
    assert done.returncode != 0
    assert f"REFATTN_CACHE_DIR={kept} cannot keep compiled loops" in done.stderr.splitlines()[-1]
    found = first(None, REFATTN_CACHE_DIR=None, XDG_CACHE_HOME=str(tmp_path))
    assert (found["bits"], found["hits"], found["compiled"]) == (right["bits"], 0, right["compiled"])
    [[category, message]] = found["warned"]
    assert category == "CompiledCacheWarning"
    assert "REFATTN_CACHE_DIR names a folder, or is 'off'" in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_where_the_home_folder_cannot_be_written_to_every_process_compiles_and_says_so_once(right):
    found = first(None, REFATTN_CACHE_DIR=None, XDG_CACHE_HOME=None, HOME="/proc/no/home")
    assert (found["bits"], found["compiled"]) == (right["bits"], right["compiled"])
    assert [category for category, _ in found["warned"]] == ["CompiledCacheWarning"]


def test_no_home_folder_and_a_relative_one(monkeypatch, tmp_path):
    monkeypatch.delenv("REFATTN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _compiled_cache.folder() == tmp_path / ".cache" / "refattn"
    monkeypatch.setenv("REFATTN_CACHE_DIR", "~/loops")
    assert _compiled_cache.folder() == tmp_path / "loops"
    monkeypatch.delenv("REFATTN_CACHE_DIR")

    def none():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(FileNotFoundError, match="no home folder"):
        _compiled_cache.folder()


@pytest.mark.slow
def test_turned_off_nothing_is_kept_or_said(right, tmp_path):
    found = first("off", HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert (found["bits"], found["compiled"], found["warned"]) == (right["bits"], right["compiled"], [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_import_says_nothing_where_nothing_can_be_kept(tmp_path):
    known = {**os.environ, "REFATTN_CACHE_DIR": "/proc/no/folder"}
    script = f"import refattn.sparsek.{LOOPS}, refattn.convbasis, refattn.lowrank"
    subprocess.run([sys.executable, "-W", "error", "-c", script], env=known, check=True)


@pytest.fixture
def here(folder, monkeypatch):
    """The folder, in use in this process, which may warn again."""
    monkeypatch.setenv("REFATTN_CACHE_DIR", str(folder))
    monkeypatch.setattr(_compiled_cache, "_said", False)
    return folder


@pytest.mark.parametrize("call", ["open", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_is_said_once_and_leaves_nothing_behind(call, number, here, monkeypatch):
    _compiled_cache.write("e", "whole", b"content")
    right = getattr(os, call)

    def full(path, *arguments, **options):
        if str(path).endswith(".tmp"):
            raise OSError(number, os.strerror(number))
        return right(path, *arguments, **options)

    monkeypatch.setattr(os, call, full)
    with pytest.warns(CompiledCacheWarning):
        _compiled_cache.write("e", "lost", b"content")
    _compiled_cache.write("e", "lost", b"content")  # in silence: a warning would be an error here
    monkeypatch.undo()
    assert [path.name for path in here.rglob("*") if path.is_file()] == ["whole.loop"]


def test_what_was_used_least_recently_goes_first(here):
    for age, name in enumerate(["new", "older", "oldest"]):
        _compiled_cache.write(f"e{age}", name, bytes(1000))
        os.utime(here / f"loops-e{age}" / f"{name}.loop", (time.time() - age * 1e6,) * 2)
    assert _compiled_cache.read("e2", "oldest") == bytes(1000)  # and is now the one used last
    assert _compiled_cache.kept()[1:] == (3, 3, 3 * 1032, 0)
    _compiled_cache.trim(2100)
    assert {path.stem for path in files(here)} == {"new", "oldest"}
    assert not (here / "loops-e1").exists()
    _compiled_cache.trim(0)
    assert list(here.iterdir()) == []
    assert _compiled_cache.read("e2", "oldest") is None
    _compiled_cache.write("e2", "oldest", b"again")
    assert _compiled_cache.read("e2", "oldest") == b"again"


def test_unfinished_files_of_killed_processes_go_after_an_hour(here):
    _compiled_cache.write("e", "whole", b"content")
    for age, name in ((0, "now.tmp"), (4000, "abandoned.tmp")):
        (here / "loops-e" / name).write_bytes(b"half")
        os.utime(here / "loops-e" / name, (time.time() - age,) * 2)
    _compiled_cache.trim()
    assert {path.name for path in (here / "loops-e").iterdir()} == {"whole.loop", "now.tmp"}


def test_clear_removes_what_is_ours_and_nothing_else(here):
    here.mkdir(mode=0o700)
    for name in ("thesis.txt", "loops-notes.loop", "loops-e/notes.txt"):
        (here / name).parent.mkdir(exist_ok=True, mode=0o700)
        (here / name).write_text("mine")
    _compiled_cache.write("e", "one", b"content")
    _compiled_cache.write("f", "two", b"content")
    _compiled_cache.write("f", "three", b"content")
    _compiled_cache.discard("f", "three")
    assert _compiled_cache.kept().damaged == 1
    assert _compiled_cache.clear() == 2
    left = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
    assert left == {"thesis.txt", "loops-notes.loop", "loops-e/notes.txt"}


def test_clearing_while_another_writes_disturbs_neither(here):
    done = threading.Event()

    def clear():
        while not done.is_set():
            _compiled_cache.clear()

    clearing = threading.Thread(target=clear)
    clearing.start()
    try:
        for number in range(300):
            _compiled_cache.write("e", "one", b"content")
            assert _compiled_cache.read("e", "one") in (b"content", None), number
    finally:
        done.set()
        clearing.join()
    assert _compiled_cache.kept().damaged == 0


def test_every_loop_of_the_package_can_be_kept():
    import importlib
    import pkgutil

    import refattn
    from refattn import _compiled

    modules = [name for _, name, _ in pkgutil.walk_packages(refattn.__path__, "refattn.")]
    named = [name for name in modules if name.rpartition(".")[2].strip("_").endswith(("kernels", "loops"))]
    loops = [
        loop
        for module in map(importlib.import_module, named)
        for loop in vars(module).values()
        if isinstance(getattr(loop, "_cache", None), _compiled._OnDisk)
    ]
    assert len(loops) > 60
    assert all(_compiled._reached(loop) for loop in loops)


def changeable(source, **given):
    """A compiled function from source, in a module of its own that other processes could import."""
    import types

    from refattn._compiled import compiled

    name = "changeable_loops"
    module = sys.modules[name] = types.ModuleType(name)
    module.__dict__.update(given, compiled=compiled)
    exec(source, module.__dict__)
    return module


FUNCTIONS = {
    "its code": ("def f(x):\n    return x + 1.0", "def f(x):\n    return x - 1.0", {}, {}),
    "a constant": ("def f(x):\n    return x + 1.0", "def f(x):\n    return x + 2.0", {}, {}),
    "the sign of zero": ("def f(x):\n    return x * 0.0", "def f(x):\n    return x * -0.0", {}, {}),
    "a constant's type": ("def f(x):\n    return x, 1", "def f(x):\n    return x, 1.0", {}, {}),
    "a global": ("def f(x):\n    return x + G", "def f(x):\n    return x + G", {"G": 1.0}, {"G": 2.0}),
    "a global in a tuple": ("def f(x):\n    return G[0]", "def f(x):\n    return G[0]", {"G": (1, 2)}, {"G": (3, 2)}),
    "a default": ("def f(x, y=1.0):\n    return x + y", "def f(x, y=2.0):\n    return x + y", {}, {}),
    "a function called": (
        "@compiled\ndef g(x):\n    return x\n\ndef f(x):\n    return g(x)",
        "@compiled\ndef g(x):\n    return -x\n\ndef f(x):\n    return g(x)",
        {},
        {},
    ),
    "a function called by one called": (
        "@compiled\ndef h(x):\n    return x\n@compiled\ndef g(x):\n    return h(x)\n\ndef f(x):\n    return g(x)",
        "@compiled\ndef h(x):\n    return -x\n@compiled\ndef g(x):\n    return h(x)\n\ndef f(x):\n    return g(x)",
        {},
        {},
    ),
}


@pytest.mark.parametrize("what", FUNCTIONS)
def test_a_loop_is_known_by(what, here):
    one, other, globals_one, globals_other = FUNCTIONS[what]
    names = []
    try:
        for source, given in ((one, globals_one), (other, globals_other), (one, globals_one)):
            place = source.rindex("def f")
            f = changeable(source[:place] + "@compiled\n" + source[place:], **given).f
            f(3.0)
            names.append(f._cache._name(f.signatures[0]))
    finally:
        del sys.modules["changeable_loops"]
    assert names[0] != names[1]
    assert names[0] == names[2]
    assert None not in names


def test_a_global_that_changes_after_a_loop_was_compiled_is_kept_out(here):
    """Numba goes on with the old value in what it has compiled, and takes the new one in what comes."""
    try:
        module = changeable("@compiled\ndef g(x):\n    return x + G\n@compiled\ndef f(x):\n    return g(x)", G=1.0)
        assert module.g(1.0) == 2.0
        module.G = 5.0
        assert module.f(1.0) == 2.0, "Numba has changed"
        assert [path.name.partition("-")[0] for path in files(here)] == ["changeable_loops.g"]
    finally:
        del sys.modules["changeable_loops"]


def test_a_function_that_another_process_could_not_find_is_not_kept(here):
    from refattn._compiled import compiled

    symbols = set()
    for number in (1.0, 2.0):
        namespace = {"__name__": "refattn.sparsek", "compiled": compiled}
        exec(f"@compiled\ndef f(x):\n    return x + {number}", namespace)
        f = namespace["f"]
        assert f(1.0) == 1.0 + number
        symbols.add(f.overloads[f.signatures[0]].fndesc.qualname)
    assert files(here) == []
    assert len(symbols) == 2, "Numba's symbols of a copy are like those of what it is a copy of"
    assert not any(symbol.endswith("f") for symbol in symbols)
