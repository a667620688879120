"""A reader uses what a file has, knows that it makes no difference, or refuses it by name; none of it is ignored."""

import json
import struct

import numpy as np
import pytest

from refattn.models import Encoder, EncoderConfig, Llama, LlamaConfig, read_gguf, read_safetensors

CONFIG = LlamaConfig(
    n_layers=1, width=8, ffn_width=12, vocab_size=10, n_heads=2, n_kv_heads=1, head_width=4, context_length=64,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip
ENCODER = EncoderConfig(1, 8, 12, 2, 10, 16, 1e-12)
KINDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "list": 9, "u64": 10}
LAYOUTS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q"}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def stored(kind, value):
    if kind == "str":
        return text(value)
    if kind == "list":
        entry, values = value
        return struct.pack("<IQ", KINDS[entry], len(values)) + b"".join(stored(entry, one) for one in values)
    return struct.pack(LAYOUTS[KINDS[kind]], value)


def weights(config=CONFIG, seed=1):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype("f4") for name, shape in config.tensor_shapes().items()}


PAIRS = {
    "general.architecture": ("str", "llama"),
    "llama.block_count": ("u32", 1),
    "llama.context_length": ("u32", 64),
    "llama.embedding_length": ("u32", 8),
    "llama.feed_forward_length": ("u32", 12),
    "llama.attention.head_count": ("u32", 2),
    "llama.attention.head_count_kv": ("u32", 1),
    "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
    "llama.rope.freq_base": ("f32", 1e4),
    "tokenizer.ggml.tokens": ("list", ("str", [chr(97 + i) for i in range(10)])),
}


def gguf_bytes(pairs=(), tensors=None, *, drop=(), alignment=32, offsets=None, kind=0, again=(), end=b""):
    """A GGUF file by the format's description, with any lie in it that a test wants."""
    pairs = [(k, v) for k, v in {**PAIRS, **dict(pairs)}.items() if k not in drop] + list(again)
    tensors = weights() if tensors is None else tensors
    items = list(tensors.items()) if isinstance(tensors, dict) else list(tensors)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(items), len(pairs))
    for key, (type_, value) in pairs:
        head += text(key) + struct.pack("<I", KINDS[type_]) + stored(type_, value)
    data = b""
    for name, array in items:
        data += bytes(-len(data) % alignment)
        at = (offsets or {}).get(name, len(data))
        head += text(name) + struct.pack("<I", array.ndim) + struct.pack(f"<{array.ndim}Q", *array.shape[::-1])
        head += struct.pack("<IQ", kind if kind and name == items[0][0] else 0, at)
        data += array.tobytes()
    return head + bytes(-len(head) % alignment) + data + end


def load(tmp_path, content):
    pytest.importorskip("gguf", reason="the gguf library knows the types of tensors")
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return Llama.from_gguf(path, dtype="float64")


def test_a_file_by_the_description_is_the_model_of_its_weights(tmp_path):
    model = load(tmp_path, gguf_bytes())
    right = Llama(CONFIG, weights(), dtype="float64")([1, 2, 3])
    np.testing.assert_allclose(model([1, 2, 3]), right, rtol=1e-5, atol=1e-5)


TENSORS = {
    "attention-bias": ("blk.0.attn_q.bias", 8),
    "ffn-bias": ("blk.0.ffn_up.bias", 12),
    "query-norm": ("blk.0.attn_q_norm.weight", 4),
    "key-norm": ("blk.0.attn_k_norm.weight", 4),
    "output-bias": ("output.bias", 10),
    "norm-bias": ("output_norm.bias", 8),
    "a-scale": ("blk.0.attn_q.scale", 1),
    "experts": ("blk.0.ffn_gate_exps.weight", 12),
    "sinks": ("blk.0.attn_sinks.weight", 2),
    "a-joint-map": ("blk.0.attn_qkv.weight", 8),
    "a-layer-more": ("blk.1.attn_q.weight", 8),
    "a-far-layer": ("blk.12.ffn_up.weight", 8),
    "upper-case": ("TOKEN_EMBD.weight", 8),
    "rotary-factors": ("rope_freqs.weight", 2),
    "a-name-in-another-style": ("model.layers.0.self_attn.q_proj.bias", 8),
}


