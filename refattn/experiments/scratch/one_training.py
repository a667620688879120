"""One training of the study, and what it is measured on (ours).

An item is one training. Its records are

- the validation loss on the way, by `step`;
- what the decoder makes of the test texts at 1 ×, 2 × and 4 × the trained length (`times`), of all targets and by the
  distance to what has to be recalled; beside the former stands what makes the footing equal: parameters, tokens, pairs
  a query, numbers kept of the past.

The rate is chosen by what is measured for validation at the end, on texts that are neither trained on nor tested on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refattn.experiments.experiment import Item, Record, significant
from refattn.experiments.scratch.chosen import trainings
from refattn.experiments.scratch.methods import LENGTHS, METHODS
from refattn.experiments.scratch.settings import QUICK, QUICK_METHODS, QUICK_N, SETTINGS
from refattn.training.batches import Batch

TIMES = (1, 2, 4)


def items_of(task: str, sizes: Iterable[int]) -> list[Item]:
    """Return the trainings of a task: those of the study, or of the trial."""
    found: list[Item] = []
    for n in sizes:
        if n not in (LENGTHS[task], QUICK_N):
            raise ValueError(
                f"sizes: {n} came, {LENGTHS[task]}, or {QUICK_N} for a trial, was wanted: methods have settings there"
            )
        quick = n == QUICK_N
        trial = [{"method": method, "seed": 0, "rate": 3e-3} for method in QUICK_METHODS]
        some = trial if quick else trainings(task, METHODS[task])
        found += [{"method": one["method"], "task": task, "n": n, **one, "quick": quick} for one in some]
    return found


def configuration(item: Item) -> dict[str, Any]:
    """Return an item's training as a configuration."""
    setting = (QUICK if item["quick"] else SETTINGS)[item["task"]]
    optimizer = {"rate": item["rate"], "least_rate": item["rate"] / 3, "warmup": setting["steps"] // 24}
    attention = dict(METHODS[item["task"]][item["method"]])
    return {**setting, "seed": item["seed"], "attention": attention, "optimizer": optimizer}


def tokens_of(setting: dict[str, Any]) -> int:
    """Return how many tokens a training takes in."""
    lessons = setting["data"].get("curriculum", [])
    steps = setting["steps"] - sum(lesson["steps"] for lesson in lessons)
    own = steps * setting["batch"]["rows"] * setting["batch"]["n"]
    return int(own + sum(lesson["steps"] * lesson["rows"] * lesson["n"] for lesson in lessons))


def trained_and_tested(
    item: Item,
    texts: Path,
    test: Callable[[int], Iterable[Batch]],
    far_back: Callable[[Batch], NDArray[np.int64]],
) -> list[Record]:
    """Train, and measure on ``test(times)``; `texts` is the folder where names of files begin."""
    from refattn.experiments.scratch.distances import by_distance
    from refattn.models import LinearAttention
    from refattn.training.assembly import assemble
    from refattn.training.config import as_config
    from refattn.training.run import run_training

    setting = configuration(item)
    config = as_config(setting)
    records: list[Record] = []

    def noted(line: dict[str, Any]) -> None:
        if "held_out_loss" in line:
            records.append({"step": line["step"], "loss": significant(line["held_out_loss"])})

    with tempfile.TemporaryDirectory() as folder:
        made = assemble(config, folder, texts=texts)
        outcome = run_training(
            made.trainer,
            config.steps,
            folder,
            about=made.about,
            save_every=config.output.save_every,
            held_out=made.data.held_out,
            evaluate_every=config.output.evaluate_every,
            on_step=noted,
        )
        if outcome.interrupted:
            raise KeyboardInterrupt
        width = config.model.width // config.model.n_heads
        model, attention = made.trainer.model, made.trainer.attention
        footing: Record = {
            "parameters": sum(parameter.size for parameter in model.parameters.values()),
            "tokens": tokens_of(setting),
            "pairs": attention.pairs_per_query(item["n"]),
            "state": attention.state_size(width) if isinstance(attention, LinearAttention) else None,
            "validation_accuracy": significant(outcome.last["held_out_accuracy"]),
            "validation_loss": significant(outcome.last["held_out_loss"]),
        }
        for times in TIMES:
            for distance, targets, loss, accuracy in by_distance(model, test(times), attention, far_back):
                measured = {"loss": significant(loss), "accuracy": significant(accuracy)}
                beside = footing if distance is None else {}
                records.append({"times": times, "distance": distance, "targets": targets, **measured, **beside})
    return records
