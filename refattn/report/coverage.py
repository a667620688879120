"""Which rows of the ledger cover which item of the two papers, or why none does (ours).

An item is a definition, lemma, theorem, corollary, algorithm, figure, table or stated property, known by its name. A
number is given only where this package's own sources cite it: these follow the first version of the Conv-Basis paper as
far as we know it, were not checked against the papers' texts, and differ between versions. The SparseK paper's items
are named only. A definition is covered by the rows that compute with it and compare with something independent.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
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
    """An item of a paper, and the rows that cover it.

    Parameters
    ----------
    paper : str
        arXiv number.
    kind : str
        ``"definition"``, ``"lemma"``, ``"theorem"``, ``"corollary"``, ``"algorithm"``, ``"figure"``, ``"table"``, or
        ``"property"`` for a statement without a heading of its own.
    name : str
        What it is about.
    number : str
        As this package's sources cite it; empty where they cite none.
    rows : tuple of str
        Ids of the ledger.
    remark : str
        Why no row covers it, or what the rows leave out.
    """

    paper: str
    kind: str
    name: str
    number: str = ""
    rows: tuple[str, ...] = ()
    remark: str = ""

    @property
    def covered(self) -> bool:
        """Whether any row covers it."""
        return bool(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the item as plain data."""
        return asdict(self) | {"rows": list(self.rows)}


def _conv(kind: str, name: str, *rows: str, number: str = "", remark: str = "") -> Item:
    return Item(CONV, kind, name, number, rows, remark)


def _sparsek(kind: str, name: str, *rows: str, remark: str = "") -> Item:
    return Item(SPARSEK, kind, name, "", rows, remark)


_CONV_BASIS = (
    _conv("definition", "exact attention, D⁻¹ A V", "dense.definition", "dense.torch", number="1.1"),
    _conv("definition", "causal mask", "dense.causality", "dense.masked-rows"),
    _conv("definition", "convolution matrix conv(a)", "conv.fft-product"),
    _conv("definition", "sub-convolution matrix conv(a, m)", "conv.fft-product", "conv.additivity"),
    _conv("lemma", "conv(a) x by FFT in O(n log n)", "conv.fft-product", "conv.product-time"),
    _conv("lemma", "additivity, conv(a, m) + conv(b, m) = conv(a + b, m)", "conv.additivity"),
    _conv("definition", "k-conv basis", "conv.decomposition", "conv.decomposition-real"),
    _conv("lemma", "every lower-triangular matrix has one shortest conv basis", "conv.decomposition",
          "conv.decomposition-real"),
    _conv("lemma", "exp transform of a basis", "conv.exp-transform", "conv.exp-transform-differences"),
    _conv("definition", "(T, δ)-non-degenerate k-conv basis", "recover.known-starts", "recover.monotone",
          "recover.first-columns"),
    _conv("definition", "ε-close (T, δ)-non-degenerate k-conv basis", "recover.noise", "real.theorem-condition"),
    _conv("algorithm", "conv attention forward", "conv.algorithm-1-rows", "inference.exact-basis",
          "real.paper-equals-oracle", number="1"),
    _conv("algorithm", "Recover", "recover.known-starts", "recover.noise", "recover.first-columns", number="2"),
    _conv("algorithm", "Search", "recover.probes", "recover.known-starts", number="3"),
    _conv("lemma", "the predicate of Search is monotone", "recover.monotone"),
    _conv("lemma", "the recovered logits are within 2ε", "recover.logits"),
    _conv("lemma", "an error of the logits carried to the output", "inference.theorem", "inference.a-posteriori",
          "real.a-posteriori"),
    _conv("theorem", "inference: error 2 (e²ᵋ − 1) ‖V‖_∞, time O(k n d log n), memory O(kn + nd)", "inference.theorem",
          "inference.exact-basis", "fast.exact-basis", "inference.time", "recover.memory", "real.theorem-condition",
          number="4.4"),
    _conv("corollary", "k = n is exact for any input", "inference.k-equals-n"),
    _conv("corollary", "full (non-causal) attention by two bases", "inference.k-equals-n",
          "applications.encoder-exact"),
    _conv("property", "rotary embeddings make logits conv-like", "conv.rope", "applications.near-rope"),
    _conv("definition", "attention loss", "training.oracle"),
    _conv("lemma", "closed form of the loss's gradient, A1ᵀ p A2", "training.oracle", "training.loss-gradient"),
    _conv("lemma", "products with q = c hᵀ as d products with f", "training.loss-gradient",
          "training.attention-gradient"),
    _conv("theorem", "training: forward and gradient in near-linear time for ε-close logits", "training.loss-gradient",
          "training.attention-gradient", "training.perturbed", "training.time", number="5.6"),
    _conv("lemma", "low rank from a polynomial, after Alman and Song", "lowrank.feature-bound", "lowrank.features",
          "lowrank.real-heads"),
    _conv("algorithm", "causal mask by a running sum", "lowrank.causal", number="4"),
    _conv("definition", "row change by amortized constant", "lowrank.row-change", "lowrank.layouts", number="6.1"),
    _conv("algorithm", "row change by amortized constant", "lowrank.row-change", number="5"),
    _conv("definition", "continuous rows", "lowrank.continuous-rows", number="6.2"),
    _conv("algorithm", "continuous rows by a segment tree", "lowrank.continuous-rows", number="6"),
    _conv("definition", "r distinct columns", "lowrank.distinct-columns", number="6.3"),
    _conv("lemma", "product for r distinct columns", "lowrank.distinct-columns"),
    _conv("definition", "r distinct rows", "lowrank.distinct-rows", number="6.4"),
    _conv("lemma", "product for r distinct rows", "lowrank.distinct-rows"),
    _conv("property", "LongLoRA's shifted groups and sliding windows change few places a row", "lowrank.layouts"),
    _conv("theorem", "masked low-rank attention in near-linear time", "lowrank.linear-time", "lowrank.attention-bound",
          "lowrank.real-heads"),
    _conv("figure", "conv(a) x by FFT against the naive product: time and FLOPs", "conv.product-time",
          remark="FLOPs are counted by an experiment, not by a row"),
    _conv("figure", "relative error and FLOPs against k on a language model", "real.conv-structure",
          "model.conv-perplexity", remark="on SmolLM2-135M; FLOPs are counted by an experiment"),
    _conv("figure", "heat maps of attention with visible diagonals", "real.conv-structure", "real.theorem-condition",
          remark="the rows measure what the maps suggest"),
    _conv("figure", "drawings of conv matrices and of a basis", remark="illustrations: nothing to measure"),
    _conv("property", "left open: a bidirectional encoder", "applications.encoder-structure"),
    _conv("property", "left open: a language model with conv attention in every head", "model.conv-perplexity"),
    _conv("table", "tables",
          remark="none is known to us: this package's sources restate none, and the paper's text was not at hand"),
)  # fmt: skip

