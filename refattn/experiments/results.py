"""The results page, from records: ``python -m refattn.experiments.results --records DIR … --write FILE`` (ours).

Every number on the page, those in its sentences too, comes from the records, of one folder or of several. The tables
are folded; the pictures, of the shipped records, are those of the documentation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from refattn._files import write_whole
from refattn.experiments import catalogue, tables
from refattn.experiments.compared.classification import accuracies
from refattn.experiments.records import Records, read_records
from refattn.experiments.scratch import tables as scratch
from refattn.experiments.sparsek.perplexity import gap_ratio
from refattn.experiments.sparsek.shipped import opponents_table, passkey_table, perplexity_table, retrieval_table
from refattn.experiments.tables import Rows

INTRODUCTION = """\
# Results

What the two papers leave open, measured. This page is generated from the records of a full run, in `docs/records` and,
those that the ledger judges, in `refattn/experiments/data`; `refattn experiment NAME` makes them anew
([how](how-to/run-experiments.md)), and `python -m refattn.experiments.results --records DIR … --write FILE` this page.
An error is `‖Y − Ỹ‖_F / ‖Y‖_F` against exact attention. Pictures and sentences are open, tables are folded.
"""

ALWAYS = """\
- Conv structure holds **by construction** where contents are constant within segments and positions are rotary: the
  logits then depend on the distance and the segment only, Recover finds the segments, and the output is exact up to
  rounding (ledger: `refattn report --only recover`). What is below asks whether heads of a real decoder and of a real
  encoder are of this kind; about other models it says nothing.
"""


def read_all(*folders: Path) -> dict[str, Records]:
    """Return the records there are in some folders, by experiment, in the catalogue's order."""
    paths = [(name, folder / f"{name}.jsonl") for name in catalogue.MODULES for folder in folders]
    return {name: read_records(path) for name, path in paths if path.exists()}


def page(records: Mapping[str, Records]) -> str:
    """Return the page as Markdown, a section for every experiment that there are records of.

    >>> page({}).splitlines()[0]
    '# Results'
    """
    reading = [ALWAYS]
    for name, sentence in READINGS.items():
        if name in records and records[name].results:
            reading += [sentence(records[name].rows()), _unfinished(records[name], "  - ", "\n")]
    sections = [_section(name, found) for name, found in records.items() if name in SECTIONS]
    return "\n".join([INTRODUCTION, "## The honest reading\n", "".join(reading), *sections]).rstrip() + "\n"


def _section(name: str, found: Records) -> str:
    environment = found.header["environment"]
    packages = environment.get("packages", {})
    versions = ", ".join(f"{package} {packages.get(package)}" for package in ("numpy", "scipy", "numba", "pyfftw"))
    section = SECTIONS[name]
    parts = [f"## {section.title}", f"*{found.header['question']}* {section.note}".rstrip()]
    parts += [section.picture] if section.picture else []
    parts += [_folded(make(found.rows())) for make in section.makers]
    parts += [
        f"`refattn experiment {name}`, begun {found.header['begun'][:10]} with refattn {found.header['version']}"
        f" on {environment.get('machine', {}).get('cpu')}, {versions}.{_unfinished(found, ' ', '')}"
    ]
    return "\n\n".join(parts) + "\n"


def _folded(made: str) -> str:
    """Fold a table away under its size and its columns."""
    header, _, *lines = made.splitlines()
    columns = ", ".join(name.strip() for name in header.strip("|").split("|"))
    return f"<details>\n<summary>Table, {len(lines)} rows: {columns}</summary>\n\n{made}\n\n</details>"


def _unfinished(found: Records, before: str, after: str) -> str:
    """Say how much there is of records that are not complete; nothing if they are."""
    if found.complete:
        return ""
    return f"{before}**Not complete**: {len(found.results)} of {found.header['items']} items.{after}"


