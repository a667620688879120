"""NumPy transformers with a pluggable attention, and where their weights, tokens and texts come from.

Importing this package needs NumPy and SciPy only; reading a weight file needs the extra ``models``.
"""

from refattn.models.attentions import (
    ConvAttention,
    DifferentiableAttention,
    ExactAttention,
    FixedAttention,
    GeneratingAttention,
    HashingAttention,
    HeavyHitterAttention,
    KVCacheAttention,
    LayerGradients,
    LinearAttention,
    LowRankAttention,
    RandomBlockAttention,
    RoutingAttention,
    SelectiveAttention,
    SnapKVAttention,
    SparseKAttention,
    StridedAttention,
    TopKAttention,
    WindowAttention,
    sliding_window,
)
from refattn.models.capture import Capture
from refattn.models.config import GPT2Config, LlamaConfig
from refattn.models.decoder import Decoder, NotFiniteError
from refattn.models.encoder import (
    Encoder,
    EncoderConfig,
    encoder_tokenizer,
    exact_full_attention,
)
from refattn.models.generation import RememberingAttention, generate
from refattn.models.llama import Attention, Llama, Observer, exact_attention
from refattn.models.output import Evaluation
from refattn.models.safetensors_file import minilm_folder, read_safetensors
from refattn.models.scorer import Scorer, load_scorer, read_scorer
from refattn.models.texts import essays, shakespeare_text
from refattn.models.token_distribution import TokenDistribution
from refattn.models.tokenizer import tokenizer_from_gguf
from refattn.models.weights import GGUFFile, read_gguf, smollm2_path

__all__ = [
    "Attention",
    "Capture",
    "ConvAttention",
    "Decoder",
    "DifferentiableAttention",
    "Encoder",
    "EncoderConfig",
    "Evaluation",
    "ExactAttention",
    "FixedAttention",
    "GGUFFile",
    "GPT2Config",
    "GeneratingAttention",
    "HashingAttention",
    "HeavyHitterAttention",
    "KVCacheAttention",
    "LayerGradients",
    "LinearAttention",
    "Llama",
    "LlamaConfig",
    "LowRankAttention",
    "NotFiniteError",
    "Observer",
    "RandomBlockAttention",
    "RememberingAttention",
    "RoutingAttention",
    "Scorer",
    "SelectiveAttention",
    "SnapKVAttention",
    "SparseKAttention",
    "StridedAttention",
    "TokenDistribution",
    "TopKAttention",
    "WindowAttention",
    "encoder_tokenizer",
    "essays",
    "exact_attention",
    "exact_full_attention",
    "generate",
    "load_scorer",
    "minilm_folder",
    "read_gguf",
    "read_safetensors",
    "read_scorer",
    "shakespeare_text",
    "sliding_window",
    "smollm2_path",
    "tokenizer_from_gguf",
]
