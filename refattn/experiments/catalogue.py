"""The experiments by name; a module is imported when its experiment is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from refattn.experiments.experiment import Experiment

MODULES: Mapping[str, str] = {
    "conv-by-fft": "conv_by_fft",
    "numerical-domain": "numerical_domain",
    "error-against-k": "error_against_k",
    "maps": "maps",
    "full-attention": "full_attention",
    "perplexity-against-k": "perplexity_against_k",
    "retrieval-against-k": "retrieval_against_k",
    "time-against-n": "time_against_n",
    "baselines": "baselines",
    "sparsek-perplexity": "sparsek_perplexity",
    "sparsek-passkey": "sparsek_passkey",
    "sparsek-variations": "sparsek_variations",
}
"""Module of `refattn.experiments` that holds each ``EXPERIMENT``, in the order of the results page."""


def load(name: str) -> Experiment:
    """Return an experiment.

    Raises
    ------
    ValueError
        There is none of that name; the message has those there are.

    Examples
    --------
    >>> load("conv-by-fft").name
    'conv-by-fft'
    """
    if name not in MODULES:
        raise ValueError(f"experiment: {name!r} came, one of {', '.join(MODULES)} was wanted")
    experiment = import_module(f"refattn.experiments.{MODULES[name]}").EXPERIMENT
    if not isinstance(experiment, Experiment) or experiment.name != name:
        raise TypeError(f"refattn.experiments.{MODULES[name]}.EXPERIMENT is not the experiment {name!r}")
    return experiment
