"""The fine-tuning command's parts, on a small model: what was stopped goes on to the same scorers."""

from __future__ import annotations

import numpy as np
import pytest

from refattn.laboratory.scorers import finetune
from refattn.laboratory.scorers.finetune import Work, assemble, fit_layer, residual_sizes, share, with_shared_counts
from refattn.laboratory.scorers.texts import Window
from refattn.laboratory.scorers.training import Stage
from refattn.models import Llama, LlamaConfig

CONFIG = LlamaConfig(
    n_layers=2, width=12, ffn_width=16, vocab_size=30, n_heads=4, n_kv_heads=2, head_width=4, context_length=1024,
    rope_base=1e4, norm_eps=1e-5,
)  # fmt: skip
N = 640


@pytest.fixture
def work(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    texts = rng.integers(0, 30, (3, N))
    monkeypatch.setattr(finetune, "window_tokens", lambda window: texts[int(window.text)])
    monkeypatch.setattr(finetune, "JUDGED", (0, 2))
    monkeypatch.setattr(finetune, "SPLITS", {256: (24, 40), 128: (12, 20)})
    monkeypatch.setattr(finetune, "_manifest", lambda work, kind, budget, layers: {"kind": kind, "seed": 0})
    stages = {128: (Stage("importance", 3, 2, 0.01), Stage("distillation", 2, 1, 0.01))}
    recipe = finetune.Recipe(list, {**stages, 256: (Stage("distillation", 1, 1, 0.01),)})
    monkeypatch.setattr(finetune, "RECIPES", {"learned": recipe, "long": recipe})
    weights = {name: 0.5 * rng.standard_normal(shape) for name, shape in CONFIG.tensor_shapes().items()}
    windows = [Window(str(number), 0, N) for number in range(3)]
    return lambda name: Work(_made(tmp_path / name), Llama(CONFIG, weights), windows)


def _made(folder):
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.slow
def test_a_stopped_layer_goes_on_to_the_same_scorer(work):
    one, other = work("one"), work("other")

    class StopError(Exception):
        pass

    def stop(passes):
        if passes == 4:
            raise StopError

    for layer in range(2):
        with pytest.raises(StopError):
            fit_layer(one, layer, 128, stop)
        fit_layer(one, layer, 128)
        fit_layer(other, layer, 128)
    stopped, undisturbed = (assemble(each, "learned", 128) for each in (one, other))
    np.testing.assert_array_equal(stopped.weight, undisturbed.weight)
    np.testing.assert_array_equal(stopped.slope, undisturbed.slope)
    assert not np.array_equal(stopped.weight, assemble(one, "ridge", 128).weight)


def test_the_larger_budget_begins_with_the_smaller_one_s_scorer(work):
    here = work("here")
    with pytest.raises(OSError, match="learned-128"):
        fit_layer(here, 0, 256)
    assert assemble(here, "learned", 256) is None
    for budget in (128, 256):
        for layer in range(2):
            fit_layer(here, layer, budget)
    assert assemble(here, "learned", 256).budget == 64
    fit_layer(here, 0, 256, lambda passes: pytest.fail("done already"))


def test_shared_counts_are_of_the_choices_and_within_the_mean(work):
    here = work("here")
    for layer in range(2):
        fit_layer(here, layer, 128)
    learned = assemble(here, "learned", 128)
    counts = share(here, 128, learned)
    shared = with_shared_counts(learned, counts)
    assert (shared.n_select + shared.window).mean() <= 128
    assert shared.manifest["n_select"] == [k for k, _ in counts]
    np.testing.assert_array_equal(shared.weight, learned.weight)


def test_the_residual_stream_is_what_the_layers_are_added_to(work):
    model = work("here").model
    tokens = np.arange(300) % 30
    sizes = residual_sizes(model, tokens)
    embedded = model.weights["token_embd.weight"][tokens]
    assert len(sizes) == 2
    np.testing.assert_allclose(sizes[0], np.square(embedded[256:]).sum(axis=1).mean(), rtol=1e-5)
