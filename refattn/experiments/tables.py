"""Tables of the results page, as Markdown, from records (ours).

Every function takes the rows of one experiment, ``Records.rows()``, and returns text; nothing is computed but medians,
quantiles, shares and quotients of what the records hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from refattn.experiments.compared.baselines import BaselineRecord, within
from refattn.experiments.compared.classification import accuracies
from refattn.experiments.compared.whole_readings import overtakes, searched, timings, where
from refattn.experiments.conv.terms_against_n import TOLERANCES, exponent, fewest
from refattn.experiments.experiment import Record

Rows = Sequence[Record]

SMALL = 0.1
"""A relative error below which a head counts as well represented."""


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table.

    >>> print(table(["n", "error"], [[2048, 0.25], [10_000, None]]))
    | n | error |
    |---|---|
    | 2,048 | 0.25 |
    | 10,000 | – |
    """
    rows = ["| " + " | ".join(map(_cell, line)) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(header) + " |", "|" + "---|" * len(header), *rows])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}" if abs(value) < 1e6 else f"{value:.1e}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def grouped(rows: Rows, *names: str) -> dict[Any, list[Record]]:
    """Return the rows by one field, or by several, in the order of first appearance."""
    groups: dict[Any, list[Record]] = {}
    for row in rows:
        groups.setdefault(itemgetter(*names)(row), []).append(row)
    return groups


def number(row: Record, name: str) -> float:
    """Return a number of a row; NaN where it is missing."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else float("nan")


def median(rows: Rows, name: str) -> float:
    """Return the median of a field over rows."""
    return float(np.median([number(row, name) for row in rows]))


def below(rows: Rows, limit: float = SMALL) -> int:
    """Return how many rows have an error below the limit."""
    return sum(number(row, "error") < limit for row in rows)


def conv_by_fft(rows: Rows) -> str:
    """Time and operations of conv(a) x by both methods, and their quotients."""
    lines = []
    for n, group in grouped(rows, "n").items():
        one = {row["method"]: row for row in group}
        if len(one) < 2:
            continue
        both = one["direct"], one["fft"]
        times = [number(row, "seconds") * 1e6 for row in both]
        flops = [number(row, "flops_per_token") for row in both]
        difference = max(number(row, "difference") for row in both)
        lines.append([n, *flops, flops[0] / flops[1], *times, times[0] / times[1], difference])
    operations, microseconds = ["operations a token, direct", "by FFT"], ["µs, direct", "by FFT"]
    return table(["n", *operations, "quotient", *microseconds, "quotient", "difference"], lines)


def numerical_domain(rows: Rows) -> str:
    """Rows lost by a plain FFT and kept by the guard."""
    columns = {
        "n": "n",
        "dtype": "dtype",
        "deviation": "logit deviation",
        "rows_lost": "rows lost",
        "plain_error": "worst error, plain",
        "rows_recomputed": "rows recomputed",
        "guarded_error": "worst error, guarded",
    }
    ordered = sorted(rows, key=lambda row: (number(row, "n"), str(row["dtype"]), number(row, "deviation")))
    return table(list(columns.values()), map(itemgetter(*columns), ordered))


def starts_label(row: Record) -> str:
    """Return how Recover's starts of a row of ``error-against-k`` were chosen, in a few words."""
    eps = ", ε = δ/(5T)" if row["eps"] else ""
    delta = "δ tiny" if number(row, "delta") < 1e-3 else f"δ = {row['delta']} Tσ{eps}"
    return f"Recover, T = {row['probe']}, {delta}"


def error_against_k(rows: Rows) -> str:
    """Errors over all heads for given k; what Recover finds is in `recovered`."""
    chosen = [row for row in rows if row["starts"] != "recover"]
    lines = []
    for (n, starts, k), group in grouped(chosen, "n", "starts", "k").items():
        low, high = np.quantile([number(row, "error") for row in group], (0.1, 0.9))
        what = [n, starts, f"{k:,} = n/{round(n / k)}", len(group)]
        errors = [median(group, "logits") if starts == "best" else None, median(group, "error")]
        lines.append([*what, *errors, f"{low:.2g} … {high:.2g}", below(group), median(group, "flops")])
    header = ["n", "starts", "k", "heads", "logits", "error", "10 % … 90 %", f"heads below {SMALL}", "operations"]
    return table(header, lines)


def recovered(rows: Rows) -> str:
    """What Recover finds with room for n/8 segments: how many, and the error they leave."""
    chosen = [{**row, "label": starts_label(row)} for row in rows if row["starts"] == "recover"]
    lines = []
    for (n, label), group in grouped(chosen, "n", "label").items():
        heads = grouped(group, "layer", "head").values()
        most = [max(one, key=lambda row: number(row, "k")) for one in heads]
        ks = [int(number(row, "k")) for row in most]
        found = f"{min(ks):,} … {int(np.median(ks)):,} … {max(ks):,}"
        lines.append([n, label, len(most), found, median(most, "error"), below(most)])
    return table(["n", "search", "heads", "k found: least, median, most", "error", f"heads below {SMALL}"], lines)


