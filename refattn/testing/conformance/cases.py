"""The cases of a check one by one, for test suites that have a test for each (ours)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from refattn._validation import FloatArray, as_flag, as_option
from refattn.testing.conformance.operation import PROFILES, Case, Operation, Problem
from refattn.testing.conformance.precision import PRECISIONS
from refattn.testing.conformance.registry import OPERATIONS
from refattn.testing.conformance.report import FAIL, ConformanceReport
from refattn.testing.conformance.running import report_of, run, shrunk
from refattn.testing.conformance.sampling import is_sampled
from refattn.testing.conformance.selection import Selection, select
from refattn.testing.conformance.subjects import Said, seeds_of, subject_of
from refattn.testing.conformance.takes import Takes, parse


class ConformanceCase:
    """One case of an operation's grid with a seed: what `list_cases` returns and `check_case` checks.

    Attributes
    ----------
    operation, profile : str
        What `list_cases` was asked for.
    seed : int
        Of its numbers.
    name, kind : str
        What is special about it, and its heading in a report.
    n : int
        Its length.
    tags : frozenset of str
        Features it needs.
    case, takes : Case, Takes
        As the grid has it, and what the function was said to take.

    Notes
    -----
    ``str(case)`` is a short name in plain letters, the same from run to run, and another for every case of a list.
    Arrays are made when they are asked for: O(n d), and O(n² d) for the truth. Source: ours.

    Examples
    --------
    >>> from refattn.testing import list_cases
    >>> case = list_cases("dense", profile="quick", only="causal, n = 63")[0]
    >>> str(case), case.n, sorted(case.tags)
    ('ordinary-causal-n63', 63, ['causal', 'ordinary'])
    """

    def __init__(self, operation: str, profile: str, seed: int, case: Case, takes: Takes) -> None:
        self.operation, self.profile, self.seed = operation, profile, seed
        self.case, self.takes = case, takes

    @property
    def name(self) -> str:
        """What is special about it, in words."""
        return self.case.name

    @property
    def kind(self) -> str:
        """Its heading in a report."""
        return self.case.kind

    @property
    def n(self) -> int:
        """Its length."""
        return self.case.n

    @property
    def tags(self) -> frozenset[str]:
        """Features it needs."""
        return self.case.tags

    def __repr__(self) -> str:
        return f"<{self.operation} {self}>"

    def __str__(self) -> str:
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"{self.kind}-{plain_words(self.name)}{seed}"

    def inputs(self, dtype: str = "float32") -> dict[str, NDArray[Any]]:
        """Return the arrays by name, in the order a function takes them.

        Parameters
        ----------
        dtype : {"float32", "float64", "float16", "bfloat16"}, optional
            To which they are rounded. Numbers of half precisions come in float32, which holds them.

        Returns
        -------
        dict of str to ndarray
            q, k, v with the axes (B, H, N, D), and what else the operation takes.
        """
        return dict(self._problem(dtype).arrays)

    def options(self) -> dict[str, Any]:
        """Return what a function takes by keyword."""
        return dict(self._problem("float32").options)

    def upstream(self, dtype: str = "float32") -> FloatArray:
        """Return the gradient of the output that `check_case` gives to a backward.

        Parameters
        ----------
        dtype : str, optional
            As for `inputs`.

        Returns
        -------
        ndarray, shape of the output
            Rounded to the dtype.
        """
        return self._problem(dtype).upstream(PRECISIONS[dtype])

    def truth(self, dtype: str = "float32") -> dict[str, FloatArray]:
        """Return the right results for `inputs` and `upstream`, in float64.

        Parameters
        ----------
        dtype : str, optional
            As for `inputs`: the truth is that of the rounded numbers.

        Returns
        -------
        dict of str to ndarray
            The output as ``"out"``, and, where the problem is differentiable, the gradient of the input x as ``"dx"``.

        Raises
        ------
        ValueError
            The case has more than 2¹⁹ logits: `check_case` judges some of its rows, and has the truth of these alone.
        """
        operation, problem = OPERATIONS[self.operation], self._problem(dtype)
        if is_sampled(operation, problem):
            raise ValueError(f"truth: {self} has too many logits for a truth of all rows; check_case samples")
        with_gradients = operation.differentiable and problem.smooth
        return dict(operation.truth(problem, problem.upstream(PRECISIONS[dtype]) if with_gradients else None))

    def _problem(self, dtype: str) -> Problem:
        return self.case.build(self.n, self.seed).rounded(PRECISIONS[as_option("dtype", dtype, PRECISIONS)])


def list_cases(
    spec: str,
    *,
    profile: str = "standard",
    takes: str | Mapping[str, Any] = "",
    only: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
    without: str | Iterable[str] = (),
    seeds: int | Iterable[int] = 0,
) -> list[ConformanceCase]:
    """Return the cases that `check_attention` would run, to check them one by one.

    Parameters
    ----------
    spec : str
        As for `refattn.testing.check_attention`.
    profile : str, optional
        As for `refattn.testing.check_attention`.
    takes : str or mapping, optional
        As for `refattn.testing.check_attention`.
    only : str or iterable of str, optional
        As for `refattn.testing.check_attention`.
    skip : str or iterable of str, optional
        As for `refattn.testing.check_attention`; these are not in the list.
    without : str or iterable of str, optional
        As for `refattn.testing.check_attention`; these are not in the list.
    seeds : int or iterable of int, optional
        As for `refattn.testing.check_attention`.

    Returns
    -------
    list of ConformanceCase
        In the order of the grid, seed by seed.

    Raises
    ------
    TypeError, ValueError
        As `check_attention`.

    See Also
    --------
    check_case : Checks one of them.

    Notes
    -----
    O(cases); no arrays are made. ``refattn.testing.pytest_plugin.conformance_cases`` returns the same as parameters
    of a test. Source: ours.

    Examples
    --------
    >>> from refattn.testing import list_cases
    >>> cases = list_cases("dense", profile="quick", takes="n%64, d=64", only=["causal, n = 63", "causal, n = 127"])
    >>> [str(case) for case in cases]
    ['ordinary-causal-n63-n64-d64', 'ordinary-causal-n127-n128-d64']
    """
    operation, taken, chosen = _chosen(spec, profile, takes, only, skip, without)
    return [ConformanceCase(operation.name, profile, s, case, taken) for s in seeds_of(seeds) for case in chosen.cases]


def left_out(
    spec: str,
    profile: str = "standard",
    takes: str | Mapping[str, Any] = "",
    only: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
    without: str | Iterable[str] = (),
) -> list[tuple[str, str]]:
    """Return the short names of the cases that `list_cases` leaves out, and why."""
    _, _, chosen = _chosen(spec, profile, takes, only, skip, without)
    return [(f"{case.kind}-{plain_words(case.name)}", reason) for case, reason in chosen.left_out]


def _chosen(
    spec: str,
    profile: str,
    takes: str | Mapping[str, Any],
    only: str | Iterable[str],
    skip: str | Iterable[str],
    without: str | Iterable[str],
) -> tuple[Operation, Takes, Selection]:
    operation = OPERATIONS[as_option("spec", spec, OPERATIONS)]
    taken = parse(takes, operation) if takes else Takes()
    return operation, taken, select(operation, as_option("profile", profile, PROFILES), taken, only, skip, without)


def check_case(
    function: Callable[..., Any], case: ConformanceCase, *, shrink: bool = False, **options: Any
) -> ConformanceReport:
    """Check an implementation of attention on one case; the check of `check_attention`, in pieces.

    Parameters
    ----------
    function : callable
        The implementation.
    case : ConformanceCase
        One of `list_cases`.
    shrink : bool, optional
        Whether a failing case is tried at smaller sizes too, which takes as long as some tens of small cases.
    **options
        Those of `check_attention` that do not choose cases: ``backward``, ``adapter``, ``arrays``, ``device``,
        ``dtype``, ``precision``, ``accumulate``, ``factor``, ``strict``, ``empty_rows``, ``names``, ``returns``,
        ``claims``, ``isolate`` and ``timeout``.

    Returns
    -------
    ConformanceReport
        Of this case alone. ``report.passed`` is False where it failed, and where nothing was judged: the function
        refused it, or does not take what it needs.

    Raises
    ------
    TypeError, ValueError
        As `check_attention`; or `case` is no case, or an option chooses cases.

    See Also
    --------
    check_attention : All cases at once.

    Notes
    -----
    O(n² d) beside the function's own time, and some tens of times that where the case fails. Source: ours.

    Examples
    --------
    >>> from refattn import dense_attention
    >>> from refattn.testing import check_case, list_cases
    >>> def kernel(q, k, v, *, causal, scale):
    ...     return dense_attention(q, k, v, mask="causal" if causal else "full", scale=0.99 * scale)
    >>> report = check_case(kernel, list_cases("dense", profile="quick", only="causal, n = 63")[0])
    >>> report.passed, report.causes[0].name
    (False, 'scale off')
    """
    if not isinstance(case, ConformanceCase):
        raise TypeError(f"case: {type(case).__name__} came, a ConformanceCase as list_cases returns them was wanted")
    if unknown := sorted(set(options) - set(Said.__dataclass_fields__)):
        raise TypeError(f"check_case: {unknown[0]} came; its options are {', '.join(Said.__dataclass_fields__)}")
    as_flag("shrink", shrink)
    with subject_of(function, OPERATIONS[case.operation], case.takes, Said(**options)) as subject:
        result, trial = run(subject, case.case, case.seed)
        wrong = result.verdict == FAIL and trial is not None
        smallest = shrunk(subject, case.case, case.seed, case.takes) if wrong and shrink else None
        trials = [trial] if wrong and trial is not None else []
        return report_of(subject, [result], trials, smallest, case.profile)


_SPELLED = {"√": "sqrt", "−": "-", "≠": "not", "≤": "up to ", "≥": "from ", "·": "-", "∞": "inf"}


def plain_words(text: str) -> str:
    """Return text as one word of the letters that ``pytest -k`` takes, for names of tests.

    >>> plain_words("logits of 10⁴, near −57,344, 1/√d [n = 64, d_v = 32]")
    'logits-of-1e4-near--57344-1/sqrtd-n64-d_v32'
    """
    powers = re.sub(r"\b10(?=[⁰¹²³⁴⁵⁶⁷⁸⁹])", "1e", text)
    spelled = "".join(_SPELLED.get(x, x) for x in powers)
    letters = unicodedata.normalize("NFKD", spelled).encode("ascii", "ignore").decode()  # ⁴ is 4 there
    together = re.sub(r"(?<=\d),(?=\d)| ?= ?", "", letters)
    return re.sub(r"[^\w.+/-]+", "-", together).strip("-")
