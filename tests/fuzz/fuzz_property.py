"""The property that every public function has, whatever it is given.

A call returns a result, or raises ``ValueError``, ``TypeError`` or ``MemoryError`` with a message that names an
argument. It raises nothing else, lets no warning of NumPy through, writes to nothing that it was given, makes no NaN
(and no infinity, where none is documented) of finite numbers, and comes to an end.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis
import numpy as np

from refattn import PromotionWarning

SECONDS = 120
"""Of this process: a call that takes longer hangs. The largest input takes milliseconds, compiling a loop seconds."""
WAITING = 1800
"""Seconds by the clock: a call that waits that long for something hangs, however busy the machine is."""

tally: Counter[tuple[str, str]] = Counter()
"""How many calls of every target gave a result, and how many were refused."""


def same_examples(count: int) -> hypothesis.settings:
    """Return the settings under which so many examples are drawn, the same every time, and none is made smaller."""
    return hypothesis.settings(
        max_examples=count,
        phases=[hypothesis.Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


class BrokenPropertyError(AssertionError):
    """A call did something that no call may do."""


class Refused:
    """In the place of a result: the call was refused, as it may be."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def checked_call(function: Callable[..., Any], arguments: dict[str, Any], *, names: set[str], infinite: bool) -> Any:
    """Call the function and hold it to the property; return the result, or `Refused`."""
    before = [(name, array, _state(array)) for name, array in arrays_of(arguments)]
    try:
        with _time_limit(), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", PromotionWarning)
            result = function(**arguments)
    except (ValueError, TypeError, MemoryError) as error:
        result = Refused(error)
        _require_named(error, names)
    except BrokenPropertyError:
        raise
    except Warning as warning:
        raise BrokenPropertyError(f"a warning came through: {type(warning).__name__}: {warning}") from warning
    except BaseException as error:
        raise BrokenPropertyError(f"{type(error).__name__} came through: {error}") from error
    for name, array, state in before:
        if _state(array) != state:
            raise BrokenPropertyError(f"{name}: was written to")
    if not isinstance(result, Refused) and all(_finite(array) for _, array in arrays_of(arguments)):
        _require_finite(result, infinite)
    return result


def _require_named(error: Exception, names: set[str]) -> None:
    head, colon, _ = str(error).partition(":")
    if not colon or not names & set(re.findall(r"\w+", head)):
        raise BrokenPropertyError(
            f"{type(error).__name__} does not begin with the name of an argument ({', '.join(sorted(names))}): {error}"
        ) from error


def _require_finite(result: Any, infinite: bool) -> None:
    for name, array in arrays_of(result, "result"):
        if array.dtype.kind not in "fc":
            continue
        bad = np.isnan(array) if infinite else ~np.isfinite(array)
        if bad.any():
            raise BrokenPropertyError(f"{name}: {array[bad][0]} came of finite input")


def arrays_of(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield every array in a nest of containers and data classes, with floats as arrays of no axes."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif isinstance(value, (float, np.floating)):
        yield name, np.asarray(value)
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from arrays_of(one, f"{name}[{key!r}]" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for place, one in enumerate(value):
            yield from arrays_of(one, f"{name}[{place}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from arrays_of(getattr(value, field.name), f"{name}.{field.name}")


def _state(array: np.ndarray) -> tuple[Any, ...]:
    content = repr(array.tolist()) if array.dtype.hasobject else array.tobytes()
    return content, array.shape, array.strides, array.dtype, array.flags.writeable


def _finite(array: np.ndarray) -> bool:
    return array.dtype.kind not in "fc" or bool(np.isfinite(array).all())


def prepared(function: Callable[..., Any], arguments: Any) -> Any:
    """Call a function whose result is an argument of another: return the result, or `Refused`."""
    if isinstance(arguments, Refused):
        return arguments
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(**arguments)
    except (ValueError, TypeError, MemoryError) as error:
        return Refused(error)


@contextmanager
def _time_limit() -> Iterator[None]:
    def too_long(*_: Any) -> None:
        raise BrokenPropertyError(f"the call did not end within {SECONDS} s of work, or {WAITING} s of waiting")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, WAITING))
    before = [signal.signal(number, too_long) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class Target:
    """A public function (or a method, or a chain of calls) and what to call it with.

    Attributes
    ----------
    name : str
        As in ``__all__``; after a dot, what of it.
    function : callable
        What is called.
    arguments : strategy
        Of dictionaries of arguments; or of `Refused`, where one was needed that could not be made.
    expected : callable or None
        ``expected(arguments, result)`` raises where a result of finite input is wrong.
    also : tuple of str
        Names that a message may begin with beside the function's parameters.
    infinite : bool
        Whether an infinity is documented as a result.
    """

    name: str
    function: Callable[..., Any]
    arguments: Any
    expected: Callable[[dict[str, Any], Any], None] | None = None
    also: tuple[str, ...] = ()
    infinite: bool = False

    def check(self, arguments: dict[str, Any] | Refused) -> Any:
        """Hold one call to the property, and its result to what is expected."""
        if isinstance(arguments, Refused):
            tally[self.name, "no arguments"] += 1
            return arguments
        names = {*inspect.signature(self.function).parameters, *self.also}
        result = checked_call(self.function, arguments, names=names, infinite=self.infinite)
        tally[self.name, "refused" if isinstance(result, Refused) else "result"] += 1
        if not isinstance(result, Refused) and self.expected and all(_finite(a) for _, a in arrays_of(arguments)):
            self.expected(arguments, result)
        return result
