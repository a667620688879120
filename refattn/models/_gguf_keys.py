"""Which keys of a GGUF file's metadata are used, and which make no difference; every other one is refused by name.

A key makes no difference if it only describes (who made the file, from what, under which licence; how a sampler or a
chat is to be set up), or if its value says that what it is about is left out: a window of 0, no experts, a scale of 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refattn.models.weights import GGUFFile

_ABOUT = "name|author|version|organization|description|url|doi|uuid|repo_url"
_SAMPLING = "sequence|top_k|top_p|min_p|xtc_probability|xtc_threshold|temp|penalty_last_n|penalty_repeat|mirostat"

DESCRIBING = re.compile(
    rf"general\.({_ABOUT}|finetune|basename|quantized_by|size_label|license|license\.name|license\.link|file_type|tags"
    rf"|languages|datasets|source\.({_ABOUT}|huggingface\.repository)|(base_model|dataset)\.(count|\d{{1,4}}\.({_ABOUT}))"
    rf"|sampling\.({_SAMPLING}|mirostat_tau|mirostat_eta))"
    r"|quantize\.imatrix\.(file|dataset|entries_count|chunks_count)"
)
"""Of a whole key: what a file says about itself."""

MARKS = "bos|eos|eot|eom|unknown|seperator|padding|cls|mask|prefix|suffix|middle|fim_(pre|suf|mid|pad|rep|sep)"

OF_A_TOKENIZER = re.compile(
    r"tokenizer\.ggml\.(model|pre|tokens|token_type|token_type_count|scores|merges|add_(bos|eos|sep)_token"
    rf"|add_space_prefix|remove_extra_whitespaces|precompiled_charsmap|({MARKS})_token_id)"
    r"|tokenizer\.(huggingface\.json|rwkv\.world|chat_templates?|chat_template\.[^.]+)"
)
"""Of a whole key: what turns texts into tokens, and so makes no difference to a decoder that is given tokens."""


@dataclass(frozen=True)
class Keys:
    """What is known of the keys: those used, those that have to have one of some values, those of no consequence."""

    prefix: str = ""
    used: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    harmless: tuple[re.Pattern[str], ...] = ()


def require_known(file: GGUFFile, reader: str, keys: Keys) -> None:
    """Raise ``ValueError`` at a key that asks for what the reader does not do, or that is not known."""
    for key in file.metadata:
        if not key.startswith(keys.prefix) or key in keys.used or any(one.fullmatch(key) for one in keys.harmless):
            continue
        if key not in keys.neutral:
            raise ValueError(f"{file.path}: metadata {key!r} came, which {reader} does not know and would ignore")
        wanted = keys.neutral[key]
        value = file.value(key, type(wanted[0]))
        if not any(type(value) is type(one) and value == one for one in wanted):
            told = " or ".join(map(repr, wanted))
            raise ValueError(
                f"{file.path}: metadata {key!r} is {str(value)[:60]}, {told} was wanted: {reader} has no other"
            )


LLAMA_KEYS = Keys(
    used=frozenset(
        f"llama.{name}"
        for name in (
            "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
            "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
            "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base",
        )
    )
    | {"general.architecture", "general.alignment"},
    neutral={
        "general.type": ("model",),
        "general.quantization_version": (2,),
        "split.no": (0,),
        "split.count": (0, 1),
        "llama.tensor_data_layout": ("Meta AI original pth",),
        "llama.use_parallel_residual": (False,),
        "llama.pooling_type": (0,),
        "llama.expert_count": (0,),
        "llama.expert_used_count": (0,),
        "llama.expert_shared_count": (0,),
        "llama.logit_scale": (1.0,),
        "llama.residual_scale": (1.0,),
        "llama.embedding_scale": (1.0,),
        "llama.attn_logit_softcapping": (0.0,),
        "llama.final_logit_softcapping": (0.0,),
        "llama.attention.causal": (True,),
        "llama.attention.sliding_window": (0,),
        "llama.attention.clamp_kqv": (0.0,),
        "llama.attention.max_alibi_bias": (0.0,),
        "llama.rope.scale_linear": (1.0,),
        "llama.rope.scaling.type": ("none",),
        "llama.rope.scaling.factor": (1.0,),
        "llama.rope.scaling.attn_factor": (1.0,),
        "llama.rope.scaling.finetuned": (False,),
    },
    harmless=(DESCRIBING, OF_A_TOKENIZER),
)  # fmt: skip
