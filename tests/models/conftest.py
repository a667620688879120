"""A tiny GGUF file made on the spot, and the real one where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refattn.models import GGUFFile, Llama, LlamaConfig, read_gguf, smollm2_path

TINY = LlamaConfig(
    n_layers=2,
    width=8,
    ffn_width=12,
    vocab_size=261,
    n_heads=4,
    n_kv_heads=2,
    head_width=2,
    context_length=64,
    rope_base=500.0,
    norm_eps=1e-5,
)


def byte_characters() -> list[str]:
    """The 256 printable characters that stand for bytes in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@pytest.fixture
def tiny_model() -> Llama:
    rng = np.random.default_rng(20)
    weights = {name: rng.standard_normal(shape) / 2 for name, shape in TINY.tensor_shapes().items()}
    return Llama(TINY, weights, dtype=np.float64)


@pytest.fixture
def write_tiny(tmp_path: Path, tiny_model: Llama) -> Callable[..., Path]:
    """Writes ``tiny_model`` as a GGUF file; ``changes`` replace metadata (None drops a key) or tensors."""
    gguf = pytest.importorskip("gguf", reason="the gguf library writes the files these tests read")
    numbers: dict[str, Any] = {
        "llama.block_count": TINY.n_layers,
        "llama.context_length": TINY.context_length,
        "llama.embedding_length": TINY.width,
        "llama.feed_forward_length": TINY.ffn_width,
        "llama.attention.head_count": TINY.n_heads,
        "llama.attention.head_count_kv": TINY.n_kv_heads,
        "llama.rope.freq_base": TINY.rope_base,
        "llama.attention.layer_norm_rms_epsilon": TINY.norm_eps,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": ["<|start|>", "<|end|>", *byte_characters(), "th", "Ġth", "the"],
        "tokenizer.ggml.token_type": [3, 3, *[1] * 259],
        "tokenizer.ggml.merges": ["t h", "Ġ th", "th e"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }

    def write(architecture: str = "llama", **changes: Any) -> Path:
        path = tmp_path / "tiny.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in {**numbers, **{k: v for k, v in changes.items() if k not in tiny_model.weights}}.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            elif value is not None:
                writer.add_array(key, value)
        for name, tensor in tiny_model.weights.items():
            tensor = changes.get(name, tensor)
            if tensor is not None:
                writer.add_tensor(name, np.asarray(tensor, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture(scope="session")
def smollm2_file() -> GGUFFile:
    pytest.importorskip("gguf", reason="the gguf library reads the model's weights")
    try:
        path = smollm2_path()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    return read_gguf(path)
