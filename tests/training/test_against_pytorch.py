"""A small Llama follows PyTorch's loss curve from the same weights and batches.

The PyTorch side is written out here, from the definition: nothing of this package computes in it.
"""

import numpy as np
import pytest
from lengths import CAMPAIGN

from refattn.models import Decoder, LlamaConfig
from refattn.training import AdamW, Trainer, WarmupCosine, Windows

torch = pytest.importorskip("torch")

SIZES = {
    "short": (LlamaConfig(2, 16, 40, 50, 4, 2, 4, 32, 1e4, 1e-5), 32, 4, 12),
    "campaign": (LlamaConfig(4, 128, 344, 256, 4, 2, 32, 256, 1e4, 1e-5), 256, 4, 200),
}
"""Configuration, n, rows and steps."""
TOP, WARMUP, LEAST, DECAY = 3e-3, 4, 3e-4, 0.1


def rms_norm(x, gain, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain


def turned(x, base):
    """Turn pairs of neighbours as complex numbers; x is (rows, heads, n, d)."""
    n, d = x.shape[-2:]
    angles = torch.outer(torch.arange(n, dtype=x.dtype), base ** (-torch.arange(0, d, 2, dtype=x.dtype) / d))
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], d // 2, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def torch_loss(config, weights, tokens, targets):
    """Mean cross-entropy of a Llama with a tied output."""
    rows, n = tokens.shape
    x = weights["token_embd.weight"][tokens]
    for layer in range(config.n_layers):
        w = {name.split(".")[2]: array for name, array in weights.items() if name.startswith(f"blk.{layer}.")}
        a = rms_norm(x, w["attn_norm"], config.norm_eps)
        q, k, v = (
            (a @ w[name].T).reshape(rows, n, -1, config.head_width).transpose(1, 2)
            for name in ("attn_q", "attn_k", "attn_v")
        )
        q, k = turned(q, config.rope_base), turned(k, config.rope_base)
        k, v = (one.repeat_interleave(config.n_heads // config.n_kv_heads, dim=1) for one in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + out.transpose(1, 2).reshape(rows, n, -1) @ w["attn_output"].T
        b = rms_norm(x, w["ffn_norm"], config.norm_eps)
        x = x + (torch.nn.functional.silu(b @ w["ffn_gate"].T) * (b @ w["ffn_up"].T)) @ w["ffn_down"].T
    logits = rms_norm(x, weights["output_norm.weight"], config.norm_eps) @ weights["token_embd.weight"].T
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def torch_curve(config, parameters, windows, steps):
    """Losses of PyTorch's own optimiser and schedule, the gradients clipped to norm 1."""
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in parameters.items()}
    groups = [
        {"params": [one for one in weights.values() if one.ndim >= 2], "weight_decay": DECAY},
        {"params": [one for one in weights.values() if one.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=TOP, betas=(0.9, 0.95), eps=1e-8)
    rates = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1.0, total_iters=WARMUP - 1),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - WARMUP, LEAST),
        ],
        [WARMUP],
    )
    losses = []
    for step in range(steps):
        batch = windows(step)
        loss = torch_loss(config, weights, torch.tensor(batch.tokens), torch.tensor(batch.targets))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(one.grad.square().sum() for one in weights.values()))
        for one in weights.values():  # PyTorch's own clipping divides by norm + 1e-6
            one.grad /= norm.clamp(min=1.0)
        optimizer.step()
        rates.step()
        losses.append(float(loss.detach()))
    return np.array(losses)


@pytest.mark.slow
def test_the_loss_curve_is_pytorchs():
    config, n, rows, steps = SIZES["campaign" if CAMPAIGN else "short"]
    text = np.random.default_rng(0).zipf(1.5, size=40 * n) % config.vocab_size
    windows, model = Windows(text, n, rows, seed=0), Decoder.initial(config, seed=1, dtype=np.float64)
    theirs = torch_curve(config, model.parameters, windows, steps)
    optimizer = AdamW(model.parameters, weight_decay=DECAY)
    trainer = Trainer(model, windows, optimizer, WarmupCosine(TOP, steps, WARMUP, LEAST))
    ours = np.array([trainer.advance().loss for _ in range(steps)])
    print(f"largest relative difference {np.abs(ours / theirs - 1).max():.2g} over {steps} steps")
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert theirs[-3:].mean() < theirs[0] - 0.1
