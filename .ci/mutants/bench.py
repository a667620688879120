"""A copy of the repository, in which one mutant after the other is tried."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from places import Mutant

ROOT = Path(__file__).resolve().parents[2]
MEMORY = "tests/test_memory_estimates.py"
PARTS = {
    "_overflow.py": ["tests/test_edge_numerics.py", "tests/*/test_edge_numerics.py", "tests/dense/test_*.py"],
    "_exponential.py": ["tests/dense/test_*.py", "tests/models/test_feed_forward.py"],
    "_kept.py": ["tests/test_callers_arrays.py"],
    "dense": ["tests/dense/test_*.py", "tests/test_edge_numerics.py"],
    "masks.py": ["tests/test_masks.py", "tests/dense/test_*.py"],
    "convbasis": ["tests/convbasis/**/test_*.py", MEMORY],
    "sparsek": ["tests/sparsek/test_*.py", MEMORY],
    "lowrank": ["tests/lowrank/test_*.py", MEMORY],
    "patterns": ["tests/patterns/test_*.py"],
    "testing/conformance": ["tests/testing/conformance/test_*.py", "tests/cli/test_conform.py"],
    "testing/vectors": ["tests/testing/vectors/test_*.py"],
    "testing": ["tests/testing/test_[!t]*.py", "tests/testing/test_tolerances.py", MEMORY],
    "decomposition": ["tests/decomposition/test_*.py", MEMORY],
    "report/claims": ["tests/report/claims/test_*.py"],
    "report": ["tests/report/test_*.py", "tests/cli/test_report.py"],
}
"""What is mutated, by the longest of these that its path below ``refattn`` begins with, and the tests that judge it."""
EVERYWHERE = [f"tests/test_{name}.py" for name in ("validation", "finiteness", "conversions", "hostile_arguments")]
"""Tests that judge every part."""


class Bench:
    """A copy of the repository, in which mutants are tried."""

    def __init__(self, copy: Path, per_test: int) -> None:
        kept_out = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", ".hypothesis", "_build", "dist")
        shutil.copytree(ROOT, copy, ignore=kept_out, dirs_exist_ok=True)
        self.copy, self.per_test, self.clock = copy, per_test, 0
        self.package = b"".join(path.read_bytes() for path in sorted(copy.glob("refattn/**/*.py")))

    def tests_of(self, part: str) -> dict[str, str]:
        """Return the test files of a part, each with a stamp that changes with it and with the package."""
        paths = sorted({path for pattern in PARTS[part] + EVERYWHERE for path in self.copy.glob(pattern)})
        stamps = (hashlib.sha256(self.package + path.read_bytes()).hexdigest()[:12] for path in paths)
        return dict(zip((path.relative_to(self.copy).as_posix() for path in paths), stamps, strict=True))

    def test(self, tests: list[str], limit: float | None = None) -> tuple[int, str]:
        """Run tests, stop at the first failure, and return the status and what was printed; −1 is out of time.

        Compiled loops are kept from trial to trial: a mutant among them is another loop, as are its callers.
        """
        path = [str(self.copy), str(self.copy / ".ci" / "mutants"), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "REFATTN_CACHE_DIR": str(self.copy / ".loops"),
        }
        hanging = ["-o", f"faulthandler_timeout={self.per_test}", "-o", "faulthandler_exit_on_timeout=true"]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "plugin", *hanging]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
            options = {"cwd": self.copy, "env": environment, "stdout": printed, "stderr": subprocess.STDOUT}
            try:
                status = subprocess.run([*command, *tests], timeout=limit, check=False, **options).returncode
            except subprocess.TimeoutExpired:
                status = -1
            printed.seek(0)
            return status, printed.read()

    def seconds(self, tests: list[str]) -> dict[str, float]:
        """Return how long each test file takes where nothing is wrong; all have to pass."""
        status, printed = self.test(tests)
        if status:
            raise SystemExit(f"tests fail without a mutant:\n{printed[-3000:]}")
        return json.loads(printed.rpartition("seconds: ")[2].splitlines()[0])

    def write(self, path: Path, source: bytes) -> None:
        """Write a file with a time that no other version of it has, by which Python knows its compiled form."""
        path.write_bytes(source)
        self.clock += 60
        os.utime(path, (self.clock, self.clock))

    def judge(self, mutant: Mutant, seconds: dict[str, float]) -> tuple[str, str]:
        """Return what becomes of a mutant, and the test that caught it."""

        def rank(test: str) -> tuple[bool, float]:
            words = (re.sub("^(test)?_", "", Path(x).stem).partition("_")[0] for x in (test, mutant.file))
            return len(set(words)) > 1, seconds[test]

        path = self.copy / "refattn" / mutant.file
        right = path.read_bytes()
        self.write(path, mutant.source(right))
        try:
            tests = [f"refattn/{mutant.file}", *sorted(seconds, key=rank)]
            limit = 120 + 4 * sum(seconds.values())
            status, printed = self.test(tests, limit)
        finally:
            self.write(path, right)
        if status == 0:
            return "survived", ""
        if status in (3, 5) or (status == 4 and "while loading conftest" not in printed):
            return "undecided", printed[-1000:]
        caught = re.search(r"^(?:FAILED|ERROR) (\S+(?: \S+)*?)(?: - |$)", printed, re.MULTILINE)
        if status == -1 or (caught is None and "Timeout (" in printed):
            return "timeout", ""
        return "caught", caught[1] if caught else f"status {status}"
