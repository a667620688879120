"""The experiments by name; a module is imported when its experiment is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from refattn.experiments.experiment import Experiment

MODULES: Mapping[str, str] = {
    "conv-by-fft": "conv.by_fft",
    "numerical-domain": "conv.numerical_domain",
    "error-against-k": "conv.error_against_k",
    "conv-figure": "conv.figure",
    "conv-figure-long": "conv.figure_long",
    "terms-against-n": "conv.terms_against_n",
    "maps": "conv.maps",
    "full-attention": "conv.full_attention",
    "perplexity-against-k": "conv.perplexity_against_k",
    "retrieval-against-k": "conv.retrieval_against_k",
    "classification-against-k": "compared.classification",
    "time-against-n": "compared.time_against_n",
    "whole-models": "compared.whole_models",
    "baselines": "compared.baselines",
    "model-speed": "compared.model_speed",
    "sparsek-perplexity": "sparsek.perplexity",
    "sparsek-passkey": "sparsek.passkey",
    "sparsek-opponents": "sparsek.opponents",
    "sparsek-retrieval": "sparsek.retrieval",
    "sparsek-variations": "sparsek.variations",
    "from-scratch": "scratch.from_scratch",
    "from-scratch-text": "scratch.from_scratch_text",
    "conv-from-scratch": "scratch.conv_from_scratch",
}
"""Module of `refattn.experiments` that holds each ``EXPERIMENT``, in the order of the results page."""


def load(name: str) -> Experiment:
    """Return an experiment; a ValueError says that there is none of that name, and which there are.

    >>> load("conv-by-fft").name
    'conv-by-fft'
    """
    if name not in MODULES:
        raise ValueError(f"experiment: {name!r} came, one of {', '.join(MODULES)} was wanted")
    experiment = import_module(f"refattn.experiments.{MODULES[name]}").EXPERIMENT
    if not isinstance(experiment, Experiment) or experiment.name != name:
        raise TypeError(f"refattn.experiments.{MODULES[name]}.EXPERIMENT is not the experiment {name!r}")
    return experiment