@pytest.mark.parametrize(("name", "size"), TENSORS.values(), ids=TENSORS)
def test_a_tensor_that_nothing_uses_is_refused_by_name(name, size, tmp_path):
    with pytest.raises(ValueError, match=f"model.gguf: .*({name}|scaled rotary positions)"):
        load(tmp_path, gguf_bytes(tensors={**weights(), name: np.full(size, 3, "f4")}))
    if name != "rope_freqs.weight":
        with pytest.raises(ValueError, match=name):
            Llama(CONFIG, {**weights(), name: np.full(size, 3.0)})


REFUSED = {
    "not-causal": ("llama.attention.causal", ("bool", 0)),
    "causal-as-a-number": ("llama.attention.causal", ("u32", 1)),
    "window": ("llama.attention.sliding_window", ("u32", 2)),
    "rope-linear": ("llama.rope.scale_linear", ("f32", 4.0)),
    "rope-factor-without-type": ("llama.rope.scaling.factor", ("f32", 4.0)),
    "rope-type-linear": ("llama.rope.scaling.type", ("str", "linear")),
    "rope-type-yarn": ("llama.rope.scaling.type", ("str", "yarn")),
    "rope-type-unknown": ("llama.rope.scaling.type", ("str", "None")),
    "rope-on-half": ("llama.rope.dimension_count", ("u32", 2)),
    "rope-sections": ("llama.rope.dimension_sections", ("list", ("i32", [1, 1]))),
    "value-width": ("llama.attention.value_length", ("u32", 2)),
    "attention-scale": ("llama.attention.scale", ("f32", 0.1)),
    "softcap": ("llama.attn_logit_softcapping", ("f32", 1.0)),
    "last-softcap": ("llama.final_logit_softcapping", ("f32", 30.0)),
    "logit-scale": ("llama.logit_scale", ("f32", 0.1)),
    "residual-scale": ("llama.residual_scale", ("f32", 0.1)),
    "embedding-scale": ("llama.embedding_scale", ("f32", 12.0)),
    "clamp": ("llama.attention.clamp_kqv", ("f32", 8.0)),
    "alibi": ("llama.attention.max_alibi_bias", ("f32", 8.0)),
    "experts": ("llama.expert_count", ("u32", 2)),
    "parallel": ("llama.use_parallel_residual", ("bool", 1)),
    "layout": ("llama.tensor_data_layout", ("str", "reference")),
    "vocabulary": ("llama.vocab_size", ("u32", 11)),
    "layers-as-text": ("llama.block_count", ("str", "1")),
    "layers-by-layer": ("llama.attention.head_count_kv", ("list", ("u32", [1]))),
    "base-as-an-integer": ("llama.rope.freq_base", ("u32", 10000)),
    "heads-as-a-boolean": ("llama.attention.head_count", ("bool", 1)),
    "no-context": ("llama.context_length", ("u32", 0)),
    "an-adapter": ("general.type", ("str", "adapter")),
    "old-quantisation": ("general.quantization_version", ("u32", 1)),
    "one-of-two-files": ("split.count", ("u16", 2)),
    "unknown": ("llama.something_new", ("u32", 1)),
    "unknown-general": ("general.something_new", ("u32", 1)),
    "unknown-tokenizer": ("tokenizer.ggml.something_new", ("u32", 1)),
    "unknown-elsewhere": ("something_new", ("u32", 0)),
    "another-architecture's": ("qwen2.attention.scale", ("f32", 0.1)),
    "case": ("Llama.attention.causal", ("bool", 0)),
}


@pytest.mark.parametrize(("key", "value"), REFUSED.values(), ids=REFUSED)
def test_a_key_that_asks_for_something_else_or_is_unknown_is_refused_by_name(key, value, tmp_path):
    with pytest.raises(ValueError, match=r"model\.gguf: ") as refusal:
        load(tmp_path, gguf_bytes({key: value}))
    told = str(refusal.value)
    assert any(name in told for name in (key, key.rpartition(".")[2], "scaled rotary positions"))


