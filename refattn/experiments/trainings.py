"""A list of configurations of trainings as an experiment: an item each, in any process (ours).

A training keeps its own checkpoint and log in the folder that its item names: one that was stopped goes on from there,
whoever computes it then. Workers on other machines have to see that folder, and the texts, under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from refattn.experiments.experiment import Experiment, Item, Record

if TYPE_CHECKING:  # needs pydantic
    from refattn.training.config import TrainingConfig


def trainings(configs: Mapping[str, TrainingConfig], folder: Path, texts: Mapping[str, Path]) -> Experiment:
    """Return the experiment of some configurations by name; `texts` are the folders where names of files begin."""
    items: list[Item] = [
        {
            "name": name,
            "config": json.dumps(config.model_dump(mode="json", exclude_unset=True), sort_keys=True),
            "folder": str((folder / name).resolve()),
            "texts": str(texts[name].resolve()),
        }
        for name, config in configs.items()
    ]
    return Experiment(
        name="trainings",
        question="What loss has each of these trainings on what was held out?",
        sizes=(1,),
        quick_sizes=(1,),
        items=lambda sizes: items,
        run=run,
        needs=("pydantic", "safetensors"),
    )


def run(item: Item) -> list[Record]:
    """Train to the end, from the checkpoint in the item's folder if there is one; return what was measured."""
    from refattn.training.assembly import train
    from refattn.training.config import as_config
    from refattn.training.log import read_log
    from refattn.training.run import LOG

    outcome = train(as_config(json.loads(item["config"])), item["folder"], texts=item["texts"])
    if outcome.interrupted:
        raise KeyboardInterrupt
    lines = read_log(Path(item["folder"], LOG))
    keys = ("step", "loss", "held_out_loss", "held_out_accuracy")
    return [{key: line[key] for key in keys} for line in lines if "held_out_loss" in line]
