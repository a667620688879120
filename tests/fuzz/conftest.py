"""Fuzzing: the same few examples every time; in a campaign many new ones."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def numbers_that_fit(monkeypatch):
    """Ordinary numbers, none of them hostile."""
    import fuzz_inputs

    monkeypatch.setattr(fuzz_inputs, "_hostile", lambda draw, value: value)
    monkeypatch.setattr(fuzz_inputs, "KINDS", ("small",))
    monkeypatch.setattr(fuzz_inputs, "LENGTHS", (5, 33, 70))


def pytest_terminal_summary(terminalreporter):
    tally = getattr(sys.modules.get("fuzz_property"), "tally", {})
    if tally:
        by_outcome = {}
        for (_, outcome), count in tally.items():
            by_outcome[outcome] = by_outcome.get(outcome, 0) + count
        parts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(by_outcome.items()))
        terminalreporter.write_line(f"fuzzing: {sum(by_outcome.values())} examples: {parts}")
