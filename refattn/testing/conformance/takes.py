"""What a function takes: which sizes, dtypes and layouts; and a grid of cases moved into it (ours).

    n%128, d=64|128, batch=1, n<=4096

says that lengths are multiples of 128 up to 4,096, widths 64 or 128, and batches of one. Keys are n, n_k, d, d_v,
batch, heads, kv_heads, dtypes and layouts. Without n_k, keys come in the lengths that n may have, and without d_v,
values in the widths that d may have.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from refattn._validation import as_option
from refattn.testing.conformance.adapters import MEMORY
from refattn.testing.conformance.operation import Case, Operation, Shape
from refattn.testing.conformance.precision import PRECISIONS

SIZES = tuple(one.name for one in fields(Shape))
LIKE = {"n_k": "n", "d_v": "d"}
WORDS = {"dtypes": tuple(PRECISIONS), "layouts": MEMORY}
SINGULAR = {"dtype": "dtypes", "layout": "layouts"}
_ITEM = re.compile(r"\s*(\w+)\s*(%|<=|>=|=)\s*(.+?)\s*")


@dataclass(frozen=True)
class Sizes:
    """Which numbers a size may be."""

    multiple: int = 1
    least: int = 1
    most: int | None = None
    listed: tuple[int, ...] = ()  # any where empty

    def __contains__(self, size: int) -> bool:
        fits = self.least <= size <= (size if self.most is None else self.most) and size % self.multiple == 0
        return fits and (not self.listed or size in self.listed)

    @property
    def any(self) -> bool:
        """Whether there is one at all."""
        return self.nearest(self.least) in self

    def nearest(self, size: int) -> int:
        """Return the taken size that is nearest, of two the larger."""
        if self.listed:
            there = [x for x in self.listed if replace(self, listed=()).__contains__(x)] or list(self.listed)
            return min(there, key=lambda x: (abs(x - size), -x))
        lowest = max(1, -(-self.least // self.multiple)) * self.multiple
        found = max(lowest, (size + self.multiple // 2) // self.multiple * self.multiple)
        return found if self.most is None else min(found, self.most // self.multiple * self.multiple)


@dataclass(frozen=True)
class Takes:
    """All that is said; what is not said may be anything."""

    sizes: Mapping[str, Sizes] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()

    def of(self, name: str) -> Sizes:
        """Return what a size may be."""
        return self.sizes.get(name) or self.sizes.get(LIKE.get(name, ""), Sizes())

    def __contains__(self, shape: Shape) -> bool:
        return all(getattr(shape, name) in self.of(name) for name in SIZES)

    def nearest(self, shape: Shape) -> Shape:
        """Return the nearest shape that is taken; equal lengths and equal widths stay equal where they can."""
        found = {name: self.of(name).nearest(getattr(shape, name)) for name in SIZES}
        for name, like in LIKE.items():
            if getattr(shape, name) == getattr(shape, like):
                found[name] = self.of(name).nearest(found[like])
        pairs = [
            (h, kv) for h in self._near("heads", found["heads"]) for kv in self._near("kv_heads", h) if h % kv == 0
        ]
        group = shape.heads // shape.kv_heads
        found["heads"], found["kv_heads"] = min(
            pairs, key=lambda x: (abs(math.log(x[0] / x[1] / group)), abs(x[0] - shape.heads), x)
        )
        return Shape(**found)

    def _near(self, name: str, size: int) -> list[int]:
        """Numbers of heads that are taken, up to the largest that makes sense."""
        sizes = self.of(name)
        return [x for x in (sizes.listed or range(1, max(size, 2 * sizes.nearest(size)) + 1)) if x in sizes]


def parse(given: Any, operation: Operation) -> Takes:
    """Return what was said as text, as a mapping, or in a JSON or TOML file, or raise naming what is wrong with it."""
    said = _items(given)
    known = [name for name in SIZES if _has(operation, name)]
    sizes: dict[str, dict[str, Any]] = {}
    words: dict[str, tuple[str, ...]] = {}
    for key, value in said:
        name = SINGULAR.get(key, key)
        if name in WORDS:
            listed = value.lstrip("= ").split("|") if isinstance(value, str) else list(value)
            words[name] = tuple(as_option(f"takes: {name}", str(x).strip(), WORDS[name]) for x in listed)
        elif name in known:
            sizes.setdefault(name, {}).update(_limits(name, value))
        else:
            raise ValueError(f"takes: {key!r} came, one of {', '.join((*known, *WORDS))} was wanted")
    takes = Takes({name: Sizes(**limits) for name, limits in sizes.items()}, **words)
    for name, one in takes.sizes.items():
        if not one.any:
            raise ValueError(f"takes: no {name} is taken: {_in_words(one)} contradict each other")
    heads = takes.of("heads")
    if not any(h % kv == 0 for h in takes._near("heads", heads.nearest(1)) for kv in takes._near("kv_heads", h)):
        raise ValueError(f"takes: no kv_heads ({_in_words(takes.of('kv_heads'))}) divides heads ({_in_words(heads)})")
    return takes


def moved(case: Case, takes: Takes) -> Case | str:
    """Return the case at the nearest shape and layout that are taken, or why it has none."""
    shape = takes.nearest(case.shape)
    fixed: Shape | None = getattr(case.content, "fixed", None)
    if fixed is not None:
        shape = replace(fixed, n=shape.n, n_k=shape.n)
    if shape not in takes:
        return f"its {_differing(shape, takes)} cannot be changed"
    if shape.n != shape.n_k and "causal" in case.tags and "align" not in case.tags:
        return "causal with as many keys as queries; such lengths are not taken"
    refused: str = getattr(case.content, "refuses", lambda shape: "")(shape)
    if refused:
        return refused
    memory = case.memory if not takes.layouts or case.memory in takes.layouts else takes.layouts[0]
    told = [x for x in SIZES if x not in LIKE or any(getattr(s, x) != getattr(s, LIKE[x]) for s in (shape, case.shape))]
    changed = [f"{x} = {getattr(shape, x)}" for x in told if getattr(shape, x) != getattr(case.shape, x)]
    changed += [memory] if memory != case.memory else []
    name = f"{case.name} [{', '.join(changed)}]" if changed else case.name
    return replace(case, name=name, shape=shape, memory=memory)


def merged(cases: Iterable[Case]) -> tuple[list[Case], list[str]]:
    """Return the cases without those that another one repeats, and a sentence for every one that has taken some in."""
    kept: dict[Any, list[Case]] = {}
    for case in cases:
        kept.setdefault((case.content, case.shape, case.memory, case.own_tags, case.asks), []).append(case)
    several = [same for same in kept.values() if len(same) > 1]
    said = [f"one case, at what is taken: {', '.join(case.name.partition(' [')[0] for case in x)}" for x in several]
    return [replace(same[0], gradients=any(x.gradients for x in same)) for same in kept.values()], said


def _has(operation: Operation, name: str) -> bool:
    letters = operation.axes["out"]
    needs = {"d": "D", "d_v": "D", "heads": "H", "kv_heads": "H", "n_k": "D"}
    return needs.get(name, "N") in letters


def _items(given: Any) -> list[tuple[str, Any]]:
    """Keys and values; a text that is no file and no JSON is in the notation above."""
    if isinstance(given, Mapping):
        return list(given.items())
    if not isinstance(given, str):
        raise TypeError(f"takes: {type(given).__name__} came, a text or a mapping was wanted")
    try:
        if given.endswith((".json", ".toml")):
            text = Path(given).read_text(encoding="utf-8")
            return list((json.loads(text) if given.endswith(".json") else tomllib.loads(text)).items())
        if given.lstrip().startswith("{"):
            return list(json.loads(given).items())
    except (OSError, ValueError) as error:
        raise ValueError(f"takes: {given!r} came, which cannot be read: {error}") from None
    items = []
    for text in given.split(","):
        match = _ITEM.fullmatch(text)
        if match is None:
            raise ValueError(f"takes: {text.strip()!r} came, something like n%128, d=64|128 or n<=4096 was wanted")
        items.append((match[1], match[2] + match[3]))
    return items


def _limits(name: str, value: Any) -> dict[str, Any]:
    """Fields of `Sizes` from a number, a list, a range, a mapping or a text."""
    if isinstance(value, str):
        sign, number = re.fullmatch(r"\s*(%|<=|>=|=|)(.*)", value, re.DOTALL).groups()  # type: ignore[union-attr]
        parts = [part.strip() for part in re.split(r"\.\.|\|", number)]
        if not all(re.fullmatch(r"\d+", part) and int(part) for part in parts):
            raise ValueError(f"takes: {name}: {value!r} came, %128, 64|128, 64..4096, <=4096 or >=64 was wanted")
        numbers = [int(part) for part in parts]
        if sign in ("%", "<=", ">=") and len(numbers) == 1:
            return {{"%": "multiple", "<=": "most", ">=": "least"}[sign]: numbers[0]}
        if ".." in number and len(numbers) == 2 and "|" not in number:
            return {"least": numbers[0], "most": numbers[1]}
        if ".." not in number and sign in ("", "="):
            return {"listed": tuple(numbers)}
    elif isinstance(value, Mapping):
        if set(value) <= {"multiple", "least", "most"} and all(_counts(x) for x in value.values()):
            return dict(value)
    elif isinstance(value, range):
        if len(value):
            return {"listed": tuple(value)}
    elif _counts(value):
        return {"listed": (value,)}
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        listed = tuple(value)
        if listed and all(_counts(x) for x in listed):
            return {"listed": listed}
    raise ValueError(f"takes: {name}: {value!r} came, a size, several, a range or something like '%128' was wanted")


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _in_words(sizes: Sizes) -> str:
    said = [f"multiples of {sizes.multiple}"] if sizes.multiple > 1 else []
    said += [f"at least {sizes.least}"] if sizes.least > 1 else []
    said += [f"at most {sizes.most}"] if sizes.most is not None else []
    said += ["one of " + ", ".join(map(str, sizes.listed))] if sizes.listed else []
    return " and ".join(said) or "any"


def _differing(shape: Shape, takes: Takes) -> str:
    return ", ".join(f"{x} = {getattr(shape, x)}" for x in SIZES if getattr(shape, x) not in takes.of(x))