HARMLESS = {
    "causal": ("llama.attention.causal", ("bool", 1)),
    "no-window": ("llama.attention.sliding_window", ("u32", 0)),
    "unscaled": ("llama.rope.scale_linear", ("f32", 1.0)),
    "no-scaling": ("llama.rope.scaling.type", ("str", "none")),
    "no-experts": ("llama.expert_count", ("u32", 0)),
    "no-softcap": ("llama.attn_logit_softcapping", ("f32", 0.0)),
    "vocabulary": ("llama.vocab_size", ("u32", 10)),
    "key-width": ("llama.attention.key_length", ("u32", 4)),
    "value-width": ("llama.attention.value_length", ("u32", 4)),
    "rope-on-all": ("llama.rope.dimension_count", ("u32", 4)),
    "name": ("general.name", ("str", "x")),
    "licence": ("general.license.link", ("str", "x")),
    "base": ("general.base_model.0.repo_url", ("str", "x")),
    "languages": ("general.languages", ("list", ("str", ["en"]))),
    "template": ("tokenizer.chat_template.tool_use", ("str", "{{ x }}")),
    "eos": ("tokenizer.ggml.eos_token_id", ("u32", 3)),
    "imatrix": ("quantize.imatrix.chunks_count", ("i32", 3)),
    "whole": ("split.count", ("u16", 1)),
}


@pytest.mark.parametrize(("key", "value"), HARMLESS.values(), ids=HARMLESS)
def test_a_key_that_makes_no_difference_makes_none(key, value, tmp_path):
    np.testing.assert_array_equal(
        load(tmp_path, gguf_bytes({key: value}))([1, 2]), load(tmp_path, gguf_bytes())([1, 2])
    )


def test_an_output_of_its_own_is_used_and_one_that_is_tied_too(tmp_path):
    own = {**weights(), "output.weight": weights(seed=5)["token_embd.weight"]}
    tied, untied = load(tmp_path, gguf_bytes())([1, 2]), load(tmp_path, gguf_bytes(tensors=own))([1, 2])
    assert np.abs(tied - untied).max() > 0.1
    np.testing.assert_allclose(untied, Llama(CONFIG, own, dtype="float64")([1, 2]), rtol=1e-5, atol=1e-5)


LAST = "blk.0.ffn_down.weight"
DAMAGED = {
    "a-key-twice": ({"again": [("llama.block_count", ("u32", 1))]}, "'llama.block_count' comes twice"),
    "a-tensor-twice": ({"tensors": [*weights().items(), (LAST, weights()[LAST])]}, "comes twice"),
    "offset-over-another": ({"offsets": {LAST: 0}}, "tensors follow one another"),
    "offset-not-aligned": ({"offsets": {LAST: 4}}, "tensors follow one another"),
    "offset-beyond": ({"offsets": {LAST: 1 << 40}}, "tensors follow one another"),
    "offset-wraps": ({"offsets": {LAST: (1 << 64) - 32}}, "tensors follow one another"),
    "alignment-0": ({"again": [("general.alignment", ("u32", 0))]}, "alignment is 0"),
    "alignment-3": ({"again": [("general.alignment", ("u32", 3))]}, "alignment is 3"),
    "alignment-of-another-type": ({"again": [("general.alignment", ("i32", 32))]}, "alignment is 32"),
    "type-unknown": ({"kind": 99}, "type 99"),
    "type-that-was-removed": ({"kind": 4}, "type 4"),
    "type-whole-numbers": ({"kind": 26}, "I32"),
    "quantised-rows-that-are-no-blocks": ({"kind": 12}, "blocks have 256 entries"),
    "bytes-after-the-end": ({"end": bytes(64)}, "64 bytes come after"),
    "a-boolean-of-2": ({"again": [("llama.attention.causal", ("bool", 2))]}, "a boolean is 2"),
    "a-name-that-is-no-text": ({"again": [(b"\xff\xfe", ("u32", 2))]}, "utf-8"),
    "an-empty-name": ({"again": [("", ("u32", 2))]}, "a name of 0 bytes"),
}


