"""A decoder small enough to train in a test, its task, and its trainer."""

import numpy as np
import pytest

from refattn.models import Decoder, LlamaConfig
from refattn.training import AdamW, Recall, Trainer, WarmupCosine

TASK = Recall(n=16, n_pairs=2, n_keys=6, n_values=6, n_fillers=6)
TINY = LlamaConfig(
    n_layers=2, width=8, ffn_width=16, vocab_size=TASK.vocab_size, n_heads=2, n_kv_heads=1, head_width=4,
    context_length=16, rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip


@pytest.fixture
def task():
    return TASK


@pytest.fixture
def new_trainer():
    """Makes a trainer before its first step; ``options`` are the trainer's."""

    def make(steps=20, dtype=np.float64, rows=4, **options):
        model = Decoder.initial(TINY, seed=3, dtype=dtype)
        batches = options.pop("batches", lambda step: TASK.batch(rows, seed=0, number=step))
        return Trainer(model, batches, AdamW(model.parameters), WarmupCosine(0.01, steps, 3), **options)

    return make
