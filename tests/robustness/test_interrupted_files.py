"""Writers that are killed, disks that are full or may not be written to: old file or new, one line, nothing left."""

import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lengths import CAMPAIGN

from refattn import SparseKCache, _fft
from refattn._npz import read_arrays, write_arrays

LOOP = """
import json, sys
from pathlib import Path
import numpy as np
from refattn import SparseKCache, _fft
from refattn._files import write_whole
kind, path = sys.argv[1], Path(sys.argv[2])
rng = np.random.default_rng(0)
caches = []
for tokens in (3, 40) if kind == "cache" else ():
    caches.append(SparseKCache(n_select=50, window=20))
    caches[-1].prefill(*rng.standard_normal((3, tokens, 64)), rng.standard_normal(tokens))
texts = [json.dumps([number] * 50_000) for number in (1, 2)]  # as a report's JSON and HTML, a manifest, and records go
write = {
    "text": lambda turn: write_whole(path, texts[turn]),
    "cache": lambda turn: caches[turn].save(path),
    "wisdom": lambda turn: _fft.export_wisdom(path),
}[kind]
turn = 0
while True:
    write(turn)
    turn = 1 - turn
    print(turn, flush=True)
"""


def whole(kind, path):
    if kind == "text":
        content = path.read_text()
        assert content in (f"[{', '.join(['1'] * 50_000)}]", f"[{', '.join(['2'] * 50_000)}]")
    elif kind == "cache":
        assert SparseKCache.load(path).position in (3, 40)
    else:
        _fft.import_wisdom(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "cache", "wisdom"])
def test_a_killed_writer_leaves_a_whole_file(kind, tmp_path):
    if kind == "wisdom" and _fft.backend() != "pyfftw":
        pytest.skip("without FFTW there is no wisdom")
    folder, rng = tmp_path / "files", random.Random(0)
    folder.mkdir()
    (tmp_path / "loop.py").write_text(LOOP)
    for _ in range(100 if CAMPAIGN else 3):
        with subprocess.Popen(
            [sys.executable, tmp_path / "loop.py", kind, folder / "file"], stdout=subprocess.PIPE
        ) as writer:
            writer.stdout.readline()  # the first file is there
            time.sleep(rng.uniform(0, 0.05))
            writer.kill()
        whole(kind, folder / "file")
        unfinished = [path for path in folder.iterdir() if path.name != "file"]
        assert len(unfinished) <= 1  # of the one that was killed
        for path in unfinished:
            assert path.name.startswith(".")
            assert path.suffix == ".tmp"
            path.unlink()


REPORT = """
import resource, sys
{before}
import refattn.cli
sys.argv = ["refattn", "report", "--quick", "--only", "dense.masked-rows", "--json", sys.argv[1]]
refattn.cli.main()
"""
FULL = "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))"


def one_line(run_python, place, before=""):
    lines = run_python(REPORT.format(before=before), str(place), status=3).splitlines()
    said = [line for line in lines if line.startswith("refattn: ")]
    assert len(said) == 1, lines
    assert "could not be written: " in said[0]
    assert not any("Traceback" in line for line in lines)
    return said[0]


@pytest.mark.slow
def test_a_report_for_a_full_disk_is_one_line_and_leaves_nothing(run_python, tmp_path):
    pytest.importorskip("typer", reason="needs the extra 'report'")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "report.json").write_text("old")
    assert "File too large" in one_line(run_python, folder / "report.json", FULL)
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("report.json", "old")]
    assert "No space left on device" in one_line(run_python, "/dev/full")


@pytest.fixture
def mounted(tmp_path):
    """Mount a small, or a read-only, file system; only root may."""
    places = []

    def mount(*options):
        place = tmp_path / "mounted"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.xfail("this user may not mount a file system")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)


def test_a_full_file_system(mounted):
    place = mounted("size=64k")
    write_arrays(place / "file.npz", {"x": np.arange(1000.0)})
    with pytest.raises(OSError, match="No space left"):
        write_arrays(place / "file.npz", {"x": np.arange(100_000.0)})
    np.testing.assert_array_equal(read_arrays(place / "file.npz", ["x"])["x"], np.arange(1000.0))
    assert os.listdir(place) == ["file.npz"]


@pytest.mark.slow
def test_a_read_only_folder(mounted, run_python):
    place = mounted("size=64k", "ro")
    with pytest.raises(OSError, match="Read-only"):
        write_arrays(place / "file.npz", {"x": np.arange(3.0)})
    pytest.importorskip("typer", reason="needs the extra 'report'")
    said = run_python(REPORT.format(before=""), str(place / "report.json"), status=2)  # before anything runs
    assert "Read-only file system" in " ".join(said.replace("│", " ").split())
    assert "Traceback" not in said


class Planted:
    """What would leave a file behind if it were ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_refused_and_never_run(tmp_path):
    trace = tmp_path / "trace"
    planted = np.array([Planted(trace)], dtype=object)
    np.savez(tmp_path / "objects.npz", about=planted)
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Planted(trace)))
    for file in ("objects.npz", "plain.npz"):
        for read in (lambda path: read_arrays(path, ["about"]), SparseKCache.load, _fft.import_wisdom):
            if read is _fft.import_wisdom and _fft.backend() != "pyfftw":
                continue
            with pytest.raises(ValueError, match=file):
                read(tmp_path / file)
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.npz").read_bytes())  # the plant works
    assert trace.exists()