@pytest.mark.parametrize(("lie", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_header_that_lies_is_refused(lie, message, tmp_path):
    with pytest.raises(ValueError, match=f"model.gguf: .*{message}"):
        load(tmp_path, gguf_bytes(**lie))


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_an_alignment_of_the_files_own_is_used(alignment, tmp_path):
    content = gguf_bytes({"general.alignment": ("u32", alignment)}, alignment=alignment)
    np.testing.assert_array_equal(load(tmp_path, content)([1, 2]), load(tmp_path, gguf_bytes())([1, 2]))


@pytest.mark.parametrize("kept", [1, 100, 1000, 0.5], ids=str)
def test_a_file_that_ends_in_a_tensor_is_refused(kept, tmp_path):
    content = gguf_bytes()
    end = len(content) - kept if isinstance(kept, int) else int(kept * len(content))
    with pytest.raises(ValueError, match="complete GGUF file was wanted"):
        load(tmp_path, content[:end])


def test_a_million_layers_are_refused_at_the_first_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=r"blk\.1\.attn_norm\.weight' is missing"):
        load(tmp_path, gguf_bytes({"llama.block_count": ("u32", (1 << 32) - 1)}))


def test_metadata_of_every_type_comes_back_as_it_was_stored(tmp_path):
    pytest.importorskip("gguf", reason="the gguf library knows the types of tensors")
    more = {"a": ("i8", -3), "b": ("u64", 1 << 63), "c": ("bool", 1), "d": ("list", ("i16", [-1, 2])),
            "e": ("list", ("bool", [1, 0])), "f": ("list", ("str", [])), "g": ("str", "Ġé")}  # fmt: skip
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(more))
    found = read_gguf(path).metadata
    assert [found[key] for key in "abcdefg"] == [-3, 1 << 63, True, [-1, 2], [True, False], [], "Ġé"]
    assert found["c"] is True
    assert "GGUF.version" not in found


def safetensors_bytes(entries, content=b"", end=b""):
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + content + end


def folder(tmp_path, tensors=None, **fields):
    tensors = weights(ENCODER) if tensors is None else tensors
    entries, content = {}, b""
    for name, array in tensors.items():
        dtype = {"f4": "F32", "i8": "I64"}[array.dtype.str[1:]]
        place = [len(content), len(content) + array.nbytes]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": place}
        content += array.tobytes()
    config = {
        "model_type": "bert", "hidden_act": "gelu", "num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 12,
        "num_attention_heads": 2, "vocab_size": 10, "max_position_embeddings": 16, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(entries, content))
    (tmp_path / "config.json").write_text(json.dumps({**config, **fields}))
    return tmp_path