def conv_figure(rows: Rows) -> str:
    """Errors by scale, positions, method and k: over heads, and where there are several layers the median of these."""
    lines = []
    for (n, scale, positions, method, k), group in grouped(rows, "n", "scale", "positions", "method", "k").items():
        error = median(group, "error")
        least, worst = min(number(row, "least") for row in group), max(number(row, "row_worst") for row in group)
        errors = [least, error, error**2, median(group, "row"), worst]
        size = group[0].get("size")
        costs = [median(group, name) if name in group[0] else None for name in ("flops", "flops_authors")]
        lines.append([n, scale, positions, method, k, size, *errors, *costs, median(group, "seconds")])
    of = ["n", "logits over q·k", "positions", "method", "k", "pairs or terms"]
    errors_of = ["least error", "median", "median, squared", "row, median", "worst"]
    return table([*of, *errors_of, "operations, ours", "the authors'", "seconds"], lines)


def terms_against_n(rows: Rows) -> str:
    """Fewest terms by inputs, scale and tolerance: the median over heads at every n, and the exponent."""
    lengths = sorted({int(number(row, "n")) for row in rows})
    lines = []
    for tolerance in TOLERANCES:
        curves = fewest(rows, tolerance)
        for inputs, scale in dict.fromkeys(key[:2] for key in curves):
            some = [curve for key, curve in curves.items() if key[:2] == (inputs, scale)]
            medians = [float(np.median([curve[n] for curve in some])) if n in some[0] else None for n in lengths]
            grows = ["–", "–"]
            if len(some[0]) > 1:
                found = exponent(some)
                grows = [f"{found.value:.2f}", f"{found.low:.2f} … {found.high:.2f}"]
            lines.append([inputs, scale, f"{tolerance:.0%}", len(some), *medians, *grows])
    of = ["inputs", "logits over q·k", "error", "heads"]
    return table([*of, *(f"k at n = {n:,}" for n in lengths), "exponent", "95 %"], lines)


def maps(rows: Rows) -> str:
    """What k-conv matrices explain of the logits of the shipped heads: least, median and most of the heads."""
    shares = {f"explained_by_{k}": f"logits explained by {k} segments" for k in (1, 4, 16, 64)}
    shares |= {"on_first": "attention on the first token", "on_nearest": "attention on the 16 nearest tokens"}
    lines = []
    for n, group in grouped(rows, "n").items():
        for name, what in shares.items():
            values = np.quantile([number(row, name) for row in group], (0, 0.5, 1))
            lines.append([n, what, len(group), *values.tolist()])
    return table(["n", "share", "heads", "least", "median", "most"], lines)


def full_attention(rows: Rows) -> str:
    """Mean relative error of the heads of each layer, least and largest of the layers, and the encoder's output."""
    lines = []
    for (n, starts, k), group in grouped(rows, "n", "starts", "k").items():
        means = [number(row, "mean") for row in group if row["layer"] is not None]
        output = [number(row, "mean") for row in group if row["layer"] is None]
        lines.append([n, starts, k, f"{min(means):.2g} … {max(means):.2g}", *output])
    return table(["n", "starts", "k", "error of a layer's heads", "error of the output, all replaced"], lines)


def baselines(rows: Rows) -> str:
    """Best error of each method within a quarter of exact attention's time, and within its memory."""
    lines = []
    for n, group in grouped(rows, "n").items():
        measured: list[dict[str, Any]] = [
            {**row, **{name: number(row, name) for name in ("error", "seconds", "megabytes")}} for row in group
        ]
        records = [BaselineRecord(**{name: row[name] for name in BaselineRecord._fields}) for row in measured]
        found = {(one.inputs, one.method): one for one in within(records, "seconds", 0.25)}
        for one in within(records, "megabytes", 1.0):
            quick = found[one.inputs, one.method]
            lines.append([n, one.inputs, one.method, *(_best(best) for best in (quick, one))])
    return table(["n", "input", "method", "error in ¼ of exact's time", "in exact's memory"], lines)


def _best(record: BaselineRecord) -> str:
    return "refused or too dear" if record.refused else f"{record.error:.2g} (budget {record.budget:,})"


def perplexity_against_k(rows: Rows) -> str:
    """Perplexity of every text by starts and k, and over exact attention's."""
    lines = []
    for (n, text), group in grouped(rows, "n", "text").items():
        exact = [number(row, "perplexity") for row in group if row["starts"] == "exact"]
        for row in group:
            perplexity = number(row, "perplexity")
            lines.append([n, text, row["starts"], row["k"], perplexity, perplexity / exact[0] if exact else None])
    return table(["n", "essay", "starts", "k", "perplexity", "over exact"], lines)


