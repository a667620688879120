"""A small report and a TeX, for the tests of what goes into a paper."""

import json
import shutil
import subprocess

import pytest

from refattn.report import Claim, Measurement, run_claims, to_document
from refattn.report.ledger import NotRunError

SIGNS = "\\ { } $ & # % _ ^ ~ < > | \" ' ` * [ ] ! @ a--b ''x'' <b>x</b> [x](y) **z**"
"""What means something in Markdown or TeX."""
UNICODE = "‖Y − Ỹ‖_∞ ≤ 2 ε √(1 − δ²), −∞ … Müller’s “naïve” Σ_{u<j≤w} z_(j) e^{2ε} ⌘ 日本 D⁻¹Aᵀ ½ ⌈log₂ n⌉"


def declines(quick):
    raise NotRunError(f"only in full: {SIGNS}")


@pytest.fixture(scope="session")
def written():
    """A small report as read from its file: every verdict, a failure, curves, and texts that are full of signs."""
    product = {f"seconds by FFT at n = {n}": n / 1e6 for n in (4096, 16384)}
    claims = [
        Claim("dense.holds", "ours", SIGNS, "looking", lambda quick: Measurement("none", 1.25e-9, at_most=1e-7)),
        Claim("conv.signs", "arXiv 2405.05219, §3", UNICODE, UNICODE,
              lambda quick: Measurement(UNICODE, 2, at_least=1.0)),
        Claim("conv.if", "arXiv 2405.05219, lemma", "x.", "looking",
              lambda quick: Measurement("x", 0.5, at_most=1.0, condition="ε ≤ 1", counterexample=float("inf"))),
        Claim("conv.product-time", "arXiv 2405.05219, x", "It is fast.", "timing",
              lambda quick: Measurement("x", 3.0, at_most=1.0, detail=product), must_hold=False, timed=True),
        Claim("sparsek.failed", "arXiv 2406.16747, x", "It fails.", "looking",
              lambda quick: Measurement("x", float("nan"), at_most=1.0)),
        Claim("sparsek.not-run", "arXiv 2406.16747, x", "x.", "looking", declines),
    ]  # fmt: skip
    return json.loads(json.dumps(to_document(run_claims(claims, quick=True)), allow_nan=False))


@pytest.fixture
def compiled(tmp_path):
    """Return a function that writes files, runs commands of TeX there, and returns the last one's output."""
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex: apt-get install texlive-latex-recommended")

    def run(files, *commands):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        for command in commands:
            program, *rest = command.split()
            strict = ["-interaction=nonstopmode", "-halt-on-error"] if program == "pdflatex" else []
            done = subprocess.run([program, *strict, *rest], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    return run
