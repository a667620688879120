"""What a configuration asks for, made: data, model, attention, optimiser, and their trainer (ours)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from refattn.models import (
    ConvAttention,
    Decoder,
    DifferentiableAttention,
    ExactAttention,
    FixedAttention,
    GPT2Config,
    HashingAttention,
    LinearAttention,
    LlamaConfig,
    LowRankAttention,
    RandomBlockAttention,
    RoutingAttention,
    SparseKAttention,
    StridedAttention,
    WindowAttention,
)
from refattn.training import config as _config
from refattn.training.adamw import AdamW
from refattn.training.batches import Batch, Windows, windows_in_order
from refattn.training.config import TrainingConfig, text_files
from refattn.training.corpus import Document, documents_in_files, packaged_documents, prepare_corpus
from refattn.training.curriculum import Lesson, in_order
from refattn.training.passkeys import Passkeys
from refattn.training.recall import Recall
from refattn.training.run import Outcome, run_training
from refattn.training.schedule import WarmupCosine
from refattn.training.tokenizer import TextTokenizer
from refattn.training.trainer import Trainer


class Data(NamedTuple):
    """Batches by number, held-out batches, tokens there are, a digest of the texts, their tokenizer."""

    batches: Callable[[int], Batch]
    held_out: Callable[[], Iterator[Batch]]
    vocab_size: int
    corpus: str
    tokenizer: TextTokenizer | None


class Assembled(NamedTuple):
    """A training before its first step."""

    trainer: Trainer
    data: Data
    about: dict[str, Any]


def train(
    config: TrainingConfig,
    folder: str | os.PathLike[str],
    *,
    texts: str | os.PathLike[str] = ".",
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Run what a configuration says, or go on with it, in a folder; `texts` is where names of files begin.

    Errors are those of `run_training`, and a ValueError where data and sizes do not fit.
    """
    made = assemble(config, folder, texts=texts)
    return run_training(
        made.trainer,
        config.steps,
        folder,
        about=made.about,
        save_every=config.output.save_every,
        held_out=made.data.held_out,
        evaluate_every=config.output.evaluate_every,
        on_step=on_step,
    )


def assemble(
    config: TrainingConfig, folder: str | os.PathLike[str], *, texts: str | os.PathLike[str] = "."
) -> Assembled:
    """Return a training before its first step; the tokens of texts are put into the folder, or found there."""
    data, attention = _data(config, Path(folder), Path(texts)), attention_of(config.attention)
    model = Decoder.initial(
        _model(config, data.vocab_size), config.seed, config.model.dtype, attention=attention, tied=config.model.tied
    )
    settings = config.optimizer
    optimizer = AdamW(
        model.parameters,
        beta_1=settings.beta_1,
        beta_2=settings.beta_2,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    trainer = Trainer(
        model,
        data.batches,
        optimizer,
        WarmupCosine(settings.rate, config.steps, settings.warmup, settings.least_rate),
        clip=settings.clip or None,
        accumulate=config.batch.accumulate,
        attention=attention,
        recompute=config.recompute,
    )
    return Assembled(trainer, data, {**config.identity(), "corpus": data.corpus})


def _data(config: TrainingConfig, folder: Path, texts: Path) -> Data:
    asked, n, rows = config.data, config.batch.n, config.batch.rows
    piece = rows // config.batch.accumulate
    windows = config.output.evaluate_windows
    if isinstance(asked, _config.Files | _config.Package):
        corpus = prepare_corpus(
            _documents(asked, texts),
            folder / "data",
            tokenizer=asked.tokenizer,
            vocab_size=asked.vocab_size,
            held_out=asked.held_out,
            seed=asked.split_seed,
        )
        for name, file in (("training", corpus.training), ("held-out", corpus.held_out)):
            if len(file.tokens) <= n:
                raise ValueError(f"batch.n: {n} came, below the {len(file.tokens)} {name} tokens was wanted")
        held = corpus.held_out.tokens
        return Data(
            Windows(corpus.training.tokens, n, rows, config.seed),
            lambda: windows_in_order(held, n, piece, windows),
            corpus.tokenizer.vocab_size,
            corpus.training.corpus,
            corpus.tokenizer,
        )
    options = asked.model_dump(exclude={"kind", "curriculum"})
    task = Recall(n, **options) if isinstance(asked, _config.RecallTask) else Passkeys(n, **options)
    lessons = asked.curriculum if isinstance(asked, _config.RecallTask) else []
    return Data(
        in_order([_lesson(one, options, config.seed) for one in lessons], _batches(task, rows, config.seed)),
        lambda: (
            task.batch(piece, seed=config.seed, number=number, held_out=True) for number in range(-(-windows // piece))
        ),
        task.vocab_size,
        "",
        None,
    )


def _lesson(asked: _config.RecallLesson, options: dict[str, Any], seed: int) -> Lesson:
    task = Recall(asked.n, **{**options, "n_pairs": asked.n_pairs})
    return Lesson(asked.steps, _batches(task, asked.rows, seed))


def _batches(task: Recall | Passkeys, rows: int, seed: int) -> Callable[[int], Batch]:
    return lambda step: task.batch(rows, seed=seed, number=step)


def _documents(asked: _config.Files | _config.Package, texts: Path) -> list[Document]:
    if isinstance(asked, _config.Package):
        return packaged_documents(asked.package)
    return documents_in_files(text_files(asked, texts), asked.separator)


def _model(config: TrainingConfig, vocab_size: int) -> LlamaConfig | GPT2Config:
    asked, n = config.model, config.batch.n
    if asked.family == "gpt2":
        return GPT2Config(asked.n_layers, asked.width, asked.ffn_width or 4 * asked.width, vocab_size, asked.n_heads, n)
    return LlamaConfig(
        n_layers=asked.n_layers,
        width=asked.width,
        ffn_width=asked.ffn_width or 8 * -(-asked.width // 3),  # 8/3 of the width, as many weights as two maps of 4
        vocab_size=vocab_size,
        n_heads=asked.n_heads,
        n_kv_heads=asked.n_kv_heads or asked.n_heads,
        head_width=asked.width // asked.n_heads,
        context_length=n,
        rope_base=asked.rope_base,
        norm_eps=1e-5,
    )


_ATTENTIONS: dict[type, Callable[..., DifferentiableAttention]] = {
    _config.Exact: ExactAttention,
    _config.SlidingWindow: WindowAttention,
    _config.SparseK: SparseKAttention,
    _config.Conv: ConvAttention,
    _config.LowRank: LowRankAttention,
    _config.Linear: LinearAttention,
    _config.Strided: StridedAttention,
    _config.Fixed: FixedAttention,
    _config.RandomBlocks: RandomBlockAttention,
    _config.Hashing: HashingAttention,
    _config.Routing: RoutingAttention,
}


def attention_of(asked: Any) -> DifferentiableAttention:
    """Return the attention of a configuration's section."""
    try:
        return _ATTENTIONS[type(asked)](**asked.model_dump(exclude={"kind"}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"attention: {error}") from None
