"""Conformance in a suite of pytest: a test for every case (ours).

In the suite's topmost ``conftest.py``::

    pytest_plugins = ["refattn.testing.pytest_plugin"]

and in a test, which then runs once for every case, under the case's name::

    from refattn.testing.pytest_plugin import conformance_cases

    @pytest.mark.parametrize("conformance_case", conformance_cases("dense", takes="n%64, d=64"))
    def test_my_kernel(conforms):
        conforms(my_kernel, backward=my_backward)

``-k grouped`` chooses by tag or by name, ``-n`` and ``--lf`` work as for any test, and ``-v`` shows a failure's whole
report. A case that the kernel refuses is skipped with what it raised; ``strict=True`` makes it fail. Nothing happens
in a suite that does not ask for the plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
from numpy.typing import NDArray

from refattn.testing.conformance import ConformanceCase, ConformanceReport, check_case, list_cases
from refattn.testing.conformance.cases import left_out
from refattn.testing.conformance.report import PASS

__all__ = ["conformance_cases"]


def conformance_cases(
    spec: str,
    *,
    profile: str = "standard",
    takes: str | Mapping[str, Any] = "",
    only: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
    without: str | Iterable[str] = (),
    seeds: int | Iterable[int] = 0,
) -> list[Any]:
    """Return the cases of a check as the parameters of a test, each with its name.

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
        As for `refattn.testing.check_attention`; these are marked to be skipped.
    without : str or iterable of str, optional
        As for `refattn.testing.check_attention`; these are marked to be skipped.
    seeds : int or iterable of int, optional
        As for `refattn.testing.check_attention`.

    Returns
    -------
    list of pytest.param
        One for every case. Those that are to be skipped have the reason.

    Raises
    ------
    TypeError, ValueError
        As `check_attention`.

    See Also
    --------
    refattn.testing.list_cases : The same without pytest.

    Notes
    -----
    O(cases); no arrays are made. Source: ours.

    Examples
    --------
    >>> from refattn.testing.pytest_plugin import conformance_cases
    >>> [one.id for one in conformance_cases("dense", profile="quick", only=["causal, n = 2", "causal, n = 16"])]
    ['ordinary-causal-n2', 'ordinary-causal-n16']
    """
    cases = list_cases(spec, profile=profile, takes=takes, only=only, skip=skip, without=without, seeds=seeds)
    unwanted = left_out(spec, profile, takes, only, skip, without)
    return [pytest.param(case, id=str(case)) for case in cases] + [
        pytest.param(None, id=name, marks=pytest.mark.skip(reason)) for name, reason in unwanted
    ]


@pytest.fixture
def conformance_case() -> ConformanceCase:
    """Return the case of this test: parametrize this name with `conformance_cases`."""
    raise pytest.UsageError("the test needs @pytest.mark.parametrize('conformance_case', conformance_cases(…))")


@pytest.fixture
def conforms(conformance_case: ConformanceCase, request: pytest.FixtureRequest) -> Callable[..., ConformanceReport]:
    """Return a function that checks an implementation on this test's case, and ends the test unless it conforms."""
    verbose = request.config.get_verbosity() > 0

    def check(function: Callable[..., Any], **options: Any) -> ConformanceReport:
        report = check_case(function, conformance_case, shrink=verbose, **options)
        result = report.cases[0]
        if report.failures:
            pytest.fail(str(report) if verbose else report.short(), pytrace=False)
        if result.verdict != PASS:
            pytest.skip(f"{result.verdict}: {result.reason}")
        if not report.passed:
            pytest.skip(f"the output conforms; gradients refused: {result.gradients_refused}")
        return report

    return check


@pytest.fixture
def conformance_inputs(conformance_case: ConformanceCase) -> dict[str, NDArray[Any]]:
    """Return the arrays of this test's case by name, in float32; the options are ``conformance_case.options()``."""
    return conformance_case.inputs()


@pytest.fixture
def conformance_truth(conformance_case: ConformanceCase) -> dict[str, NDArray[Any]]:
    """Return the right results for `conformance_inputs`, in float64; skip where only some rows have a known truth."""
    try:
        return dict(conformance_case.truth())
    except ValueError as error:
        pytest.skip(str(error))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let ``-k`` choose cases by their tags."""
    for item in items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("conformance_case")  # type: ignore[attr-defined]
        if isinstance(case, ConformanceCase):
            item.extra_keyword_matches.update(case.tags)
