"""AdamW: Adam's step, and a decay of the weights apart from it (Loshchilov and Hutter 2019, arXiv 1711.05101).

The paper's Algorithm 2 at step t = 1, 2, …, with the gradient g, η_t and α in one `rate`:

    θ ← (1 − rate λ) θ
    m ← β₁ m + (1 − β₁) g
    s ← β₂ s + (1 − β₂) g²
    θ ← θ − rate m̂ / (√ŝ + ε)          m̂ = m/(1 − β₁ᵗ),  ŝ = s/(1 − β₂ᵗ)

The paper's λ is ``rate λ`` here, as in PyTorch, and its v is s. Only matrices and tables decay: a gain or a bias, which
has one axis, is not a direction that could be too long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from refattn._validation import FloatArray, as_real

_BLOCK = 1 << 15
"""Entries that are taken through all of a step at once, so that they stay in the processor's cache."""


class AdamW:
    """The moments of every trained parameter, and the step that they give.

    Parameters
    ----------
    parameters : mapping from str to ndarray
        What is going to be trained, in any shapes, float32 or float64; only names, shapes and dtypes are taken.
    beta_1, beta_2 : float, optional
        Shares of the old moments that are kept, from 0 to below 1.
    epsilon : float, optional
        ε, above 0.
    weight_decay : float, optional
        λ, for parameters of two axes and more; at least 0.

    Attributes
    ----------
    mean, square : dict from str to ndarray
        m and s, of the parameters' shapes and dtypes.
    steps : int
        Steps taken, t.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range, or a parameter is not float32 or float64.

    Notes
    -----
    A step takes time O(parameters) and memory O(1); the moments take twice the parameters' memory. Source: arXiv
    1711.05101, Algorithm 2.

    Examples
    --------
    >>> parameters = {"x": np.array([3.0, -2.0])}
    >>> optimizer = AdamW(parameters)
    >>> for _ in range(400):
    ...     optimizer.step(parameters, {"x": 2 * parameters["x"]}, rate=0.05)
    >>> bool(np.abs(parameters["x"]).max() < 1e-3), optimizer.steps
    (True, 400)
    """

    def __init__(
        self,
        parameters: Mapping[str, FloatArray],
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.95,
        epsilon: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        self.beta_1, self.beta_2 = (
            as_real(name, value, least=0.0, most=math.nextafter(1.0, 0.0))
            for name, value in (("beta_1", beta_1), ("beta_2", beta_2))
        )
        self.epsilon = as_real("epsilon", epsilon, positive=True)
        self.weight_decay = as_real("weight_decay", weight_decay, least=0.0)
        for name, parameter in parameters.items():
            _require_trainable(name, parameter)
        self.mean = {name: np.zeros(parameter.shape, parameter.dtype) for name, parameter in parameters.items()}
        self.square = {name: np.zeros_like(mean) for name, mean in self.mean.items()}
        self.steps = 0

    def step(self, parameters: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray], rate: float) -> None:
        """Write one step to the parameters, in place.

        Parameters
        ----------
        parameters : mapping from str to ndarray
            Among others those that are trained: row by row in memory, and writable.
        gradients : mapping from str to ndarray
            Of the loss, for exactly those, in their shapes and dtypes; not written to.
        rate : float
            How far; at least 0.

        Raises
        ------
        TypeError, ValueError
            A parameter or gradient is missing or does not fit, or the rate is below 0. Nothing has been changed then.
        """
        rate = as_real("rate", rate, least=0.0)
        self._require_fitting(parameters, gradients)
        self.steps += 1
        for name, mean in self.mean.items():
            parameter = parameters[name]
            decay = self.weight_decay if parameter.ndim >= 2 else 0.0
            whole = [array.reshape(-1) for array in (parameter, gradients[name], mean, self.square[name])]
            for at in range(0, parameter.size, _BLOCK):
                theta, g, m, s = (array[at : at + _BLOCK] for array in whole)
                self._step_block(theta, g, m, s, rate, decay)

    def _step_block(
        self, theta: FloatArray, g: FloatArray, m: FloatArray, s: FloatArray, rate: float, decay: float
    ) -> None:
        """The formula at the head of the module, on some entries of one parameter."""
        theta *= 1 - rate * decay
        m *= self.beta_1
        m += (1 - self.beta_1) * g
        s *= self.beta_2
        s += (1 - self.beta_2) * np.square(g)
        root = np.sqrt(s)  # of ŝ, times √(1 − β₂ᵗ)
        root /= math.sqrt(1 - self.beta_2**self.steps)
        root += self.epsilon
        np.divide(m, root, out=root)
        root *= rate / (1 - self.beta_1**self.steps)
        theta -= root

    def _require_fitting(self, parameters: Mapping[str, FloatArray], gradients: Mapping[str, FloatArray]) -> None:
        if gradients.keys() != self.mean.keys():
            differing = sorted(gradients.keys() ^ self.mean.keys())[0]
            came = "came" if differing in gradients else "is missing"
            raise ValueError(f"gradients: {differing!r} {came}, those of the {len(self.mean)} trained were wanted")
        for name, mean in self.mean.items():
            if name not in parameters:
                raise ValueError(f"parameters: {name!r} is missing")
            for kind, array in (("parameters", parameters[name]), ("gradients", gradients[name])):
                if array.shape != mean.shape or array.dtype != mean.dtype:
                    raise ValueError(
                        f"{kind}: {name!r} of shape {array.shape} and dtype {array.dtype} came,"
                        f" {mean.shape} and {mean.dtype} was wanted"
                    )
            if not (parameters[name].flags.c_contiguous and parameters[name].flags.writeable):
                raise ValueError(f"parameters: {name!r} came, writable and row by row in memory was wanted")


def _require_trainable(name: str, parameter: FloatArray) -> None:
    if not isinstance(parameter, np.ndarray) or parameter.dtype not in (np.float32, np.float64):
        came = parameter.dtype if isinstance(parameter, np.ndarray) else type(parameter).__name__
        raise TypeError(f"parameters: {name!r} is {came}, an array of float32 or float64 was wanted")
