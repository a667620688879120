"""Every measured number that a page has about classification is that of the shipped records, which are complete."""

from pathlib import Path

import pytest

from refattn.experiments.compared.classification import accuracies
from refattn.experiments.records import read_records
from refattn.experiments.sparsek.shipped import FOLDER

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "what-holds.md"

SENTENCES = (
    "(n = {decoder.n}) answers {decoder}",
    "{quarter} rightly at k = n/4, and {three_quarters} at k = 3n/4",
    "(n = {encoder.n}) needs attention less: {encoder} with exact attention, {equal} with equal weights",
    "{encoder_quarter} at k = n/4, and {first} with the first n/2 columns as starts",
    "{s128} with 128 pairs a query and {s256} with 256.",
)
"""What the page says, with places for what the records say."""

CHOSEN = {
    "decoder": ("decoder", "exact", None),
    "quarter": ("decoder", "uniform", 0.25),
    "three_quarters": ("decoder", "uniform", 0.75),
    "all": ("decoder", "uniform", 1.0),
    "s128": ("decoder", "learned", 128),
    "s256": ("decoder", "learned", 256),
    "encoder": ("encoder", "exact", None),
    "equal": ("encoder", "mean", None),
    "encoder_quarter": ("encoder", "uniform", 0.25),
    "first": ("encoder", "first", 0.5),
}


class Shown:
    """An accuracy as the page writes it."""

    def __init__(self, found):
        self.found, self.n = found, found.n

    def __format__(self, how):
        value, low, high = (f"{100 * share:.0f}" for share in (self.found.value, self.found.low, self.found.high))
        return f"{value} % ({low} to {high})"


@pytest.fixture(scope="module")
def figures():
    records = read_records(FOLDER / "classification-against-k.jsonl")
    assert records.complete
    found = {(one.model, one.method, one.pairs or one.share): one for one in accuracies(records.rows())}
    return {name: Shown(found[place]) for name, place in CHOSEN.items()}


def test_the_numbers_are_those_of_the_records(figures):
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert [one for one in (s.format(**figures) for s in SENTENCES) if one not in page] == []


def test_what_the_page_says_in_words_is_so(figures):
    found = {name: shown.found for name, shown in figures.items()}
    assert all(one.asked == 400 for one in found.values())
    assert all(found[name].low < 0.5 < found[name].high for name in ("quarter", "three_quarters"))
    assert found["all"].right == found["decoder"].right
