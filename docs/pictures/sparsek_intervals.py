"""SparseK attention: which pairs each query attends to, each over one interval of queries, and with what gate."""

import numpy as np
from style import BLUE, INK, ORANGE, RED, plt

from refattn.sparsek import prefix_thresholds, selection_intervals

N, N_SELECT, WINDOW = 48, 5, 6


def draw():
    """Return the figure: the pairs on the left, scores and threshold on the right."""
    scores = 0.8 * np.random.default_rng(7).standard_normal(N) + 0.03 * np.arange(N)
    tau = prefix_thresholds(scores, N_SELECT)
    enter, exit = selection_intervals(scores, N_SELECT, WINDOW)
    figure, (pairs, beside) = plt.subplots(1, 2, figsize=(9.2, 4.4), width_ratios=(1, 1.1), layout="constrained")
    draw_pairs(pairs, scores, tau, enter, exit)
    draw_scores(beside, scores, tau, enter, exit)
    return figure


def draw_pairs(axis, scores, tau, enter, exit) -> None:
    """Draw the window, and every selected pair by its gate."""
    for query in range(N):
        keys = np.arange(max(query - WINDOW + 1, 0), query + 1)
        axis.scatter(keys, np.full(keys.shape, query), s=17, marker="s", color=BLUE, linewidths=0)
    for key in range(N):
        queries = np.arange(enter[key], exit[key])
        gates = np.clip(scores[key] - tau[queries - WINDOW], 0, 1)
        colours = [plt.matplotlib.colors.to_rgba(ORANGE, 0.15 + 0.85 * gate) for gate in gates]
        axis.scatter(np.full(queries.shape, key), queries, s=17, marker="s", color=colours, linewidths=0)
    axis.set(xlabel="key", ylabel="query", xlim=(-1, N), ylim=(N, -1), aspect="equal")
    axis.set_title("what each query attends to")
    axis.scatter([], [], s=17, marker="s", color=BLUE, label=f"window of {WINDOW}")
    axis.scatter([], [], s=17, marker="s", color=ORANGE, label=f"selected, at most {N_SELECT}; pale: small gate")
    axis.legend(loc="upper right")


def draw_scores(axis, scores, tau, enter, exit) -> None:
    """Draw every score over the queries that select it, and the threshold, which only rises."""
    for key in range(N):
        if exit[key] > enter[key]:
            axis.plot([enter[key], exit[key]], [scores[key]] * 2, color=ORANGE, lw=2.5, solid_capstyle="butt")
            axis.plot([key, enter[key]], [scores[key]] * 2, color=BLUE, lw=1)
        else:
            axis.plot([key, key + WINDOW], [scores[key]] * 2, color=BLUE, lw=1)
    queries = np.arange(N)
    seen = queries >= WINDOW + N_SELECT
    threshold = tau[queries[seen] - WINDOW]
    axis.step(queries[seen], threshold, where="post", color=RED, lw=1.6, label="threshold τ: gate 0 below")
    axis.step(queries[seen], threshold + 1, where="post", color=INK, lw=0.8, ls=":", label="τ + 1: gate 1 above")
    axis.set(xlabel="query", ylabel="score of the pair", xlim=(0, N))
    axis.set_title("a pair: in the window, then selected until evicted")
    axis.legend(loc="lower right")
