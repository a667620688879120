"""The results page is what the records give, and says so where they are few."""

from pathlib import Path

import pytest

from refattn.experiments import results, tables
from refattn.experiments.records import Records, Result
from refattn.experiments.results import SECTIONS, main, page, read_all
from refattn.experiments.sparsek.shipped import FOLDER

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "results.md"
FOLDERS = DOCS / "records", FOLDER


def test_the_page_is_what_the_shipped_records_give():
    assert PAGE.read_text(encoding="utf-8") == page(read_all(*FOLDERS))


def test_the_shipped_records_are_small_and_known():
    files = [file for folder in FOLDERS for file in folder.glob("*.jsonl")]
    assert sum(file.stat().st_size for file in files) < 2_500_000
    drawn_only = {"trainings"}  # of configurations, not of the catalogue: the tutorial's picture
    assert {file.stem for file in files} - drawn_only == set(read_all(*FOLDERS))


def test_every_shipped_file_has_a_section():
    assert set(read_all(*FOLDERS)) <= set(SECTIONS)


def test_the_command_writes_the_page(tmp_path, capsys):
    assert main(["--write", str(tmp_path / "page.md"), "--records", str(tmp_path)]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8").startswith("# Results\n")


HEADER = {
    "experiment": "error-against-k",
    "question": "Why?",
    "version": "0.1.0",
    "begun": "2026-01-02T03:04:05+00:00",
    "items": 2,
    "environment": {"machine": {"cpu": "a processor"}, "packages": {"numpy": "2.0"}},
}


def error_records(error):
    item = {"n": 64, "layer": 0, "starts": "uniform"}
    return Records(
        HEADER, (Result(item, 1.0, tuple({"head": h, "k": 8, "error": error, "flops": 0.5} for h in (0, 1))),)
    )


@pytest.mark.parametrize(("error", "below"), [(0.05, 2), (0.5, 0)], ids=["conv-like", "not conv-like"])
def test_the_reading_follows_the_numbers(error, below):
    text = page({"error-against-k": error_records(error)})
    assert f"n = 64, uniform starts, k = 8: median error {error:.2f}; {below} of 2 heads below 0.1." in text
    assert text.count("**Not complete**: 1 of 2 items.") == 2  # in the reading and in the section


def test_quotients_are_over_the_same_text():
    rows = [
        {"n": 8, "text": text, "starts": starts, "share": share, "k": k, "perplexity": value}
        for text, values in {"a": (10.0, 20.0), "b": (20.0, 100.0)}.items()
        for (starts, share, k), value in zip([("exact", None, None), ("first", 0.5, 4)], values, strict=True)
    ]
    assert "first starts, k = 0.5 n: 2 to 5 times" in results.READINGS["perplexity-against-k"](rows)
    assert "| 8 | b | first | 4 | 100 | 5 |" in tables.perplexity_against_k(rows)


def test_of_recover_the_largest_k_counts():
    search = {"n": 64, "layer": 0, "starts": "recover", "probe": 1, "delta": 1e-6, "eps": 0.0}
    found = {0: ((2, 0.9), (8, 0.05)), 1: ((2, 0.9), (9, 1.05))}
    rows = [{**search, "head": head, "k": k, "error": error} for head, one in found.items() for k, error in one]
    assert tables.recovered(rows).splitlines()[-1] == "| 64 | Recover, T = 1, δ tiny | 2 | 8 … 8 … 9 | 0.55 | 1 |"
