"""Tables of the results page, as Markdown, from records (ours).

Every function takes the rows of one experiment, ``Records.rows()``, and returns text; nothing is computed but medians,
quantiles, shares and quotients of what the records hold.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from refattn.experiments.experiment import Record

Rows = Sequence[Record]

SMALL = 0.1
"""A relative error below which a head counts as well represented."""


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table.

    Examples
    --------
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


def grouped(rows: Rows, key: Callable[[Record], Hashable]) -> dict[Any, list[Record]]:
    """Return the rows by a key, in the order of first appearance."""
    groups: dict[Any, list[Record]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
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
    for n, group in grouped(rows, lambda row: row["n"]).items():
        one = {str(row["method"]): row for row in group}
        if len(one) < 2:
            continue
        fft, direct = one["fft"], one["direct"]
        times = [number(row, "seconds") * 1e6 for row in (direct, fft)]
        flops = [number(row, "flops_per_token") for row in (direct, fft)]
        difference = max(number(fft, "difference"), number(direct, "difference"))
        lines.append([n, *flops, flops[0] / flops[1], *times, times[0] / times[1], difference])
    return table(
        ["n", "operations a token, direct", "by FFT", "quotient", "µs, direct", "by FFT", "quotient", "difference"],
        lines,
    )


def numerical_domain(rows: Rows) -> str:
    """Rows lost by a plain FFT and kept by the guard."""
    header = [
        "n",
        "dtype",
        "logit deviation",
        "rows lost",
        "worst error, plain",
        "rows recomputed",
        "worst error, guarded",
    ]
    names = ("n", "dtype", "deviation", "rows_lost", "plain_error", "rows_recomputed", "guarded_error")
    ordered = sorted(rows, key=lambda row: (number(row, "n"), str(row["dtype"]), number(row, "deviation")))
    return table(header, ([row[name] for name in names] for row in ordered))


def starts_label(row: Record) -> str:
    """Return how the starts of a row of ``error-against-k`` were chosen, in a few words."""
    if row["starts"] != "recover":
        return str(row["starts"])
    eps = ", ε = δ/(5T)" if row["eps"] else ""
    delta = "δ tiny" if number(row, "delta") < 1e-3 else f"δ = {row['delta']} Tσ{eps}"
    return f"Recover, T = {row['probe']}, {delta}"


def error_against_k(rows: Rows) -> str:
    """Errors over all heads for given k; what Recover finds is in `recovered`."""
    chosen = [row for row in rows if row["starts"] != "recover"]
    lines = []
    for (n, starts, k), group in grouped(chosen, lambda row: (row["n"], row["starts"], row["k"])).items():
        low, high = np.quantile([number(row, "error") for row in group], (0.1, 0.9))
        logits = median(group, "logits") if starts == "best" else None
        share, flops = f"n/{round(n / k)}", median(group, "flops")
        lines.append(
            [
                n,
                starts,
                f"{k:,} = {share}",
                len(group),
                logits,
                median(group, "error"),
                f"{low:.2g} … {high:.2g}",
                below(group),
                flops,
            ]
        )
    header = ["n", "starts", "k", "heads", "logits", "error", "10 % … 90 %", f"heads below {SMALL}", "operations"]
    return table(header, lines)


def recovered(rows: Rows) -> str:
    """What Recover finds with room for n/8 segments: how many, and the error they leave."""
    chosen = [row for row in rows if row["starts"] == "recover"]
    lines = []
    for (n, label), group in grouped(chosen, lambda row: (row["n"], starts_label(row))).items():
        most = [
            max(one, key=lambda row: number(row, "k"))
            for one in grouped(group, lambda row: (row["layer"], row["head"])).values()
        ]
        ks = [int(number(row, "k")) for row in most]
        lines.append(
            [
                n,
                label,
                len(most),
                f"{min(ks):,} … {int(np.median(ks)):,} … {max(ks):,}",
                median(most, "error"),
                below(most),
            ]
        )
    return table(["n", "search", "heads", "k found: least, median, most", "error", f"heads below {SMALL}"], lines)


def maps(rows: Rows) -> str:
    """What k-conv matrices explain of the logits of the shipped heads: least, median and most of the heads."""
    lines = []
    for n, group in grouped(rows, lambda row: row["n"]).items():
        for name in (
            "explained_by_1",
            "explained_by_4",
            "explained_by_16",
            "explained_by_64",
            "on_first",
            "on_nearest",
        ):
            values = np.array([number(row, name) for row in group])
            what = f"logits explained by {name[13:]} segments" if name.startswith("explained") else _MASS[name]
            lines.append([n, what, len(group), *(float(value) for value in np.quantile(values, (0, 0.5, 1)))])
    return table(["n", "share", "heads", "least", "median", "most"], lines)


_MASS = {"on_first": "attention on the first token", "on_nearest": "attention on the 16 nearest tokens"}


def full_attention(rows: Rows) -> str:
    """Mean relative error of the heads of each layer, least and largest of the layers, and the encoder's output."""
    lines = []
    for (n, starts, k), group in grouped(rows, lambda row: (row["n"], row["starts"], row["k"])).items():
        means = [number(row, "mean") for row in group if row["layer"] is not None]
        output = [number(row, "mean") for row in group if row["layer"] is None]
        lines.append([n, starts, k, f"{min(means):.2g} … {max(means):.2g}", *output])
    return table(["n", "starts", "k", "error of a layer's heads", "error of the output, all replaced"], lines)


