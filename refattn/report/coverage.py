"""Which rows of the ledger cover which item of the two papers, or why none does (ours).

An item is a definition, lemma, theorem, corollary, algorithm, figure, table or stated property, known by its name. A
number is given only where this package's own sources cite it: these follow the first version of the Conv-Basis paper as
far as we know it, were not checked against the papers' texts, and differ between versions. The SparseK paper's items
are named only. A definition is covered by the rows that compute with it and compare with something independent.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

CONV, SPARSEK = "2405.05219", "2406.16747"

PAPERS: dict[str, str] = {
    CONV: "Conv-Basis: A New Paradigm for Efficient Attention Inference and Gradient Computation in Transformers",
    SPARSEK: "Sparser is Faster and Less is More: Efficient Sparse Attention for Long-Range Transformers",
}
"""Titles of the two papers, by arXiv number."""


def paper_of(source: str) -> str:
    """Return the arXiv number that a claim's source names, or ``"ours"``.

    Examples
    --------
    >>> paper_of("arXiv 2405.05219, Algorithm 1"), paper_of("ours")
    ('2405.05219', 'ours')
    """
    found = re.match(r"arXiv (\d{4}\.\d{4,5})", source)
    return found.group(1) if found else "ours"


@dataclass(frozen=True)
class Item:
    """An item of a paper: its kind, ``"property"`` where it has no heading of its own, and what it is about.

    The number is as this package's sources cite it, if they do; the remark says why no row covers it, or what they
    leave out.
    """

    paper: str
    kind: str
    name: str
    number: str = ""
    rows: tuple[str, ...] = ()
    remark: str = ""

    @property
    def label(self) -> str:
        """What a claim calls it: kind and number, or else the name."""
        return f"{self.kind} {self.number}" if self.number else self.name

    @property
    def covered(self) -> bool:
        """Whether any row covers it."""
        return bool(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the item as plain data."""
        return asdict(self) | {"rows": list(self.rows)}


