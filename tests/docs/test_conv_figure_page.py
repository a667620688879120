"""Every measured number on the page of the paper's figure is that of the shipped records, which are complete."""

from pathlib import Path
from statistics import median

from refattn.experiments.records import read_records

DOCS = Path(__file__).parents[2] / "docs"

SENTENCES = (
    "| `q·k/d` | zero | {a_mean:.3f} | {a_five:.3f} | {a_most:.3f} | {a_window:.3f} |",
    "| `q·k/√d` | zero | {b_mean:.3f} | {b_five:.3f} | {b_most:.3f} | {b_window:.3f} |",
    "| `q·k/d` | zero | {c_mean:.3f} | {c_five:.3f} | {c_most:.3f} | {c_window:.3f} |",
    "| `q·k/d` | rotary | {d_mean:.3f} | {d_five:.3f} | {d_most:.3f} | {d_window:.3f} |",
    "| `q·k/√d` | zero | {e_mean:.3f} | {e_five:.3f} | {e_most:.3f} | {e_window:.3f} |",
    "| `q·k/√d` | rotary | {f_mean:.3f} | {f_five:.3f} | {f_most:.3f} | {f_window:.3f} |",
    "k = 640 reaches {a_most:.3f} (squared {a_squared:.3f})",
    "the least of the three heads {a_least:.3f}",
    "{cost:.2g} times exact attention's operations by our count, {cost_authors:.2g} by theirs",
)
"""What the page says, with places for what the records say."""

GROUPS = {
    "a": (32_000, "1/d", "zero"), "b": (32_000, "1/sqrt(d)", "zero"), "c": (8192, "1/d", "zero"),
    "d": (8192, "1/d", "rotary"), "e": (8192, "1/sqrt(d)", "zero"), "f": (8192, "1/sqrt(d)", "rotary"),
}  # fmt: skip

PLACES = {"mean": ("mean", 0), "five": ("first", 5), "most": ("first", 640), "window": ("window", 20)}


def figures():
    records = read_records(DOCS / "records" / "conv-figure-long.jsonl")
    assert records.complete
    found = {}
    for name, group in GROUPS.items():
        rows = {
            (row["method"], row["k"]): row
            for row in records.rows()
            if (row["n"], row["scale"], row["positions"]) == group
        }
        for key, place in PLACES.items():
            found[f"{name}_{key}"] = rows[place]["error"]
        if name == "a":
            last = rows["first", 640]
            found |= {"a_squared": last["error"] ** 2, "a_least": last["least"]}
            found |= {"cost": last["flops"], "cost_authors": last["flops_authors"]}
    return found


def test_recover_s_errors_are_those_of_the_first_columns():
    rows = read_records(DOCS / "records" / "conv-figure-long.jsonl").rows()
    errors = {(row["n"], row["scale"], row["positions"], row["method"], row["k"]): row["error"] for row in rows}
    recovered = [place for place in errors if place[3] == "recover"]
    assert recovered
    assert all(errors[place] == errors[*place[:3], "first", place[4]] for place in recovered)


def test_the_numbers_are_those_of_the_records():
    page = " ".join((DOCS / "explanation" / "the-conv-figure.md").read_text(encoding="utf-8").split())
    assert [one for one in (s.format(**figures()) for s in SENTENCES) if one not in page] == []


EVERY_LAYER = (
    *(
        f"| `{logits}` | {positions} | {{{name}_mean:.3f}} | {{{name}_five:.3f}} | {best} | {{{name}_most:.3f}} |"
        f" {{{name}_window:.3f}} |"
        for name, logits, positions, best in (
            ("a", "q·k/d", "zero", "{a_best:.3f}"),
            ("b", "q·k/d", "rotary", "{b_best:.3f}"),
            ("c", "q·k/d", "shuffled", "–"),
            ("d", "q·k/√d", "zero", "{d_best:.3f}"),
            ("e", "q·k/√d", "rotary", "{e_best:.3f}"),
            ("f", "q·k/√d", "shuffled", "–"),
        )
    ),
    "take {cost:.3g} times exact attention's operations by our count, {cost_authors:.2g} by the authors'",
    "the median is {a_most:.3f}, and {reach} of the 30 layers are at 0.008 or below",
    "the same terms leave {d_most:.3f}, the running mean {d_mean:.3f}",
)


def layers():
    records = read_records(DOCS / "records" / "conv-figure.jsonl")
    assert records.complete
    places = {"mean": ("mean", 0), "five": ("first", 5), "best": ("best", 160), "most": ("first", 640)}
    places["window"] = "window", 5
    groups = [(scale, positions) for scale in ("1/d", "1/sqrt(d)") for positions in ("zero", "rotary", "shuffled")]
    found = {}
    for name, group in zip("abcdef", groups, strict=True):
        rows = [row for row in records.rows() if (row["scale"], row["positions"]) == group]
        for key, place in places.items():
            some = [row for row in rows if (row["method"], row["k"]) == place]
            if some:
                assert {row["layer"] for row in some} == set(range(30))
                found[f"{name}_{key}"] = median(row["error"] for row in some)
            if name == "a" and key == "most":
                found["reach"] = sum(row["error"] <= 0.008 for row in some)
                ((found["cost"], found["cost_authors"]),) = {(row["flops"], row["flops_authors"]) for row in some}
    return found


def test_the_numbers_of_every_layer_are_those_of_the_records():
    page = " ".join((DOCS / "explanation" / "the-conv-figure.md").read_text(encoding="utf-8").split())
    assert [one for one in (s.format(**layers()) for s in EVERY_LAYER) if one not in page] == []
