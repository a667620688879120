"""Training a decoder: AdamW, clipping and the rate; batches, tasks and tokens; checkpoints, a log and the run.

Importing this package needs NumPy and SciPy only. A checkpoint needs the ``safetensors`` library, a BPE tokenizer the
``tokenizers`` library, a configuration file ``pydantic``: the extra ``training``.
"""

from refattn.training.adamw import AdamW
from refattn.training.batches import Batch, Windows, windows_in_order
from refattn.training.checkpoint import OtherCheckpointError, read_checkpoint, write_checkpoint
from refattn.training.clipping import clip_gradients, global_norm
from refattn.training.corpus import (
    Corpus,
    Document,
    documents_in_files,
    packaged_documents,
    prepare_corpus,
    split_documents,
)
from refattn.training.log import Log, read_log
from refattn.training.passkeys import Passkeys
from refattn.training.recall import Recall
from refattn.training.run import Outcome, run_training
from refattn.training.schedule import WarmupCosine
from refattn.training.token_file import TokenFile, open_tokens, write_tokens
from refattn.training.tokenizer import BPETokenizer, ByteTokenizer, TextTokenizer, train_bpe
from refattn.training.trainer import Evaluated, HeldOut, Step, Trainable, Trainer, TrainingStoppedError

__all__ = [
    "AdamW",
    "BPETokenizer",
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "Document",
    "Evaluated",
    "HeldOut",
    "Log",
    "OtherCheckpointError",
    "Outcome",
    "Passkeys",
    "Recall",
    "Step",
    "TextTokenizer",
    "TokenFile",
    "Trainable",
    "Trainer",
    "TrainingStoppedError",
    "WarmupCosine",
    "Windows",
    "clip_gradients",
    "documents_in_files",
    "global_norm",
    "open_tokens",
    "packaged_documents",
    "prepare_corpus",
    "read_checkpoint",
    "read_log",
    "run_training",
    "split_documents",
    "train_bpe",
    "windows_in_order",
    "write_checkpoint",
    "write_tokens",
]