def baselines(rows: Rows) -> str:
    """Best error of each method within a quarter of exact attention's time, and within its memory."""
    from refattn.experiments.compared.baselines import BaselineRecord, within

    lines = []
    for n, group in grouped(rows, lambda row: row["n"]).items():
        records = [
            BaselineRecord(
                str(row["inputs"]), str(row["method"]), int(number(row, "budget")), number(row, "error"),
                number(row, "seconds"), number(row, "megabytes"), str(row["refused"]),
            )
            for row in group
        ]  # fmt: skip
        found = {(one.inputs, one.method): one for one in within(records, "seconds", 0.25)}
        for one in within(records, "megabytes", 1.0):
            quick = found[one.inputs, one.method]
            lines.append([n, one.inputs, one.method, *(_best(best) for best in (quick, one))])
    return table(["n", "input", "method", "error in ¼ of exact's time", "in exact's memory"], lines)


def _best(record: Any) -> str:
    return "refused or too dear" if record.refused else f"{record.error:.2g} (budget {record.budget:,})"


def perplexity_against_k(rows: Rows) -> str:
    """Perplexity of every text by starts and k, and over exact attention's."""
    lines = []
    for (n, text), group in grouped(rows, lambda row: (row["n"], row["text"])).items():
        exact = {number(row, "perplexity") for row in group if row["starts"] == "exact"}
        for row in group:
            quotient = number(row, "perplexity") / exact.copy().pop() if exact else None
            lines.append([n, text, row["starts"], row["k"], number(row, "perplexity"), quotient])
    return table(["n", "essay", "starts", "k", "perplexity", "over exact"], lines)


def retrieval_against_k(rows: Rows) -> str:
    """Texts found again by starts and k."""
    return table(
        ["n", "starts", "k", "texts", "right", "share", "mean reciprocal rank"],
        (
            [
                row["n"],
                row["starts"],
                row["k"],
                row["texts"],
                row["right"],
                number(row, "right") / number(row, "texts"),
                row["mean_reciprocal_rank"],
            ]
            for row in rows
        ),
    )


def time_against_n(rows: Rows) -> str:
    """Milliseconds by method, a line for every length and kind of step."""
    methods = list(grouped(rows, lambda row: row["method"]))
    lines = []
    for (n, training), group in grouped(rows, lambda row: (row["n"], row["training"])).items():
        seconds = {str(row["method"]): number(row, "seconds") * 1e3 for row in group}
        lines.append([n, "training" if training else "forward", *(seconds.get(method) for method in methods)])
    return table(["n", "step", *methods], lines)


def sparsek_perplexity(rows: Rows) -> str:
    """Perplexities with their intervals, and the share of the window's gap that is left."""
    from refattn.experiments.sparsek.shipped import perplexity_table

    return "\n".join(perplexity_table(rows))


def sparsek_passkey(rows: Rows) -> str:
    """Passkeys found, by length and attention."""
    from refattn.experiments.sparsek.shipped import passkey_table

    return "\n".join(passkey_table(rows))


def sparsek_variations(rows: Rows) -> str:
    """Distance from exact attention by variant, a column for every layer; with soft gates after the slash."""
    layers = list(grouped(rows, lambda row: row["layer"]))
    lines = []
    for variant, group in grouped(rows, lambda row: row["variant"]).items():
        found = {row["layer"]: row for row in group}
        cells = [
            " / ".join(
                f"{number(found[layer], name):.3f}"
                for name in ("distance", "soft_distance")
                if found[layer][name] is not None
            )
            for layer in layers
            if layer in found
        ]
        lines.append([variant, *cells])
    return table(["varied", *(f"layer {layer}" for layer in layers)], lines)
