"""The same numbers give the same bits, however they lie in memory, in every array argument of every public function.

The functions, and numbers that fit them, are those of the fuzzers' catalogue, which `test_public_functions` compares
with what the packages export. Nothing is made hostile here: only order, strides, alignment, byte order and ownership
change, of one array at a time, those within tuples and named tuples included.
"""

import mmap
from collections import Counter

import fuzz_inputs
import hypothesis
import numpy as np
import pytest
from fuzz_inputs import LAYOUTS
from fuzz_property import Refused, arrays_of, prepared, same_examples
from hypothesis import strategies as st
from test_public_functions import TARGETS


def in_other_order(a):
    """Rows and heads exchanged in memory, as (batch, n, heads, width) moved to (batch, heads, n, width)."""
    if a.ndim < 3:
        return np.asfortranarray(a)
    return np.ascontiguousarray(a.swapaxes(-2, -3)).swapaxes(-2, -3)


def memory_mapped(a):
    if not a.nbytes:
        return a
    buffer = mmap.mmap(-1, a.nbytes)
    buffer[:] = a.tobytes()
    return np.frombuffer(buffer, a.dtype).reshape(a.shape)


def part_of_wider_rows(a):
    if a.ndim == 0:
        return a
    wide = np.zeros((*a.shape[:-1], a.shape[-1] + 3), a.dtype)
    wide[..., 1:-2] = a
    return wide[..., 1:-2]


SAME_NUMBERS = {
    **{name: LAYOUTS[name] for name in ("Fortran", "reversed", "every second", "read-only", "unaligned", "big-endian")},
    "heads after rows": in_other_order,
    "memory-mapped": memory_mapped,
    "part of wider rows": part_of_wider_rows,
}
ONE_NUMBER = {
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
    "broadcast rows": lambda a: np.broadcast_to(a[..., :1], a.shape),
    "broadcast columns": lambda a: np.broadcast_to(a[..., :1, :], a.shape),
}
"""Layouts that only some arrays can have: the array with equal entries is the one to compare with."""


def arrays_within(value, path=()):
    """Yield the path to every array with numbers among arguments, and the array."""
    if isinstance(value, np.ndarray):
        if not value.dtype.hasobject and value.size:
            yield path, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from arrays_within(one, (*path, key))
    elif isinstance(value, tuple):
        for place, one in enumerate(value):
            yield from arrays_within(one, (*path, place))


def replaced(value, path, array):
    """The arguments with another array at the path."""
    if not path:
        return array
    key, *rest = path
    if isinstance(value, dict):
        return {**value, key: replaced(value[key], rest, array)}
    parts = [replaced(one, rest, array) if place == key else one for place, one in enumerate(value)]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


def outcome(target, arguments):
    """The bits of everything that came, or the refusal."""
    result = prepared(target.function, arguments)
    if isinstance(result, Refused):
        return str(result.error)
    found = arrays_of(result, "result")
    return [(name, a.dtype, a.shape, a.tolist() if a.dtype.hasobject else a.tobytes()) for name, a in found]


@pytest.fixture
def several_leads(monkeypatch):
    """Leading axes with which a layout makes a difference."""
    monkeypatch.setattr(fuzz_inputs, "LEADS", ((), (2,), (2, 2)))


@pytest.mark.usefixtures("numbers_that_fit", "several_leads")
@pytest.mark.parametrize("target", [pytest.param(target, id=target.name) for target in TARGETS])
def test_the_same_bits_however_an_array_lies_in_memory(target):
    compared = Counter()

    @same_examples(4)
    @hypothesis.given(data=st.data())
    def compare(data):
        arguments = data.draw(target.arguments)
        if isinstance(arguments, Refused):
            return
        for path, array in arrays_within(arguments):
            right = outcome(target, replaced(arguments, path, np.ascontiguousarray(array).reshape(array.shape)))
            for layout, laid_out in SAME_NUMBERS.items():
                found = outcome(target, replaced(arguments, path, laid_out(array)))
                assert found == right, f"{path}, {layout}"
            for layout, laid_out in ONE_NUMBER.items():
                if array.ndim < 2:
                    continue
                equal = laid_out(array)
                right_of_equal = outcome(target, replaced(arguments, path, equal.copy()))
                assert outcome(target, replaced(arguments, path, equal)) == right_of_equal, f"{path}, {layout}"
            compared[path] += not isinstance(right, str)

    compare()
    refused = [path for path, results in compared.items() if not results]
    assert not refused, f"never a result with {refused}"
