"""What a page says of SparseK's opponents is what the shipped records say."""

from pathlib import Path

from refattn.experiments.records import read_records
from refattn.experiments.sparsek.perplexity import gap_ratio
from refattn.experiments.sparsek.shipped import shipped_rows

DOCS = Path(__file__).parents[2] / "docs"


def test_what_is_said_of_the_gap():
    records = read_records(DOCS / "records" / "sparsek-opponents.jsonl")
    assert records.complete
    rows = [*shipped_rows("sparsek-perplexity"), *records.rows()]
    left = {
        (attention, n, budget): gap_ratio(rows, n=n, budget=budget, attention=attention).value
        for attention in ("long", "heavy-hitters", "largest-logits")
        for n in (2048, 4096, 8192)
        for budget in (256, 128)
    }
    cases = {case[1:] for case in left}
    assert all(left["long", *case] < left["heavy-hitters", *case] for case in cases)
    behind = {case for case in cases if left["heavy-hitters", *case] > 1}
    assert behind == {(8192, 256), (8192, 128), (4096, 128)}
    said = " ".join((DOCS / "explanation" / "sparsek-learned.md").read_text(encoding="utf-8").split())
    of_logits, ours = ([left[name, *case] for case in cases] for name in ("largest-logits", "long"))
    assert f"largest logits leave {min(of_logits):.2f} to {max(of_logits):.2f} of the gap" in said
    assert f"what SparseK leaves, {min(ours):.2f} to {max(ours):.2f}," in said
