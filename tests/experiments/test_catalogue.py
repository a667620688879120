"""Every experiment can be handed to other processes: its items are plain, what runs them is found by its name."""

import json
import pickle

import pytest

from refattn.experiments import catalogue
from refattn.experiments.records import identity


@pytest.mark.parametrize("name", catalogue.MODULES)
def test_items_and_what_runs_them_go_to_another_process_unchanged(name):
    experiment = catalogue.load(name)
    assert pickle.loads(pickle.dumps(experiment.run)) is experiment.run
    for sizes in (experiment.sizes, experiment.quick_sizes):
        items = experiment.items(sizes)
        assert len({identity(item) for item in items}) == len(items) > 0
        for item in items:
            assert json.loads(json.dumps(item, allow_nan=False)) == item
            assert all(value is None or isinstance(value, str | int | float | bool) for value in item.values())
