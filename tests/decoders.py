"""Small decoders of both families with their batches, and the same in PyTorch: what autograd differentiates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn.models import Decoder, GPT2Config, LlamaConfig

LLAMA = LlamaConfig(
    n_layers=2, width=16, ffn_width=24, vocab_size=31, n_heads=4, n_kv_heads=2, head_width=6, context_length=64,
    rope_base=500.0, norm_eps=1e-5,
)  # fmt: skip
GPT2 = GPT2Config(n_layers=2, width=16, ffn_width=24, vocab_size=31, n_heads=4, context_length=64)
CONFIGS = {"llama": LLAMA, "gpt2": GPT2}


class Batch(NamedTuple):
    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]


def random_batch(seed: int = 0, shape: tuple[int, int] = (3, 20)) -> Batch:
    """Tokens, targets, and weights of which every third is zero; those targets are no tokens."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, 31, (2, *shape))
    weights = rng.uniform(0.1, 1, shape) * (np.arange(shape[1]) % 3 > 0)
    return Batch(tokens, np.where(weights > 0, targets, -100), weights)


def random_decoder(config: LlamaConfig | GPT2Config, *, tied: bool = True, attention: Any = None) -> Decoder:
    """Weights of a size at which every step is well away from linear."""
    model = Decoder.initial(config, 0, np.float64, tied=tied, attention=attention)
    rng = np.random.default_rng(1)
    for name, tensor in model.parameters.items():
        tensor += (0.05 if name.endswith("slope") else 0.3) * rng.standard_normal(tensor.shape)
    return model


def torch_loss_and_gradients(
    config: LlamaConfig | GPT2Config, parameters: dict[str, NDArray[Any]], tokens: Any, targets: Any, weights: Any
) -> tuple[float, dict[str, NDArray[Any]]]:
    """Loss and autograd's gradient of every parameter."""
    import torch

    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in parameters.items()}
    loss = torch_loss(config, tensors, *(torch.as_tensor(array) for array in (tokens, targets, weights)))
    loss.backward()
    return loss.item(), {name: np.asarray(tensor.grad) for name, tensor in tensors.items()}


def torch_loss(config: LlamaConfig | GPT2Config, p: dict[str, Any], tokens: Any, targets: Any, weights: Any) -> Any:
    import torch
    from torch.nn import functional as F

    batch, n = tokens.shape
    width, d, eps = config.width, config.head_width, config.norm_eps
    is_llama = isinstance(config, LlamaConfig)

    def linear(x: Any, name: str) -> Any:
        return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def norm(x: Any, name: str) -> Any:
        if is_llama:
            return F.rms_norm(x, (width,), p[f"{name}.weight"], eps)
        return F.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"], eps)

    def turned(x: Any) -> Any:
        """Pairs of neighbours as complex numbers, times ``exp(i angle)``."""
        if not isinstance(config, LlamaConfig):
            return x
        frequency = 1.0 / config.rope_base ** (torch.arange(0, d, 2, dtype=torch.float64) / d)
        angle = torch.outer(torch.arange(n, dtype=torch.float64), frequency)
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], d // 2, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle).to(pairs.dtype)).flatten(-2)

    x = F.embedding(tokens, p["token_embd.weight"])
    if not is_llama:
        x = x + p["position_embd.weight"][:n]
    for layer in range(config.n_layers):
        name = f"blk.{layer}."
        a = norm(x, name + "attn_norm")
        q, k, v = (linear(a, f"{name}attn_{which}").view(batch, n, -1, d).transpose(1, 2) for which in "qkv")
        y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True, enable_gqa=True)
        x = x + linear(y.transpose(1, 2).reshape(batch, n, -1), name + "attn_output")
        b = norm(x, name + "ffn_norm")
        if is_llama:
            inner = F.silu(linear(b, name + "ffn_gate")) * linear(b, name + "ffn_up")
        else:
            inner = F.gelu(linear(b, name + "ffn_up"), approximate="tanh")
        x = x + linear(inner, name + "ffn_down")
    logits = norm(x, "output_norm") @ p.get("output.weight", p["token_embd.weight"]).T
    hard = not targets.is_floating_point()  # else the probability of every token
    wanted = targets.flatten().clamp(0) if hard else targets.flatten(0, 1)
    losses = F.cross_entropy(logits.flatten(0, 1), wanted, reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()