_SPARSEK = (
    _sparsek("definition", "the SparseK operator, a projection with a budget", "sparsek.two-solvers",
             "sparsek.optimality", "sparsek.convex-solver"),
    _sparsek("property", "closed form p = clip(z − τ, 0, 1)", "sparsek.two-solvers"),
    _sparsek("algorithm", "evaluation by sorting, O(m log m)", "sparsek.two-solvers"),
    _sparsek("property", "k = 1 is sparsemax", "sparsek.sparsemax"),
    _sparsek("property", "hard top-k is the limit", "sparsek.top-k-limit"),
    _sparsek("property", "Jacobian Diag(s) − s sᵀ/|s|", "sparsek.jacobian"),
    _sparsek("property", "thresholds of prefixes never fall", "sparsek.monotone"),
    _sparsek("algorithm", "incremental evaluation with two heaps, O(n log n)", "sparsek.two-heaps",
             "sparsek.threshold-time"),
    _sparsek("property", "a constant number of pairs for each query", "sparsek.constant-pairs"),
    _sparsek("definition", "SparseK attention: selection, gates, one softmax", "sparsek.attention", "sparsek.causality",
             "sparsek.fast-causality"),
    _sparsek("definition", "SparseK with a sliding window", "sparsek.attention", "sparsek.dense-limit"),
    _sparsek("definition", "scoring network with timestep normalisation", "sparsek.running-moments",
             "sparsek.gradients"),
    _sparsek("definition", "straight-through (hard) selection", "sparsek.attention"),
    _sparsek("property", "training in linear time", "sparsek.linear-time", "sparsek.linear-backward"),
    _sparsek("property", "training in linear memory", "sparsek.linear-memory"),
    _sparsek("property", "generation in constant memory", "sparsek.cache-memory", "sparsek.cache-replay"),
    _sparsek("algorithm", "fused kernel, faster than exact attention", "sparsek.speed", "sparsek.fast",
             remark="ours runs on processors; the paper's Triton kernel on a GPU is not run"),
    _sparsek("figure", "drawing of the operator and of the module", remark="an illustration: nothing to measure"),
    _sparsek("figure", "speed of training and inference against length", "sparsek.linear-time", "sparsek.speed",
             remark="on processors, against PyTorch's exact attention on the same ones"),
    _sparsek("table", "language models trained from scratch: perplexity by length",
             remark="needs pre-training of language models on GPUs, which is out of this package's reach"),
    _sparsek("table", "extrapolation to longer texts", remark="needs the models trained from scratch"),
    _sparsek("table", "pretrained models: perplexity with SparseK", "sparsek.model-gap-256", "sparsek.model-gap-128",
             "sparsek.model-gap-128-shared", "sparsek.model-gap-256-long", "sparsek.model-gap-128-long",
             remark="on SmolLM2-135M, only the scoring network learned; the paper's models and texts are not run"),
    _sparsek("table", "retrieval from a long context", "sparsek.model-passkey"),
    _sparsek("table", "downstream tasks", remark="needs the paper's models, fine-tuned; of tasks, a passkey is run"),
)  # fmt: skip

COVERAGE: tuple[Item, ...] = _CONV_BASIS + _SPARSEK
"""All items, in the papers' order."""
