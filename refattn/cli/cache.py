"""``refattn cache``: the compiled loops that are kept on disk; ``refattn warmup``: all of them, compiled ahead."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import typer

from refattn.cli._commands import Command, Group
from refattn.cli._files import progress_bar

WARMUP_HELP = "Compile all loops for float32 and float64 ahead of their first use, and keep them on disk."

app = typer.Typer(cls=Group, help="Compiled loops kept on disk: where they are and how large, or remove them.")


@app.callback(invoke_without_command=True)
def show(context: typer.Context) -> None:
    """Show what is kept."""
    from refattn import _compiled_cache

    if context.invoked_subcommand is None:
        found = _or_exit(_compiled_cache.kept)
        print(f"folder        {found.folder or f'none: {_compiled_cache.VARIABLE} is {_compiled_cache.OFF!r}'}")
        print(f"loops         {found.loops}, of {found.environments} environments")
        print(f"size          {found.size / 2**20:.1f} MiB, kept below {_compiled_cache.BOUND >> 20} MiB")
        print(f"found damaged {found.damaged}, compiled anew")


@app.command(
    cls=Command, help="Remove all compiled loops, of every version and environment.", epilog="refattn cache clear"
)
def clear() -> None:
    """Remove what is kept."""
    from refattn import _compiled_cache

    print(f"{_or_exit(_compiled_cache.clear)} loops removed")


def warmup() -> None:
    """Run the command, as `WARMUP_HELP` says."""
    from refattn import _compiled_cache

    before = time.perf_counter()
    _or_exit(_compile_all)
    found = _or_exit(_compiled_cache.kept)
    print(f"{found.loops} loops in {found.folder or 'this process alone'}, {time.perf_counter() - before:.0f} s")


def _compile_all() -> None:
    operations = list(_operations())
    with progress_bar() as progress:
        task = progress.add_task("", total=len(operations))
        for name, operation in operations:
            progress.update(task, description=name)
            operation()
            progress.advance(task)


def _or_exit(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except OSError as error:
        print(f"refattn: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _operations() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield name and call of what together reaches every loop with the types that each operation gives it."""
    for dtype in (np.float32, np.float64):
        kind = np.dtype(dtype).name
        yield f"dense {kind}", partial(_dense, dtype)
        for mask in ("causal", "full"):
            for method in ("block transform", "direct"):
                yield f"conv {method} {mask} {kind}", partial(_conv, dtype, mask, method)
        yield f"conv bases {kind}", partial(_bases, dtype)
        for gate in ("kv", "none"):
            yield f"sparsek gate {gate} {kind}", partial(_sparsek, dtype, gate)
        yield f"sparsek generation {kind}", partial(_generation, dtype)
        yield f"low rank {kind}", partial(_lowrank, dtype)
        yield f"decoder {kind}", partial(_decoder, dtype)


def _dense(dtype: Any) -> None:
    from refattn import dense_attention_backward, dense_attention_forward

    q, k, v = np.random.default_rng(0).standard_normal((3, 300, 8)).astype(dtype)
    for mask in ("causal", np.tri(300, dtype=bool)):
        out, held = dense_attention_forward(q, k, v, mask=mask)
        dense_attention_backward(out, held)


def _conv(dtype: Any, mask: str, method: Any) -> None:
    from refattn.convbasis import Plan, conv_attention_backward, conv_attention_forward
    from refattn.testing import rope_structured

    plan = Plan(method, 64) if method == "block transform" else Plan(method)
    for n_basis, deviation in ((1, 2.0), (7, 2.0), (7, 12.0)):  # logits of 12 leave rows to be computed anew
        q, k, v, _ = rope_structured(500, 16, starts=7, seed=500, deviation=deviation, dtype=dtype)
        out, held = conv_attention_forward(q, k, v, n_basis=n_basis, probe=4, delta=1e-2, mask=mask, plan=plan)
        for gradient in ("approximation", "attention"):
            conv_attention_backward(out, held, gradient=gradient)


def _bases(dtype: Any) -> None:
    from refattn.convbasis import best_starts, recover_to_tolerance
    from refattn.testing import rope_structured

    q, k, _, _ = rope_structured(200, 8, starts=3, seed=0, dtype=dtype)
    recover_to_tolerance(q, k, 0.1)
    best_starts(q, k, 3)


def _sparsek(dtype: Any, gate: Any) -> None:
    from refattn.sparsek import prefix_thresholds, sparsek_attention_backward, sparsek_attention_forward

    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 150, 8)).astype(dtype)
    scores = rng.standard_normal((2, 150)).astype(dtype)
    for hard in (False, True):
        out, held = sparsek_attention_forward(q, k, v, scores, n_select=8, window=8, gate=gate, hard=hard)
        sparsek_attention_backward(out, held)
    prefix_thresholds(scores, 8)


def _generation(dtype: Any) -> None:
    from refattn.sparsek import SparseKCache

    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 40, 8)).astype(dtype)
    scores = rng.standard_normal((2, 40)).astype(dtype)
    held = SparseKCache(n_select=6, window=4)
    held.prefill(q[:, :30], k[:, :30], v[:, :30], scores[:, :30])
    for t in range(30, 40):
        held.step(q[:, t], k[:, t], v[:, t], scores[:, t])


def _lowrank(dtype: Any) -> None:
    from refattn import Causal, lowrank

    n, rng = 120, np.random.default_rng(0)
    patterns, of = rng.random((3, n)) < 0.6, rng.integers(3, size=n)
    patterns[:, 0] = True
    for mask in (
        Causal(), lowrank.shifted_groups(n, 20), lowrank.sliding_window(n, 30),
        lowrank.DistinctRowsMask(patterns, of), lowrank.DistinctColumnsMask(patterns, of),
    ):  # fmt: skip
        u1, u2 = rng.random((2, n, 10)).astype(dtype)
        product, factors = lowrank.masked_product_forward(u1, u2, rng.random((n, 8)).astype(dtype), mask=mask)
        lowrank.masked_product_backward(product, factors)
    q, k, v = (0.3 * rng.standard_normal((3, n, 6))).astype(dtype)
    features = lowrank.PolynomialFeatures(6, degree=4, bound=4.0)
    out, held = lowrank.lowrank_attention_forward(q, k, v, features=features, mask=Causal())
    lowrank.lowrank_attention_backward(out, held)


def _decoder(dtype: Any) -> None:
    from refattn.models import Decoder, GPT2Config, LlamaConfig

    tokens = np.random.default_rng(0).integers(0, 8, (1, 16))
    for config in (
        LlamaConfig(
            n_layers=1, width=8, ffn_width=8, vocab_size=8, n_heads=1, n_kv_heads=1, head_width=8, context_length=16,
            rope_base=1e4, norm_eps=1e-5,
        ),
        GPT2Config(n_layers=1, width=8, ffn_width=8, vocab_size=8, n_heads=1, context_length=16),
    ):  # fmt: skip
        Decoder.initial(config, dtype=dtype).loss_and_gradients(tokens, tokens)
