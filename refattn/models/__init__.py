"""NumPy transformers with a pluggable attention, and where their weights, tokens and texts come from.

Importing this package needs NumPy and SciPy only; reading a weight file needs ``pip install refattn[models]``.
"""

from refattn.models.config import LlamaConfig
from refattn.models.encoder import (
    Encoder,
    EncoderConfig,
    encoder_tokenizer,
    exact_full_attention,
)
from refattn.models.llama import Attention, Capture, Llama, Observer, exact_attention
from refattn.models.safetensors_file import minilm_folder, read_safetensors
from refattn.models.texts import essays, shakespeare_text
from refattn.models.tokenizer import tokenizer_from_gguf
from refattn.models.weights import GGUFFile, read_gguf, smollm2_path

__all__ = [
    "Attention",
    "Capture",
    "Encoder",
    "EncoderConfig",
    "GGUFFile",
    "Llama",
    "LlamaConfig",
    "Observer",
    "encoder_tokenizer",
    "essays",
    "exact_attention",
    "exact_full_attention",
    "minilm_folder",
    "read_gguf",
    "read_safetensors",
    "shakespeare_text",
    "smollm2_path",
    "tokenizer_from_gguf",
]
