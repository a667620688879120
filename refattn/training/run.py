"""A training from its first step to its last, in a folder: its checkpoint, its log, Ctrl-C (ours).

The folder holds ``checkpoint.safetensors``, written every so many steps and at the end, and ``log.jsonl``. Parameters
that are not trained are in the checkpoint as a digest alone. Whatever stops the training, the same call goes on from
the checkpoint, and ends with the bits of one that was not stopped: a batch follows from its number, and nothing else
changes from step to step. Another machine, another number of threads of the BLAS, or another version of NumPy may sum
in another order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refattn._files import exclusively
from refattn._validation import as_count
from refattn.training.batches import Batch
from refattn.training.checkpoint import read_checkpoint, write_checkpoint
from refattn.training.interruption import Interruption
from refattn.training.log import Log, read_log
from refattn.training.trainer import Trainer

CHECKPOINT, LOG = "checkpoint.safetensors", "log.jsonl"


class Outcome(NamedTuple):
    """How a training ended.

    Attributes
    ----------
    steps : int
        Steps taken, in this call and before.
    interrupted : bool
        Whether Ctrl-C ended it before its last step.
    last : dict
        The last line of the log.

    Examples
    --------
    `run_training` gives it.

    >>> Outcome._fields
    ('steps', 'interrupted', 'last')
    """

    steps: int
    interrupted: bool
    last: dict[str, Any]


def run_training(
    trainer: Trainer,
    steps: int,
    folder: str | os.PathLike[str],
    *,
    about: Mapping[str, Any] | None = None,
    save_every: int = 100,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    evaluate_every: int = 100,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Train until so many steps are taken, from the folder's checkpoint on if there is one.

    Parameters
    ----------
    trainer : Trainer
        Before its first step.
    steps : int
        Steps in all; at least 1.
    folder : path
        Made if missing.
    about : mapping from str, optional
        What the training is of, in what JSON has. A checkpoint of something else is refused.
    save_every : int, optional
        Steps from one checkpoint to the next; at least 1. The last step has one too.
    held_out : callable, optional
        ``held_out() -> batches``, the same ones every time; without it nothing is measured.
    evaluate_every : int, optional
        Steps from one measurement of the held-out loss and accuracy to the next; at least 1. It comes after the last
        step too.
    on_step : callable, optional
        ``on_step(line)``, called with every line of the log.

    Returns
    -------
    Outcome
        How it ended.

    Raises
    ------
    TrainingStoppedError
        A loss, a gradient or a parameter is not finite: the last checkpoint, whose numbers all were, is left as it is.
    refattn.training.OtherCheckpointError
        The folder's checkpoint is of something else.
    ValueError
        It is truncated or damaged, or an argument is out of range.
    BlockingIOError
        Another process is training in the folder.
    OSError
        A file cannot be written.

    Notes
    -----
    Time of the steps, and O(parameters) for every checkpoint. Source: ours.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from importlib.util import find_spec
    >>> from refattn.models import Decoder, LlamaConfig
    >>> from refattn.training import AdamW, Recall, read_log
    >>> config = LlamaConfig(n_layers=1, width=8, ffn_width=16, vocab_size=30, n_heads=2, n_kv_heads=1, head_width=4,
    ...                      context_length=16, rope_base=1e4, norm_eps=1e-5)
    >>> model, task = Decoder.initial(config, seed=0), Recall(16, 2, 10, 10, 10)
    >>> trainer = Trainer(model, lambda step: task.batch(2, seed=0, number=step), AdamW(model.parameters),
    ...                   lambda step: 0.01)
    >>> folder = tempfile.mkdtemp()
    >>> if find_spec("safetensors"):
    ...     _ = run_training(trainer, 3, folder)
    ...     print([line["step"] for line in read_log(Path(folder, LOG))])
    ... else:
    ...     print([1, 2, 3])
    [1, 2, 3]
    """
    steps, save_every = as_count("steps", steps, least=1), as_count("save_every", save_every, least=1)
    evaluate_every, about = as_count("evaluate_every", evaluate_every, least=1), dict(about or {})
    if frozen := trainer.frozen_digest():
        about["frozen"] = frozen
    folder, line, asked = Path(folder), {}, False
    folder.mkdir(parents=True, exist_ok=True)
    with exclusively(folder / "training.lock"):
        if (folder / CHECKPOINT).exists():
            read_checkpoint(folder / CHECKPOINT, trainer.trained, trainer.optimizer, about)
        with Interruption() as interruption, Log(folder / LOG, trainer.steps) as log:
            while trainer.steps < steps and not asked:
                line = _line(trainer)
                asked = interruption.asked
                last = trainer.steps >= steps
                if held_out is not None and (last or trainer.steps % evaluate_every == 0):
                    found = trainer.held_out(held_out())
                    line["held_out_loss"], line["held_out_accuracy"] = found
                log.write(line)
                if last or asked or trainer.steps % save_every == 0:
                    trainer.require_finite_parameters()
                    write_checkpoint(folder / CHECKPOINT, trainer.trained, trainer.optimizer, about)
                if on_step is not None:
                    on_step(line)
    return Outcome(trainer.steps, trainer.steps < steps, line or read_log(folder / LOG)[-1])


def _line(trainer: Trainer) -> dict[str, Any]:
    """Take a step, and return its line of the log."""
    begun = time.perf_counter()
    step = trainer.advance()
    line = step._asdict()
    line["tokens_per_second"] = round(line.pop("tokens") / (time.perf_counter() - begun), 1)
    return line
