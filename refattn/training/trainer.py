"""Training, step by step: loss and gradients of a batch, in pieces if asked; clipping; AdamW (ours).

A batch in pieces gives the gradients of the whole but for rounding: the loss is a weighted mean over the targets, so
every piece counts by the sum of its weights.

A loss, a gradient or a parameter that is not finite ends the training before it has changed anything: the parameters
are those of the last step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

from refattn._overflow import all_finite
from refattn._validation import FloatArray, as_count, as_flag, as_real
from refattn.training.adamw import AdamW
from refattn.training.batches import Batch
from refattn.training.checkpoint import digest_of
from refattn.training.clipping import clip_gradients, global_norm


class TrainingStoppedError(ArithmeticError):
    """A number in a step is NaN or infinite.

    Parameters
    ----------
    step : int
        The step's number, from 1.
    what : str
        The first layer or parameter, and what is not finite there.

    Notes
    -----
    Source: ours.

    Examples
    --------
    >>> str(TrainingStoppedError(7, "blk.0: q is not finite"))
    'step 7: blk.0: q is not finite'
    """

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}")
        self.step = step


class Evaluated(Protocol):
    """What `Trainable.evaluate` returns, such as a `refattn.models.Evaluation`.

    Attributes
    ----------
    loss, accuracy : float
        In nats, and from 0 to 1.

    Examples
    --------
    >>> Evaluated.__name__
    'Evaluated'
    """

    @property
    def loss(self) -> float:
        """In nats."""

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""


class Trainable(Protocol):
    """What is trained, such as a `refattn.models.Decoder`.

    Attributes
    ----------
    parameters : dict from str to ndarray
        By name in the order of the computation, in any shapes, float32 or float64: row by row in memory, written to by
        the training.

    Examples
    --------
    `Trainer` has a smaller one.

    >>> Trainable.__name__
    'Trainable'
    """

    parameters: dict[str, FloatArray]

    def evaluate(self, tokens: Any, targets: Any, weights: Any = None, attention: Any = None) -> Evaluated:
        """Return the weighted mean of the targets' cross-entropy, and the weighted share of those that are right.

        Parameters
        ----------
        tokens, targets, weights, attention : array_like, array_like, array_like, object
            Of `Batch`, and what the model attends with.
        """

    def loss_and_gradients(
        self,
        tokens: Any,
        targets: Any,
        weights: Any = None,
        attention: Any = None,
        recompute: bool = False,
        wanted: Collection[str] | None = None,
    ) -> tuple[float, dict[str, FloatArray]]:
        """Return the same, and its gradients by the parameters' names.

        Parameters
        ----------
        tokens, targets, weights, attention : array_like, array_like, array_like, object
            As for `evaluate`.
        recompute : bool, optional
            Compute every layer's activations again in the backward, and save their memory.
        wanted : collection of str, optional
            Parameters whose gradients are wanted; all by default.
        """


class Step(NamedTuple):
    """What a step was.

    Attributes
    ----------
    step : int
        Its number, from 1.
    loss, gradient_norm, rate : float
        The loss of its batch before it, the global norm of its gradients before clipping, its rate.
    tokens : int
        Tokens in the batch.

    Examples
    --------
    `Trainer` gives them.

    >>> Step._fields
    ('step', 'loss', 'gradient_norm', 'rate', 'tokens')
    """

    step: int
    loss: float
    gradient_norm: float
    rate: float
    tokens: int


class HeldOut(NamedTuple):
    """What a model makes of batches that it does not learn from.

    Attributes
    ----------
    loss, accuracy : float
        Weighted means over the targets: of the cross-entropy, in nats, and of being right, from 0 to 1.

    Examples
    --------
    `Trainer.held_out` gives it.

    >>> HeldOut._fields
    ('loss', 'accuracy')
    """

    loss: float
    accuracy: float


class Trainer:
    """A model, its batches, its optimiser and the rate of the steps.

    Parameters
    ----------
    model : Trainable
        Such as a `refattn.models.Decoder`.
    batches : callable
        ``batches(i) -> Batch``, for step i + 1: `Windows`, say.
    optimizer : AdamW
        Made of the model's parameters, or of some: these are trained, and the others stay as they are.
    schedule : callable
        ``schedule(i) -> rate``: `WarmupCosine`, say.
    clip : float or None, optional
        As `most` of `clip_gradients`; None leaves gradients as they are.
    accumulate : int, optional
        Pieces in which a batch is taken, a divisor of its rows.
    attention : object, optional
        Handed on to the model.
    recompute : bool, optional
        As for `Trainable.loss_and_gradients`.

    Raises
    ------
    TypeError, ValueError
        A number is of the wrong kind or out of range.

    Notes
    -----
    A step takes the model's forward and backward and O(parameters). Source: ours.

    Examples
    --------
    >>> import numpy as np
    >>> class Mean:
    ...     parameters = {"mean": np.zeros(1)}
    ...     def loss_and_gradients(self, tokens, targets, weights=None, attention=None, recompute=False, wanted=None):
    ...         off = self.parameters["mean"] - np.mean(targets)
    ...         return float(off[0] ** 2), {"mean": 2 * off}
    >>> model, batch = Mean(), Batch(np.array([[4, 4]]), np.array([[1, 3]]))
    >>> trainer = Trainer(model, lambda step: batch, AdamW(model.parameters), lambda step: 0.1)
    >>> for _ in range(300):
    ...     step = trainer.advance()
    >>> step.step, bool(step.loss < 1e-3)
    (300, True)
    """

    def __init__(
        self,
        model: Trainable,
        batches: Callable[[int], Batch],
        optimizer: AdamW,
        schedule: Callable[[int], float],
        *,
        clip: float | None = 1.0,
        accumulate: int = 1,
        attention: Any = None,
        recompute: bool = False,
    ) -> None:
        self.model, self.batches, self.optimizer, self.schedule = model, batches, optimizer, schedule
        self.clip = None if clip is None else as_real("clip", clip, positive=True)
        self.accumulate = as_count("accumulate", accumulate, least=1)
        self.attention, self.recompute = attention, as_flag("recompute", recompute)

    @property
    def steps(self) -> int:
        """Steps taken."""
        return self.optimizer.steps

    @property
    def trained(self) -> dict[str, FloatArray]:
        """The parameters that the optimiser is of, by name."""
        return {name: array for name, array in self.model.parameters.items() if name in self.optimizer.mean}

    def frozen_digest(self) -> str:
        """Return a digest of the parameters that are not trained, or nothing if there is none."""
        frozen = {name: array for name, array in self.model.parameters.items() if name not in self.optimizer.mean}
        return digest_of(frozen) if frozen else ""

    def advance(self) -> Step:
        """Take one step, or none.

        Raises
        ------
        TrainingStoppedError
            The loss or a gradient is not finite; nothing has been changed.
        ValueError
            The batch's rows cannot be taken in so many pieces, or the model refuses it.
        """
        taken = self.steps
        batch, rate = self.batches(taken), self.schedule(taken)
        loss, gradients = self._loss_and_gradients(batch)
        norm = global_norm(gradients) if self.clip is None else clip_gradients(gradients, self.clip)
        if not math.isfinite(norm):
            raise TrainingStoppedError(taken + 1, f"{self._first(gradients)}: the gradient is not finite")
        self.optimizer.step(self.model.parameters, gradients, rate)
        return Step(taken + 1, loss, norm, rate, batch.tokens.size)

    def held_out(self, batches: Iterable[Batch]) -> HeldOut:
        """Return the mean loss over batches, and the share of their targets that the model gets right.

        Parameters
        ----------
        batches : iterable of Batch
            At least one.

        Raises
        ------
        TrainingStoppedError
            The loss is not finite.
        ValueError
            There is no batch in which a target counts.
        """
        loss = right = weight = 0.0
        for batch in batches:
            share = _weight(batch)
            evaluate = partial(self.model.evaluate, *_arrays(batch), attention=self.attention)
            found = self._finite(self.steps, evaluate)
            loss, right, weight = loss + share * found.loss, right + share * found.accuracy, weight + share
        if weight == 0:
            raise ValueError("batches: none in which a target counts came, at least one was wanted")
        return HeldOut(loss / weight, right / weight)

    def require_finite_parameters(self) -> None:
        """Raise ``TrainingStoppedError`` unless every parameter is finite, so that no others are kept."""
        for name, parameter in self.trained.items():
            if not all_finite(parameter):
                raise TrainingStoppedError(self.steps, f"{name}: a parameter is not finite")

    def _loss_and_gradients(self, batch: Batch) -> tuple[float, dict[str, FloatArray]]:
        """Return those of a batch, piece by piece."""
        whole, loss = _weight(batch), 0.0
        gradients: dict[str, FloatArray] = {}
        for piece in _pieces(batch, self.accumulate):
            share = _weight(piece) / whole if whole > 0 else 1.0
            if share == 0:
                continue  # none of its targets counts
            both = partial(
                self.model.loss_and_gradients, *_arrays(piece), attention=self.attention, recompute=self.recompute,
                wanted=self.optimizer.mean.keys(),
            )  # fmt: skip
            value, found = self._finite(self.steps + 1, both)
            loss += share * value
            for name, gradient in found.items():
                if share != 1:
                    gradient *= share
                if name in gradients:
                    gradients[name] += gradient
                else:
                    gradients[name] = gradient
        return loss, gradients

    def _finite(self, step: int, compute: Callable[[], Any]) -> Any:
        """Return what is computed for a step; name the step where it, or what it came from, is not finite."""
        try:
            found = compute()
        except ArithmeticError as error:  # a decoder's names the layer
            raise TrainingStoppedError(step, str(error)) from error
        except ValueError as error:  # tokens out of range, or what an attention refuses
            raise ValueError(f"step {step}: {error}") from error
        loss = found[0]
        if not math.isfinite(loss):
            raise TrainingStoppedError(step, f"{self._first(self.model.parameters)}: the loss is {loss}")
        return found

    def _first(self, arrays: Mapping[str, FloatArray]) -> str:
        """Return the first parameter, in the model's order, whose array is not finite."""
        bad = (name for name in self.model.parameters if name in arrays and not all_finite(arrays[name]))
        return next(bad, "all parameters are finite")


def _weight(batch: Batch) -> float:
    return float(batch.targets.size if batch.weights is None else batch.weights.sum(dtype=float))


def _pieces(batch: Batch, count: int) -> Iterator[Batch]:
    rows = len(batch.tokens)
    if rows % count:
        raise ValueError(f"accumulate: {count} came, a divisor of the {rows} rows of a batch was wanted")
    size = rows // count
    for at in range(0, rows, size):
        part = slice(at, at + size)
        yield Batch(batch.tokens[part], batch.targets[part], None if batch.weights is None else batch.weights[part])


def _arrays(batch: Batch) -> tuple[Any, Any, Any]:
    """Return a batch as a model takes it."""
    return batch.tokens, batch.targets, batch.weights