FIELDS = {
    "decoder": {"is_decoder": True},
    "decoder-as-text": {"is_decoder": "false"},
    "cross-attention": {"add_cross_attention": True},
    "one-type-of-token": {"type_vocab_size": 1},
    "pruned": {"pruned_heads": {"0": [1]}},
    "quantised": {"quantization_config": {"bits": 4}},
    "rope": {"rope_theta": 1e4},
    "activation": {"hidden_act": "gelu_new"},
    "relative-positions": {"position_embedding_type": "relative_key"},
    "layers-a-fraction": {"num_hidden_layers": 1.5},
    "unknown": {"something_new": None},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_a_field_that_asks_for_something_else_is_refused_by_name(fields, tmp_path):
    (name,) = fields
    with pytest.raises(ValueError, match=r"config\.json: ") as refusal:
        Encoder.from_folder(folder(tmp_path, **fields))
    named = {"hidden_act": "gelu_new", "position_embedding_type": "relative_key", "num_hidden_layers": "n_layers"}
    assert named.get(name, name) in str(refusal.value)


def test_a_field_that_comes_twice_is_refused(tmp_path):
    place = folder(tmp_path) / "config.json"
    place.write_text('{"num_hidden_layers": 2, ' + place.read_text()[1:])
    with pytest.raises(ValueError, match="'num_hidden_layers' comes twice"):
        Encoder.from_folder(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["encoder.layer.1.output.dense.weight", "cls.predictions.bias", "encoder.layer.0.attention.self.query.scale",
     "embeddings.rotary.weight", "encoder.layer.0.crossattention.self.key.weight", "bert.pooler.dense.weight"],
)  # fmt: skip
def test_a_tensor_that_the_encoder_does_not_use_is_refused_by_name(name, tmp_path):
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*'{name}'"):
        Encoder.from_folder(folder(tmp_path, {**weights(ENCODER), name: np.ones(3, "f4")}))


def test_a_pooler_and_plain_positions_make_no_difference_and_other_positions_are_refused(tmp_path):
    plain = Encoder.from_folder(folder(tmp_path))([1, 2])
    more = {"embeddings.position_ids": np.arange(16)[None], "pooler.dense.bias": np.ones(8, "f4")}
    harmless = {"is_decoder": False, "use_cache": True, "architectures": ["BertModel"], "type_vocab_size": 2}
    model = Encoder.from_folder(folder(tmp_path, {**weights(ENCODER), **more}, **harmless))
    np.testing.assert_array_equal(model([1, 2]), plain)
    more["embeddings.position_ids"] = np.arange(16)[None, ::-1].copy()
    with pytest.raises(ValueError, match="position_ids"):
        Encoder.from_folder(folder(tmp_path, {**weights(ENCODER), **more}))


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
UNSOUND = {
    "hole": ({"a": ONE, "b": {**ONE, "data_offsets": [12, 20]}}, 20, "'b' begins at byte 12, 8 was wanted"),
    "overlap": ({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, 12, "'b' begins at byte 4, 8 was wanted"),
    "one-place-twice": ({"a": ONE, "b": ONE}, 8, "'b' begins at byte 0, 8 was wanted"),
    "bytes-after": ({"a": ONE}, 9, "9 bytes follow the header, its tensors take 8"),
    "too-short": ({"a": ONE}, 7, "7 bytes follow"),
    "backwards": ({"a": {**ONE, "data_offsets": [8, 0]}}, 8, "does not take -8 bytes"),
    "size": ({"a": {**ONE, "shape": [3]}}, 8, "shape \\[3\\] does not take 8 bytes"),
    "negative": ({"a": {**ONE, "shape": [-1, -2]}}, 8, "whole numbers of at least 0"),
    "a-boolean": ({"a": {**ONE, "shape": [True, 2]}}, 8, "whole numbers of at least 0"),
    "a-field-more": ({"a": {**ONE, "scale": 0.5}}, 8, "has not the fields"),
    "a-field-less": ({"a": {"dtype": "F32"}}, 0, "has not the fields"),
    "metadata": ({"a": ONE, "__metadata__": {"x": 1}}, 8, "__metadata__"),
    "a-name-twice": (b'{"a": {}, "a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', 0, "'a' comes twice"),
    "a-list": (b"[]", 0, "its header is a list"),
    "not-text": (b"\xff\xfe{}", 0, "utf-8"),
    "nan": (b'{"a": NaN}', 0, "NaN is not JSON"),
}


@pytest.mark.parametrize(("header", "size", "message"), UNSOUND.values(), ids=UNSOUND)
def test_a_safetensors_header_that_lies_is_refused(header, size, message, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors_bytes(header, bytes(size)))
    with pytest.raises(ValueError, match=f"w.safetensors: .*{message}"):
        read_safetensors(path)


def test_empty_arrays_scalars_and_empty_metadata_are_read(tmp_path):
    path = tmp_path / "w.safetensors"
    entries = {"__metadata__": {}, "e": {"dtype": "F16", "shape": [0, 3], "data_offsets": [0, 0]},
               "s": {"dtype": "I16", "shape": [], "data_offsets": [0, 2]}}  # fmt: skip
    path.write_bytes(safetensors_bytes(json.dumps(entries).encode() + b"   ", struct.pack("<h", -2)))
    found = read_safetensors(path)
    assert found["e"].shape == (0, 3)
    assert found["s"] == -2