def retrieval_against_k(rows: Rows) -> str:
    """Texts found again by starts and k."""
    columns = itemgetter("n", "starts", "k", "texts", "right", "share right", "mean_reciprocal_rank")
    shares = ({**row, "share right": number(row, "right") / number(row, "texts")} for row in rows)
    return table(["n", "starts", "k", "texts", "right", "share", "mean reciprocal rank"], map(columns, shares))


def classification(rows: Rows) -> str:
    """Return the share of texts answered rightly with its interval, and of pairs of texts in the right order."""
    lines = [
        [
            one.model,
            one.method,
            one.k,
            one.pairs,
            one.n,
            one.asked,
            one.value,
            f"{one.low:.2f} … {one.high:.2f}",
            one.ordered,
        ]
        for one in accuracies(rows)
    ]
    return table(
        ["model", "attention", "k", "pairs", "n", "texts", "accuracy", "95 % interval", "pairs of texts in order"],
        lines,
    )


def time_against_n(rows: Rows) -> str:
    """Milliseconds by method, a line for every length and kind of step."""
    methods = list(grouped(rows, "method"))
    lines = []
    for (n, training), group in grouped(rows, "n", "training").items():
        seconds = {row["method"]: number(row, "seconds") * 1e3 for row in group}
        lines.append([n, "training" if training else "forward", *(seconds.get(method) for method in methods)])
    return table(["n", "step", *methods], lines)


def training_speed(rows: Rows) -> str:
    """Tokens a second and memory of a training step by method and length."""
    trained = [row for row in rows if row["part"] == "training"]
    lines = []
    for method, group in grouped(trained, "method").items():
        by_n = {row["n"]: row for row in group}
        cells = [
            [by_n.get(n, {}).get(name) for n in grouped(trained, "n")] for name in ("tokens_per_second", "megabytes")
        ]
        lines.append([method, *cells[0], *cells[1]])
    lengths = [f"{n:,}" for n in grouped(trained, "n")]
    return table(
        ["trained with", *(f"tokens a second, n = {n}" for n in lengths), *(f"MB, n = {n}" for n in lengths)], lines
    )


def generation_speed(rows: Rows) -> str:
    """Tokens a second read and written, and memory, by length and attention; times over exact attention's."""
    lines = []
    for n, group in grouped([row for row in rows if row["part"] == "generation"], "n").items():
        exact = next(row for row in group if row["method"] == "exact")
        for row in group:
            lines.append([n, row["method"]])
            for name in ("read_per_second", "written_per_second"):
                lines[-1] += [row[name], number(row, name) / number(exact, name)]
            lines[-1] += [row["kept_megabytes"], row["megabytes"]]
    return table(
        [
            "n",
            "attention",
            "read a second",
            "over exact's",
            "written a second",
            "over exact's",
            "MB kept",
            "MB to read",
        ],
        lines,
    )


def whole_models(rows: Rows) -> str:
    """Tokens a second, share of the attention, time over exact's, memory and error by model, n and method."""
    lines = []
    for (model, n, name), one in timings(rows).items():
        cost = [one.tokens, f"{one.share:.0%}", one.quotient, one.of_attention, one.megabytes, one.error]
        lines.append([model, n, name, *cost, one.layers])
    quotients = ["whole over exact's", "attention over exact's"]
    return table(
        ["model", "n", "attention", "tokens a second", "share", *quotients, "MB", "error", "layers run"], lines
    )


def whole_models_searched(rows: Rows) -> str:
    """The least k tried within each tolerance, and the whole's time over exact's with it."""
    lines = []
    within = {tolerance: searched(rows, tolerance) for tolerance in TOLERANCES}
    for model, n, starts in within[TOLERANCES[0]]:
        found = []
        for tolerance in reversed(TOLERANCES):
            k, quotient = within[tolerance][model, n, starts]
            found += ["none below n" if k is None else k, quotient]
        lines.append([model, n, starts, *found])
    of = [f"{what} within {tolerance:.0%}" for tolerance in reversed(TOLERANCES) for what in ("k", "time over exact's")]
    return table(["model", "n", "starts", *of], lines)


def whole_models_overtaken(rows: Rows) -> str:
    """From which n on the whole model is faster than with exact attention."""
    found = overtakes(rows)
    return table(["model", "attention", "faster than with exact"], [[*key, where(found, *key)] for key in found])


def sparsek_variations(rows: Rows) -> str:
    """Distance from exact attention by variant, a column for every layer; with soft gates after the slash."""
    layers = list(grouped(rows, "layer"))
    lines = []
    for variant, group in grouped(rows, "variant").items():
        found = {row["layer"]: row for row in group}
        pairs = [[found[one]["distance"], found[one]["soft_distance"]] for one in layers if one in found]
        lines.append([variant, *(" / ".join(f"{x:.3f}" for x in pair if x is not None) for pair in pairs)])
    return table(["varied", *(f"layer {layer}" for layer in layers)], lines)
