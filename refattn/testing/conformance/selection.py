"""Which cases of an operation's grid are run (ours)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from refattn.testing.conformance.operation import PROFILES, Case, Operation
from refattn.testing.conformance.takes import Takes, merged, moved


@dataclass(frozen=True)
class Selection:
    """Cases to run, those that are not with the reason, and what is to be said."""

    cases: list[Case]
    left_out: list[tuple[Case, str]]
    notes: list[str]


def select(
    operation: Operation,
    profile: str,
    takes: Takes,
    only: str | Iterable[str],
    skip: str | Iterable[str],
    without: str | Iterable[str],
) -> Selection:
    """Return the cases of a profile that are wanted, each at a shape that is taken."""
    there = [case for case in operation.cases if PROFILES.index(case.profile) <= PROFILES.index(profile)]
    wanted, unwanted = texts("only", only, there, profile), texts("skip", skip, there, profile)
    features = _tags("without", without, operation.cases)
    cases = [case for case in there if not wanted or any(matches(text, case) for text in wanted)]
    left_out, chosen = [], []
    for case in cases:
        lacking = sorted(features & case.tags)
        if any(matches(text, case) for text in unwanted):
            left_out.append((case, "left out, as asked"))
        elif lacking:
            left_out.append((case, f"left out: without {', '.join(lacking)}"))
        else:
            chosen.append(case)
    if takes == Takes():
        return Selection(chosen, left_out, [])
    taken: list[Case] = []
    for case in chosen:
        there_now = moved(case, takes)
        if isinstance(there_now, str):
            left_out.append((case, f"not taken: {there_now}"))
        else:
            taken.append(there_now)
    if chosen and not taken:
        raise ValueError(f"takes: no case is left: {left_out[-1][1]} ({left_out[-1][0].name})")
    kept, notes = merged(taken)
    return Selection(kept, left_out, notes)


def matches(text: str, case: Case) -> bool:
    """Whether a text is a case's name, one of its tags, or stands in its name as whole words.

    ``k = 1`` is not in ``k = 12``, and ``k = 2`` not in ``k = 2.5``.
    """
    return text in case.tags or re.search(rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)", case.name) is not None


def texts(argument: str, given: str | Iterable[str], cases: list[Case], profile: str) -> tuple[str, ...]:
    """Return the texts given, each of which some case of the profile has."""
    found = _as_texts(argument, given)
    for text in found:
        if not text.strip() or not any(matches(text, case) for case in cases):
            names, tags = "; ".join(case.name for case in cases), ", ".join(sorted({t for c in cases for t in c.tags}))
            raise ValueError(
                f"{argument}: no case of the profile {profile!r} has {text!r} as a tag, or as whole words of its name;"
                f" the tags are {tags}; the names are {names}"
            )
    return found


def _tags(argument: str, given: str | Iterable[str], cases: Iterable[Case]) -> frozenset[str]:
    known = {tag for case in cases for tag in case.tags}
    found = _as_texts(argument, given)
    for text in found:
        if text not in known:
            raise ValueError(f"{argument}: no case has the tag {text!r}; the tags are {', '.join(sorted(known))}")
    return frozenset(found)


def _as_texts(argument: str, given: str | Iterable[str]) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else tuple(given)
    for text in found:
        if not isinstance(text, str):
            raise TypeError(f"{argument}: {text!r} came, a text was wanted")
    return found
