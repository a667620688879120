"""Whole models by length: tokens a second and memory in training and in generation, beside PyTorch's (ours).

Two parts, float32, all the threads there are:

    training     the loss and every gradient of a decoder with 4 layers of width 256 and a vocabulary of 256 on one text
                 of n tokens, with each method of `refattn.experiments.scratch.methods` at 64 pairs a query, and PyTorch
                 with its exact attention
    generation   SmolLM2-135M: n tokens of Hamlet read, then tokens written one by one; exact attention with all keys
                 and values kept, SparseK's cache with 256 pairs, and PyTorch with its own exact attention

An item reads and computes by itself, in its order: a time of the first call is not among the times. Memory is how far
the resident memory rose in the step, or while the text was read. Lengths beyond 8,192 are beyond those that SmolLM2 was
trained on: the times hold, its words do not.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np

from refattn._threads import thread_count
from refattn.experiments.compared._resident import peak_resident_megabytes
from refattn.experiments.compared.torch_llama import TorchLlama
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.experiments.scratch.methods import METHODS
from refattn.laboratory.smollm2 import NEEDS_HAMLET, hamlet, model
from refattn.models import (
    Decoder,
    DifferentiableAttention,
    GeneratingAttention,
    KVCacheAttention,
    LlamaConfig,
    generate,
    load_scorer,
)

TRAINED = LlamaConfig(
    n_layers=4, width=256, ffn_width=768, vocab_size=256, n_heads=4, n_kv_heads=4, head_width=64, context_length=32_768,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip
PAIRS, WRITTEN = 256, 24
"""Pairs of SparseK in generation, and tokens that are timed after four that are not."""
_BEFORE = 4
_LONGEST_STEP = 20.0
"""Seconds of a training step after which it is timed once more only."""

GENERATED = ("exact", "sparsek", "torch")


def items(sizes: Sequence[int]) -> list[Item]:
    """Return an item for every length and method of either part."""
    return [
        {"part": part, "n": n, "method": method}
        for n in sizes
        for part, methods in (("training", (*METHODS["text"], "torch")), ("generation", GENERATED))
        for method in methods
    ]


def run(item: Item) -> list[Record]:
    """Time one method at one length."""
    if item["method"] == "torch" and find_spec("torch") is None:
        return []
    measure = training if item["part"] == "training" else generation
    return [{"threads": thread_count(), **measure(item["method"], item["n"])}]


def training(method: str, n: int) -> Record:
    """Return tokens a second of a step, the median of three (one, if it is long) after one more, and its memory."""
    tokens, targets = np.random.default_rng(0).integers(0, TRAINED.vocab_size, (2, 1, n))
    step: Callable[[], object]
    if method == "torch":
        theirs = TorchLlama(TRAINED, Decoder.initial(TRAINED, 0).parameters, n)

        def step() -> object:
            return theirs.gradients(tokens, targets)
    else:
        attention = _attention(method)
        ours = Decoder.initial(TRAINED, 0, attention=attention)

        def step() -> object:
            return ours.loss_and_gradients(tokens, targets, attention=attention)

    begun = time.perf_counter()
    megabytes = peak_resident_megabytes(step)
    rounds = 1 if time.perf_counter() - begun > _LONGEST_STEP else 3
    seconds = float(np.median([_seconds(step) for _ in range(rounds)]))
    return {"tokens_per_second": significant(n / seconds), "megabytes": _rounded(megabytes)}


def generation(method: str, n: int) -> Record:
    """Return tokens a second in reading and in writing, the memory of reading, and of what is kept."""
    smollm2, text = model(), np.array(hamlet(n))
    if method == "torch":
        theirs = TorchLlama(smollm2.config, smollm2.weights, n + _BEFORE + WRITTEN)
        theirs.next_token(text[:16])
        theirs.begin()

        def take(tokens: object) -> int:
            return theirs.next_token(np.asarray(tokens))
    else:

        def begun() -> KVCacheAttention | GeneratingAttention:
            return KVCacheAttention() if method == "exact" else GeneratingAttention(load_scorer("long", PAIRS))

        generate(smollm2, text[:600], 2, begun())  # what a first call costs is no part of the time
        attention = begun()

        def take(tokens: object) -> int:
            return generate(smollm2, np.asarray(tokens), 1, attention)[0]

    written = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="tokens: .* the model was trained on", category=UserWarning)
        start = time.perf_counter()
        megabytes = peak_resident_megabytes(lambda: written.append(take(text)))
        reading = time.perf_counter() - start
        times = [_seconds(lambda: written.append(take(written[-1:]))) for _ in range(_BEFORE + WRITTEN)]
    return {
        "read_per_second": significant(n / reading),
        "written_per_second": significant(1 / float(np.median(times[_BEFORE:]))),
        "megabytes": _rounded(megabytes),
        "kept_megabytes": None if method == "torch" else significant(attention.nbytes / 1e6, 3),
        "tokens": " ".join(map(str, written[:8])),
    }


def _attention(method: str) -> DifferentiableAttention:
    """Return the attention of the study's configuration."""
    from pydantic import TypeAdapter

    from refattn.training.assembly import attention_of
    from refattn.training.config import Attention

    return attention_of(TypeAdapter(Attention).validate_python(METHODS["text"][method]))


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _rounded(megabytes: float | None) -> float | None:
    return None if megabytes is None else significant(megabytes, 3)


EXPERIMENT = Experiment(
    name="model-speed",
    question="How many tokens a second does a whole model learn, read and write, and in how much memory, by attention?",
    sizes=(1024, 2048, 8192, 32_768),
    quick_sizes=(128,),
    items=items,
    run=run,
    needs=(*NEEDS_HAMLET, "pydantic"),
    timed=("tokens_per_second", "read_per_second", "written_per_second", "megabytes"),
)