def _read_error(rows: Rows) -> str:
    lines = []
    for (n, starts), group in tables.grouped(rows, "n", "starts").items():
        if starts == "recover":
            continue
        most = max(int(tables.number(row, "k")) for row in group)
        last = [row for row in group if row["k"] == most]
        lines.append(
            f"  - n = {n:,}, {starts} starts, k = {most:,}: median error {tables.median(last, 'error'):.2f};"
            f" {tables.below(last)} of {len(last)} heads below {tables.SMALL}."
        )
    return (
        "- **Heads of a decoder** (SmolLM2-135M reading Hamlet), starts spread evenly or the best there are in the"
        " least-squares\n  sense on the logits, at the largest k measured:\n" + "\n".join(lines) + "\n"
    )


def _read_perplexity(rows: Rows) -> str:
    exact = {row["text"]: tables.number(row, "perplexity") for row in rows if row["starts"] == "exact"}
    lines = []
    for (starts, share), group in tables.grouped(rows, "starts", "share").items():
        quotients = [tables.number(row, "perplexity") / exact[row["text"]] for row in group if row["text"] in exact]
        if starts == "exact" or not quotients:
            continue
        spread = f"{min(quotients):.3g}" + (f" to {max(quotients):.3g}" if len(quotients) > 1 else "")
        lines.append(f"  - {starts} starts, k = {share:g} n: {spread} times exact attention's.")
    return "- **Perplexity of the decoder** with every head replaced:\n" + "\n".join(lines) + "\n"


def _read_retrieval(rows: Rows) -> str:
    lines = []
    for n, group in tables.grouped(rows, "n").items():
        parts = [
            f"{row['right']} {row['starts']}" + ("" if row["share"] is None else f" k = {row['share']:g} n")
            for row in group
        ]
        lines.append(f"  - n = {n:,}, of {group[0]['texts']} texts found: {'; '.join(parts)}.")
    return "- **Retrieval by an encoder** (MiniLM-L6) with every head replaced:\n" + "\n".join(lines) + "\n"


def _read_classification(rows: Rows) -> str:
    lines = []
    for model, name in (
        ("decoder", "a decoder (SmolLM2-135M, 16 examples in its prompt)"),
        ("encoder", "a linear probe of an encoder (MiniLM-L6)"),
    ):
        parts = []
        for one in (one for one in accuracies(rows) if one.model == model and one.share in (None, 0.25, 0.75)):
            size = f" k = {one.k}" if one.k is not None else f" {one.pairs} pairs" if one.pairs is not None else ""
            parts.append(f"{one.method}{size} {one.value:.0%} ({one.low:.0%} to {one.high:.0%})")
        if parts:
            lines.append(f"  - {name}: {'; '.join(parts)}.")
    return (
        "- **Is a film review for or against the film?** Right answers with every head replaced, in brackets 95 %\n"
        "  intervals; always the same answer is right for 50 %:\n" + "\n".join(lines) + "\n"
    )


def _read_domain(rows: Rows) -> str:
    worst = max(rows, key=lambda row: tables.number(row, "rows_lost") / tables.number(row, "n"))
    guarded = max(tables.number(row, "guarded_error") / tables.number(row, "tolerance") for row in rows)
    return (
        f"- **A plain FFT loses rows**: {worst['rows_lost']:,} of {worst['n']:,} at a logit deviation of"
        f" {worst['deviation']:g} in {worst['dtype']}. The guarded path's worst row is at {guarded:.2g} of its"
        " tolerance.\n"
    )


def _read_sparsek(rows: Rows) -> str:
    lines = []
    for n, budget in tables.grouped([row for row in rows if row["attention"] == "learned"], "n", "budget"):
        found = []
        for attention, fitted in (("learned", "2,048"), ("long", "8,192")):
            try:
                ratio = gap_ratio(rows, n=n, budget=budget, attention=attention)
            except ValueError:
                continue
            found.append(
                f"{ratio.value:.0%} ({ratio.low:.0%} to {ratio.high:.0%}) with scores learned on {fitted} tokens"
            )
        if found:
            lines.append(f"  - {budget} pairs a query, n = {n:,}: {', '.join(found)}.")
    return (
        "- **What SparseK with learned scores buys**: of the gap in perplexity between a sliding window with 4 sinks"
        " and exact attention they leave\n" + "\n".join(lines) + "\n"
    )


