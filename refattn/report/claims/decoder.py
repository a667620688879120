"""Claims about a decoder that trains: the gradient of every parameter, through every layer (ours)."""

from __future__ import annotations

import math

import numpy as np

from refattn._validation import FloatArray
from refattn.models import Decoder, DifferentiableAttention, GPT2Config, LlamaConfig, SparseKAttention
from refattn.report.ledger import Measurement, claim, fingerprint
from refattn.testing import check_gradients, tolerance

LLAMA = LlamaConfig(
    n_layers=2, width=8, ffn_width=12, vocab_size=11, n_heads=4, n_kv_heads=2, head_width=4, context_length=32,
    rope_base=500.0, norm_eps=1e-5,
)  # fmt: skip
GPT2 = GPT2Config(n_layers=2, width=8, ffn_width=12, vocab_size=11, n_heads=2, context_length=32)


def _worst_error(
    config: LlamaConfig | GPT2Config, n: int, step: float, attention: DifferentiableAttention | None = None
) -> tuple[float, list[FloatArray]]:
    """Return the worst error of a parameter's gradient, and what it was measured on: random weights, texts, a mask."""
    rng = np.random.default_rng(0)
    model = Decoder.initial(config, 0, np.float64, attention=attention)
    for tensor in model.parameters.values():
        tensor += 0.3 * rng.standard_normal(tensor.shape)
    tokens, targets = rng.integers(0, config.vocab_size, (2, 2, n))
    weights = rng.integers(0, 3, (2, n))
    start = {name: tensor.copy() for name, tensor in model.parameters.items()}
    _, gradients = model.loss_and_gradients(tokens, targets, weights, attention)

    def loss(**parameters: FloatArray) -> FloatArray:
        model.parameters.update(parameters)
        return np.array([model.loss(tokens, targets, weights, attention)])

    errors = check_gradients(
        loss,
        lambda upstream: {name: upstream[0] * one for name, one in gradients.items()},
        start,
        rtol=math.inf,
        step=step,
        directions=1,
    )
    return max(errors.values()), [tokens, targets, weights, *start.values()]


@claim("decoder.gradients", "ours",
       "The gradient of a decoder's loss with respect to every parameter, of the Llama and of the GPT-2 family, is its"
       " derivative.",
       check="worst relative error of a parameter's gradient against fourth-order central differences, beyond rounding",
       planted="the gradient of a norm's input off by 0.1 %")  # fmt: skip
def _gradients(quick: bool) -> Measurement:
    n = 8 if quick else 24
    (llama, inputs), (gpt2, _) = (_worst_error(config, n, 1e-3) for config in (LLAMA, GPT2))
    return Measurement(
        f"2 layers, width 8, 2 texts of {n} tokens, masked, seed 0; {fingerprint(*inputs)}",
        max(llama, gpt2),
        at_most=tolerance("differences").rtol,
        detail={"Llama": llama, "GPT-2": gpt2},
    )


@claim("decoder.sparsek-gradients", "arXiv 2406.16747, SparseK attention trained with its scoring network",
       "The gradient of a decoder's loss reaches the scorer of SparseK attention, and the layers below through it.",
       check="worst relative error of a parameter's gradient against fourth-order central differences, beyond rounding",
       planted="the gradient of the scores off by 0.1 %",
       covers=("scoring network with timestep normalisation",))  # fmt: skip
def _sparsek_gradients(quick: bool) -> Measurement:
    n, attention = 12 if quick else 24, SparseKAttention(n_select=3, window=3)
    worst, inputs = _worst_error(LLAMA, n, 1e-5, attention)  # a small step, so that no kink is met
    return Measurement(
        f"2 layers, width 8, 3 + 3 pairs, 2 texts of {n} tokens, masked, seed 0; {fingerprint(*inputs)}",
        worst,
        at_most=1e-6,
    )
