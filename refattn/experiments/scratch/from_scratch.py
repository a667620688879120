"""Sparse and linear attentions trained from scratch on equal footing: method × task × seed × rate (ours).

An item is one training. Its records have what it was measured on at 1 ×, 2 × and 4 × the trained length, of all
targets and by the distance to what has to be recalled; beside the former stands what makes the footing equal:
parameters, tokens, pairs a query, numbers kept of the past.

The rate is chosen by `validation_accuracy`, on texts that are neither trained on nor those of the other columns: every
method is trained at every rate with the first seed, then at its best one with the other seeds. The second half has
items when the first has told the rates (`chosen.CHOSEN`); the same command goes on with them.

The trial (`quick`) has two methods and a tiny decoder that learns nothing: its records say so and are no result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from refattn.experiments.experiment import Experiment, Item, Record, significant
from refattn.experiments.scratch.chosen import trainings
from refattn.experiments.scratch.methods import METHODS, N
from refattn.experiments.scratch.settings import QUICK, QUICK_METHODS, QUICK_N, RECALL

TIMES = (1, 2, 4)
_TEST = 1_000_000
"""Added to the seed of the texts that are measured on."""


def items(sizes: Sequence[int]) -> list[Item]:
    """Return the trainings of some lengths: those of the study, or of the trial."""
    found: list[Item] = []
    for n in sizes:
        if n not in (N, QUICK_N):
            raise ValueError(f"sizes: {n} came, {N}, or {QUICK_N} for a trial, was wanted: methods have settings there")
        quick = n == QUICK_N
        trial = [{"method": method, "seed": 0, "rate": 3e-3} for method in QUICK_METHODS]
        some = trial if quick else trainings("recall", METHODS)
        found += [{"method": one["method"], "task": "recall", "n": n, **one, "quick": quick} for one in some]
    return found


def configuration(item: Item) -> dict[str, Any]:
    """Return an item's training as a configuration."""
    setting = QUICK if item["quick"] else RECALL
    optimizer = {"rate": item["rate"], "least_rate": item["rate"] / 3, "warmup": setting["steps"] // 24}
    return {**setting, "seed": item["seed"], "attention": dict(METHODS[item["method"]]), "optimizer": optimizer}


def tokens_of(setting: dict[str, Any]) -> int:
    """Return how many tokens a training takes in."""
    lessons = setting["data"].get("curriculum", [])
    steps = setting["steps"] - sum(lesson["steps"] for lesson in lessons)
    own = steps * setting["batch"]["rows"] * setting["batch"]["n"]
    return int(own + sum(lesson["steps"] * lesson["rows"] * lesson["n"] for lesson in lessons))


def run(item: Item) -> list[Record]:
    """Train, and measure at every length."""
    from refattn.experiments.scratch.distances import by_distance
    from refattn.models import LinearAttention
    from refattn.training.assembly import assemble
    from refattn.training.config import as_config
    from refattn.training.run import run_training

    setting = configuration(item)
    config = as_config(setting)
    with tempfile.TemporaryDirectory() as folder:
        made = assemble(config, folder)
        outcome = run_training(
            made.trainer,
            config.steps,
            folder,
            about=made.about,
            save_every=config.output.save_every,
            held_out=made.data.held_out,
            evaluate_every=config.output.evaluate_every,
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
        records: list[Record] = []
        for times in TIMES:
            longer = {**setting, "seed": item["seed"] + _TEST, "batch": {"n": times * item["n"], "rows": 8}}
            batches = assemble(as_config(longer), folder).data.held_out()
            for distance, targets, loss, accuracy in by_distance(model, batches, attention):
                measured = {"loss": significant(loss), "accuracy": significant(accuracy)}
                beside = footing if distance is None else {}
                records.append({"times": times, "distance": distance, "targets": targets, **measured, **beside})
    return records


EXPERIMENT = Experiment(
    name="from-scratch",
    question="Trained from scratch at equal pairs a query, what does each attention recall, and at which lengths?",
    sizes=(N,),
    quick_sizes=(QUICK_N,),
    items=items,
    run=run,
    needs=("pydantic", "safetensors"),
)
