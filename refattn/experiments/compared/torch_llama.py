"""The Llama decoder in PyTorch, with its own exact attention: what ours is timed beside (ours; needs PyTorch).

The weights are copied, in their dtype. For training `loss` takes a batch of texts; for generation `hidden` takes
one text chunk by chunk, and keeps keys and values in tensors with room for `n_most` tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from refattn._threads import thread_count
from refattn._validation import FloatArray
from refattn.models import LlamaConfig
from refattn.models.layers.named import within


class TorchLlama:
    """A decoder's parameters as tensors, the turns of `n_most` positions, and room for as many tokens."""

    def __init__(self, config: LlamaConfig, parameters: Mapping[str, FloatArray], n_most: int) -> None:
        import torch

        torch.set_num_threads(thread_count())
        self._torch: Any = torch
        self.config = config
        self.parameters = {name: torch.tensor(array) for name, array in parameters.items()}
        d, dtype = config.head_width, self.parameters["token_embd.weight"].dtype
        rates = config.rope_base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        angle = torch.outer(torch.arange(n_most, dtype=torch.float64), rates)
        self._turn = torch.polar(torch.ones_like(angle), angle).to(dtype.to_complex())
        self.begin()

    def begin(self) -> None:
        """Begin another text for `next_token`."""
        self._kept: list[tuple[Any, Any]] = []
        self._position = 0

    def loss(self, tokens: ArrayLike, targets: ArrayLike) -> Any:
        """Return the mean cross-entropy of texts (rows, n); autograd follows it to parameters that require it."""
        torch = self._torch
        logits = self._logits(self._layers(torch.as_tensor(tokens), 0, None))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.as_tensor(targets).flatten())

    def gradients(self, tokens: ArrayLike, targets: ArrayLike) -> tuple[Any, dict[str, Any]]:
        """Return the loss, and its gradient with respect to every parameter."""
        for one in self.parameters.values():
            one.requires_grad_(True)
            one.grad = None
        loss = self.loss(tokens, targets)
        loss.backward()
        return loss.detach(), {name: one.grad for name, one in self.parameters.items()}

    def next_token(self, tokens: ArrayLike) -> int:
        """Take in the next tokens of the text and return the most probable one after them."""
        torch = self._torch
        with torch.no_grad():
            if not self._kept:
                c, like = self.config, self.parameters["token_embd.weight"]
                room = c.n_kv_heads, len(self._turn), c.head_width
                self._kept = [(like.new_empty(room), like.new_empty(room)) for _ in range(c.n_layers)]
            chunk = torch.as_tensor(tokens)
            last = self._layers(chunk[None], self._position, self._kept)[:, -1:]
            self._position += len(chunk)
            return int(self._logits(last)[0, 0].argmax())

    def _layers(self, tokens: Any, start: int, kept: list[tuple[Any, Any]] | None) -> Any:
        functional, p = self._torch.nn.functional, self.parameters
        x = functional.embedding(tokens, p["token_embd.weight"])
        for layer in range(self.config.n_layers):
            own = within(p, f"blk.{layer}.")
            a = self._norm(x, own["attn_norm.weight"])
            q, k, v = (
                (a @ own[f"attn_{which}.weight"].T).view(*tokens.shape, -1, self.config.head_width).transpose(1, 2)
                for which in "qkv"
            )
            own_kept = None if kept is None else kept[layer]
            y = self._attend(self._turned(q, start), self._turned(k, start), v, start, own_kept)
            x = x + y.transpose(1, 2).reshape(x.shape) @ own["attn_output.weight"].T
            b = self._norm(x, own["ffn_norm.weight"])
            gate = functional.silu(b @ own["ffn_gate.weight"].T)
            x = x + (gate * (b @ own["ffn_up.weight"].T)) @ own["ffn_down.weight"].T
        return self._norm(x, p["output_norm.weight"])

    def _attend(self, q: Any, k: Any, v: Any, start: int, kept: tuple[Any, Any] | None) -> Any:
        """Attend to all pairs up to the query's own; later chunks than the first are of one token."""
        grouped = q.shape[1] != k.shape[1]
        if kept is not None:
            end = start + k.shape[2]
            for room, new in zip(kept, (k, v), strict=True):
                room[:, start:end] = new[0]
            k, v = (room[None, :, :end] for room in kept)
        return self._torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=start == 0, enable_gqa=grouped)

    def _logits(self, hidden: Any) -> Any:
        return hidden @ self.parameters.get("output.weight", self.parameters["token_embd.weight"]).T

    def _norm(self, x: Any, gain: Any) -> Any:
        return self._torch.nn.functional.rms_norm(x, (self.config.width,), gain, self.config.norm_eps)

    def _turned(self, x: Any, start: int) -> Any:
        """Turn pairs of neighbours by the angles of their positions, as complex numbers."""
        torch = self._torch
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
        return torch.view_as_real(pairs * self._turn[start : start + x.shape[-2]]).flatten(-2)