READINGS: Mapping[str, Callable[[Rows], str]] = {
    "error-against-k": _read_error,
    "perplexity-against-k": _read_perplexity,
    "retrieval-against-k": _read_retrieval,
    "classification-against-k": _read_classification,
    "numerical-domain": _read_domain,
    "sparsek-perplexity": _read_sparsek,
    "from-scratch": scratch.sentence,
    "from-scratch-text": scratch.sentence,
    "conv-from-scratch": scratch.conv_sentence,
}
"""The sentence of each experiment in the reading."""


class Section(NamedTuple):
    """Title, a note, tables and a picture of an experiment's section."""

    title: str
    note: str
    makers: tuple[Callable[[Rows], str], ...]
    picture: str = ""


SECTIONS: Mapping[str, Section] = {
    "conv-by-fft": Section(
        "conv(a) x by FFT",
        "`refattn.experiments.conv.operations` counts operations; *difference* is relative, between the two.",
        (tables.conv_by_fft,),
    ),
    "numerical-domain": Section(
        "Numerical domain",
        "One kernel exp(N(0, σ)); a row is lost if it is off by more than the guarded path's tolerance.",
        (tables.numerical_domain,),
    ),
    "error-against-k": Section(
        "Error against k",
        "Medians over heads. *Logits* is the relative error of the logits, which no k-conv basis can make smaller (at"
        " n = 8,192: none with starts on a grid of 16); *operations* are Algorithm 1's over exact attention's. The"
        " second table is what the paper's Recover finds with room for n/8 segments.",
        (tables.error_against_k, tables.recovered),
        "![Relative error of the output against k for two lengths, medians over the heads with the middle 80 %: uniform"
        " starts, the best\nstarts, and those that Recover finds](pictures/error-against-k.png)",
    ),
    "conv-figure": Section(
        "The paper's figure, every layer", "[What it means](explanation/the-conv-figure.md).", (tables.conv_figure,)
    ),
    "conv-figure-long": Section(
        "The paper's figure, its layer and length",
        "[What it means](explanation/the-conv-figure.md). Three heads of the second layer; the worst is a row's.",
        (tables.conv_figure,),
    ),
    "terms-against-n": Section(
        "Terms against n",
        "[What it means](explanation/whole-models.md). The fewest terms of all ways to choose starts; medians over"
        " heads.",
        (tables.terms_against_n,),
    ),
    "maps": Section(
        "Maps of logits and of attention",
        "What can be explained is of the *logits*, of which the Conv-Basis authors draw maps; what is on tokens is of"
        " *attention*, their softmax. `python -m refattn.experiments.conv.maps --out FILE` draws both, of every shipped"
        " layer.",
        (tables.maps,),
        "![Maps of the logits less their mean, and of the attention, of three heads of SmolLM2-135M: whole columns and"
        " rows stand out,\nand in the middle layer what is near the diagonal](pictures/maps.png)",
    ),
    "full-attention": Section("Error against k in an encoder", "MiniLM-L6 reading Hamlet.", (tables.full_attention,)),
    "perplexity-against-k": Section("Perplexity against k", "SmolLM2-135M.", (tables.perplexity_against_k,)),
    "retrieval-against-k": Section("Retrieval against k", "MiniLM-L6.", (tables.retrieval_against_k,)),
    "classification-against-k": Section(
        "Classification against k and against pairs",
        "[What it means](explanation/what-holds.md). The last column is the share of pairs of a positive and a negative"
        " text that the answers' margins put in the right order: 0.5 at random, wherever the line between them is.",
        (tables.classification,),
    ),
    "time-against-n": Section(
        "Time against n",
        "Milliseconds; what else the machine did at the time, the records do not know.",
        (tables.time_against_n,),
        "![Seconds against n for every method, forward and training, one head of width 64]"
        "(pictures/time-against-n.png)",
    ),
    "whole-models": Section(
        "Whole models",
        "[What it means](explanation/whole-models.md). One thread; medians of interleaved rounds on a machine that did"
        " other things too: read the quotients. *Layers run* are the first ones; times are those of all.",
        (tables.whole_models_overtaken, tables.whole_models_searched, tables.whole_models),
    ),
    "model-speed": Section(
        "Whole models: tokens a second and memory",
        "*Training*: loss and gradients of one text, a decoder of 4 layers of width 256; every sparse method has 64"
        " pairs a query. *Generation*: SmolLM2-135M reads n tokens and writes more; SparseK has 256 pairs. PyTorch's"
        " attention is exact. Memory is what the process took more at its peak.",
        (tables.training_speed, tables.generation_speed),
    ),
    "baselines": Section("Methods at equal time and at equal memory", "", (tables.baselines,)),
    "sparsek-perplexity": Section(
        "SparseK in a language model",
        "SmolLM2-135M, every head replaced; in brackets 95 % intervals by resampling blocks of 256 tokens.",
        (perplexity_table,),
        "![Perplexity by attention, length and pairs a query, with 95 % intervals: learned scores are between the"
        " window with sinks and exact\nattention up to the length they were learned on]"
        "(pictures/sparsek-perplexity.png)",
    ),
    "sparsek-passkey": Section("SparseK and a passkey", "", (passkey_table,)),
    "sparsek-opponents": Section(
        "Opponents of SparseK that learn nothing",
        "[What it means](explanation/sparsek-learned.md). The same windows as above; exact attention, the window with"
        " sinks and SparseK are the shipped records'.",
        (opponents_table,),
    ),
    "sparsek-retrieval": Section(
        "Passkeys and facts outside the window",
        "[What it means](explanation/sparsek-learned.md). *Found*: greedy decoding writes the whole answer; in brackets"
        " 95 % intervals, Wilson's and by resampling trials.",
        (retrieval_table,),
    ),
    "sparsek-variations": Section(
        "What was varied in learning the scores",
        "Relative squared distance of the layer's outputs on text that the scorer was not fitted on, 128 pairs; gates"
        " of one / soft gates in the model. The window has 4 sinks beyond its 128 pairs.",
        (tables.sparsek_variations,),
    ),
    "from-scratch": Section(
        "Trained from scratch to recall",
        "A decoder of 2 layers of width 64 and 2.5 million tokens: no language model. Every method has the rate that"
        " was best on texts held out, with the first seed; in brackets 95 % intervals of three seeds. *By distance* is"
        " how far back a key came.",
        (scratch.quality, scratch.by_distance, scratch.footing),
        "![Accuracy of every method at one, two and four times the trained length, and by distance at the longest]"
        "(pictures/from-scratch.png)\n\n"
        "![Loss on validation texts against steps, for every method](pictures/from-scratch-losses.png)",
    ),
    "from-scratch-text": Section(
        "Trained from scratch on text",
        "Shakespeare byte by byte, a decoder of 4 layers of width 128 and a million tokens: a small model that has read"
        " little. *By distance* is the accuracy within capitalised words and numbers that came before, after their"
        " first two letters, by how far back.",
        (scratch.quality, scratch.by_distance, scratch.footing),
        "![Loss of every method at one, two and four times the trained length, and accuracy by distance at the longest]"
        "(pictures/from-scratch-text.png)\n\n"
        "![Loss on validation texts against steps, for every method](pictures/from-scratch-text-losses.png)",
    ),
    "conv-from-scratch": Section(
        "Trained from scratch with conv attention",
        "*lags*: a decoder of one layer of width 64 and a task whose right attention is 4-conv; *bytes*: Shakespeare,"
        " two layers of width 64, 16 segments. In brackets 95 % intervals of three seeds. The other attention is exact"
        " where conv was trained, and conv with spread starts where exact attention was. The last columns are medians"
        " over heads at the end: the relative distance of the logits from the nearest k-conv matrix, and of conv's"
        " outputs from exact attention's.",
        (scratch.conv,),
        "![Loss on validation texts against steps for every way to train with conv attention, of both tasks, and how"
        " far the logits are\nfrom the nearest k-conv matrix](pictures/conv-from-scratch.png)",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m refattn.experiments.results", description=__doc__)
    parser.add_argument("--write", type=Path, required=True, metavar="FILE", help="the page, Markdown")
    parser.add_argument("--records", type=Path, required=True, nargs="+", metavar="DIR", help="folders of the records")
    options = parser.parse_args(arguments)
    write_whole(options.write, page(read_all(*options.records)))
    print(options.write)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