_ITEMS = (
    Item(CONV, "definition", "exact attention, D⁻¹ A V", "1.1"),
    Item(CONV, "definition", "causal mask"),
    Item(CONV, "definition", "convolution matrix conv(a)"),
    Item(CONV, "definition", "sub-convolution matrix conv(a, m)"),
    Item(CONV, "lemma", "conv(a) x by FFT in O(n log n)"),
    Item(CONV, "lemma", "additivity, conv(a, m) + conv(b, m) = conv(a + b, m)"),
    Item(CONV, "definition", "k-conv basis"),
    Item(CONV, "lemma", "every lower-triangular matrix has one shortest conv basis"),
    Item(CONV, "lemma", "exp transform of a basis"),
    Item(CONV, "definition", "(T, δ)-non-degenerate k-conv basis"),
    Item(CONV, "definition", "ε-close (T, δ)-non-degenerate k-conv basis"),
    Item(CONV, "algorithm", "conv attention forward", "1"),
    Item(CONV, "algorithm", "Recover", "2"),
    Item(CONV, "algorithm", "Search", "3"),
    Item(CONV, "lemma", "the predicate of Search is monotone"),
    Item(CONV, "lemma", "the recovered logits are within 2ε"),
    Item(CONV, "lemma", "an error of the logits carried to the output"),
    Item(CONV, "theorem", "inference: error 2 (e²ᵋ − 1) ‖V‖_∞, time O(k n d log n), memory O(kn + nd)", "4.4"),
    Item(CONV, "corollary", "k = n is exact for any input"),
    Item(CONV, "corollary", "full (non-causal) attention by two bases"),
    Item(CONV, "property", "rotary embeddings make logits conv-like"),
    Item(CONV, "definition", "attention loss"),
    Item(CONV, "lemma", "closed form of the loss's gradient, A1ᵀ p A2"),
    Item(CONV, "lemma", "products with q = c hᵀ as d products with f"),
    Item(CONV, "theorem", "training: forward and gradient in near-linear time for ε-close logits", "5.6"),
    Item(CONV, "lemma", "low rank from a polynomial, after Alman and Song"),
    Item(CONV, "algorithm", "causal mask by a running sum", "4"),
    Item(CONV, "definition", "row change by amortized constant", "6.1"),
    Item(CONV, "algorithm", "row change by amortized constant", "5"),
    Item(CONV, "definition", "continuous rows", "6.2"),
    Item(CONV, "algorithm", "continuous rows by a segment tree", "6"),
    Item(CONV, "definition", "r distinct columns", "6.3"),
    Item(CONV, "lemma", "product for r distinct columns"),
    Item(CONV, "definition", "r distinct rows", "6.4"),
    Item(CONV, "lemma", "product for r distinct rows"),
    Item(CONV, "property", "LongLoRA's shifted groups and sliding windows change few places a row"),
    Item(CONV, "theorem", "masked low-rank attention in near-linear time"),
    Item(CONV, "figure", "conv(a) x by FFT against the naive product: time and FLOPs",
         remark="FLOPs are counted by an experiment, not by a row"),
    Item(CONV, "figure", "relative error and FLOPs against k on a language model",
         remark="on SmolLM2-135M, at the scale of the authors' code and at the model's; FLOPs are counted by an"
                " experiment; what the paper's later versions measure beyond this is not known to us"),
    Item(CONV, "figure", "heat maps of attention with visible diagonals",
         remark="the authors' code draws centred logits, not attention; the rows measure what the maps suggest"),
    Item(CONV, "figure", "drawings of conv matrices and of a basis", remark="illustrations: nothing to measure"),
    Item(CONV, "figure", "classification accuracy against k",
         remark="a later version is said to have it, on IMDB with Llama-3-8B; the rows are about single sentences of"
                " other reviews, SmolLM2-135M and an encoder"),
    Item(CONV, "property", "left open: a bidirectional encoder"),
    Item(CONV, "property", "left open: a language model with conv attention in every head"),
    Item(CONV, "property", "left open: a model trained with conv attention",
         remark="small decoders that two cores can train; the paper trains none"),
    Item(CONV, "table", "tables",
         remark="none is known to us: this package's sources restate none, and the paper's text was not at hand"),
    Item(SPARSEK, "definition", "the SparseK operator, a projection with a budget"),
    Item(SPARSEK, "property", "closed form p = clip(z − τ, 0, 1)"),
    Item(SPARSEK, "algorithm", "evaluation by sorting, O(m log m)"),
    Item(SPARSEK, "property", "k = 1 is sparsemax"),
    Item(SPARSEK, "property", "hard top-k is the limit"),
    Item(SPARSEK, "property", "Jacobian Diag(s) − s sᵀ/|s|"),
    Item(SPARSEK, "property", "thresholds of prefixes never fall"),
    Item(SPARSEK, "algorithm", "incremental evaluation with two heaps, O(n log n)"),
    Item(SPARSEK, "property", "a constant number of pairs for each query"),
    Item(SPARSEK, "definition", "SparseK attention: selection, gates, one softmax"),
    Item(SPARSEK, "definition", "SparseK with a sliding window"),
    Item(SPARSEK, "definition", "scoring network with timestep normalisation"),
    Item(SPARSEK, "definition", "straight-through (hard) selection"),
    Item(SPARSEK, "property", "training in linear time"),
    Item(SPARSEK, "property", "training in linear memory"),
    Item(SPARSEK, "property", "generation in constant memory"),
    Item(SPARSEK, "algorithm", "fused kernel, faster than exact attention",
         remark="ours runs on processors; the paper's Triton kernel on a GPU is not run"),
    Item(SPARSEK, "figure", "drawing of the operator and of the module", remark="an illustration: nothing to measure"),
    Item(SPARSEK, "figure", "speed of training and inference against length",
         remark="on processors, against PyTorch's exact attention on the same ones"),
    Item(SPARSEK, "table", "language models trained from scratch: perplexity by length",
         remark="needs pre-training of language models on GPUs, which is out of this package's reach"),
    Item(SPARSEK, "table", "extrapolation to longer texts",
         remark="on a recall task, by small decoders trained from scratch; the paper's models and texts are not run"),
    Item(SPARSEK, "table", "pretrained models: perplexity with SparseK",
         remark="on SmolLM2-135M, only the scoring network learned; the paper's models and texts are not run"),
    Item(SPARSEK, "table", "retrieval from a long context"),
    Item(SPARSEK, "table", "downstream tasks",
         remark="needs the paper's models, fine-tuned; of tasks, a passkey, recall and film reviews are run"),
)  # fmt: skip


def coverage() -> tuple[Item, ...]:
    """Return all items in the papers' order, each with the rows whose claims say that they cover it."""
    from refattn.report.claims import ALL

    return tuple(replace(item, rows=tuple(c.id for c in ALL if item.label in c.covers)) for item in _ITEMS)
