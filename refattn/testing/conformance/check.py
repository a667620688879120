"""The check itself: every case of the grid, a failure shrunk, a cause guessed (ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from refattn._validation import as_count, as_flag, as_option, as_real
from refattn.testing.conformance.adapters import Adapter, Caller
from refattn.testing.conformance.arrays import jax_vjp, torch_autograd
from refattn.testing.conformance.causes import guess_causes
from refattn.testing.conformance.isolation import Isolated
from refattn.testing.conformance.judge import FACTOR
from refattn.testing.conformance.operation import PROFILES, Case, Operation
from refattn.testing.conformance.precision import PRECISIONS
from refattn.testing.conformance.precision import precision as precision_named
from refattn.testing.conformance.properties import try_property
from refattn.testing.conformance.registry import OPERATIONS
from refattn.testing.conformance.report import FAIL, NOT_RUN, CaseResult, ConformanceReport
from refattn.testing.conformance.selection import select
from refattn.testing.conformance.takes import Takes, parse
from refattn.testing.conformance.trial import CLAIMS, EMPTY_ROWS, Subject, Trial, try_case

AUTOMATIC = {"torch": torch_autograd, "jax": jax_vjp}


def check_attention(
    function: Callable[..., Any],
    spec: str,
    *,
    backward: Callable[..., Any] | str | None = None,
    adapter: str | Adapter = "(B, H, N, D)",
    arrays: str = "numpy",
    dtype: str = "float32",
    precision: str | None = None,
    accumulate: str = "float32",
    seeds: int | Iterable[int] = 0,
    factor: float = FACTOR,
    profile: str = "standard",
    takes: str | Mapping[str, Any] = "",
    strict: bool = False,
    empty_rows: str = "zeros",
    only: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
    without: str | Iterable[str] = (),
    names: Mapping[str, str] | None = None,
    returns: str = "out",
    claims: str | Iterable[str] = (),
    isolate: bool = False,
    timeout: float | None = None,
) -> ConformanceReport:
    """Check an implementation of attention, and its gradients, against the truth.

    Every case of a grid (ordinary, adversarial, degenerate, real; lengths at the edges of tiles; options crossed;
    properties beyond values) goes through the function. A row of a result may differ from a float64 reference by
    `factor` times the error of a plain implementation in the same precision; the rule is written out in
    ``refattn.testing.conformance.judge``.

    Parameters
    ----------
    function : callable
        The implementation. Its signature has to be that of the operation; an option it does not take is left out, and
        cases that need it are reported as not run.
    spec : {"dense", "conv", "sparsek", "sparsek-operator", "sparsek-thresholds"}
        The operation:

        - ``"dense"``: ``fn(q, k, v, *, causal, scale, mask) -> out``. `mask` is None or boolean, (n_q, n_k) or
          (B, H, n_q, n_k) with B or H perhaps 1, True where a key may be seen.
        - ``"conv"``: ``fn(q, k, v, *, starts, scale) -> out``. Causal attention whose logits are k-conv with these
          starts: column j of segment i is column ``starts[i]``, shifted down by ``j − starts[i]``.
        - ``"sparsek"``: ``fn(q, k, v, scores, *, n_select, window, gate, hard, scale) -> out``, as
          `refattn.sparsek_attention`.
        - ``"sparsek-operator"``: ``fn(z, *, k) -> p``, z of shape (B, n), along the last axis.
        - ``"sparsek-thresholds"``: ``fn(z, *, k) -> tau``, of every prefix.
    backward : callable or "autograd", optional
        ``backward(dout, *inputs, **options)``, which returns the gradients as a tuple, in the order of the inputs.
        ``"autograd"`` takes them from PyTorch or JAX. Without it only the forward is checked.
    adapter : str or Adapter, optional
        Axes of q, k, v: ``"(B, H, N, D)"``, ``"(B, N, H, D)"``, ``"(N, D)"`` (one call for every head) or another
        order; or an `Adapter` with two functions.
    arrays : {"numpy", "torch", "jax"}, optional
        Whose arrays the function takes. It may return anything with ``__array__`` or DLPack.
    dtype : {"float32", "float64", "float16", "bfloat16"}, optional
        Of the arrays it takes.
    precision : str, optional
        What it is judged by, where that is not `dtype`: a kernel that takes float32 but multiplies in bfloat16 says so.
        Beside the dtypes ``"float8_e4m3"``, ``"float8_e5m2"`` and ``"int8-keys"`` (a factor for every key), which are
        emulated.
    accumulate : {"float32", "dtype"}, optional
        Where sums, logits and other intermediates of half precision are held: in float32, as in kernels, or in the
        dtype, as where an array library's operations are put together, which excuses much more.
    seeds : int or iterable of int, optional
        Seeds of the inputs; the whole grid runs for each.
    factor : float, optional
        How many times the error of the plain implementation is excused; at least 1. What independent roundings may
        do, derived from the terms of the row, is excused besides.
    profile : {"quick", "standard", "long"}, optional
        ``"quick"``: up to 200 rows, seconds. ``"standard"``: lengths up to 4,096 too, options crossed, properties;
        under a minute for a fast kernel. ``"long"``: up to 65,536 rows and 262,145 keys too. Of a problem with more
        than 2¹⁹ logits some rows are judged, and the report says which.
    takes : str or mapping, optional
        What the function takes, as ``"n%128, d=64|128, batch=1, n<=4096"``, as a mapping such as
        ``{"n": "%128", "d": [64, 128], "batch": 1}``, or the name of a JSON or TOML file with one. Keys are n, n_k
        (as n where absent), d, d_v (as d where absent), batch, heads, kv_heads, dtypes and layouts (how arrays lie in
        memory: contiguous, transposed, rows, columns). Every case is moved to the nearest shape that is taken, and
        cases that come to the same are one.
    strict : bool, optional
        Whether a call that raises is a failure. It is *refused* otherwise: listed, and neither a pass nor a failure.
    empty_rows : {"zeros", "mean", "nan", "skip"}, optional
        What a row gives that sees no key: zeros, the mean of all values, NaN; or it is not judged.
    only : str or iterable of str, optional
        Run only the cases of the profile that have one of these as a tag, or as whole words in their name.
    skip : str or iterable of str, optional
        Cases that have one of these are not run, and are reported so.
    without : str or iterable of str, optional
        Tags of features that the function lacks, as ``["grouped", "d_v"]``; cases that need one are not run.
    names : mapping of str to str, optional
        The function's names of the options, as ``{"mask": "bias"}``; ``is_causal``, ``sm_scale``, ``softmax_scale``,
        ``scaling``, ``attn_mask`` and ``attention_mask`` are known.
    returns : {"out", "out, lse"}, optional
        What the function returns: the output, or it and the log-sum-exps of the rows.
    claims : str or iterable of str, optional
        Properties that have to hold bit for bit: ``"deterministic"``, ``"batch-invariant"``, ``"prefix-invariant"``.
        They are otherwise judged as values are. ``"nan-safe"``: NaN in keys and values that the mask hides does not
        reach the output; not asked for otherwise.
    isolate : bool, optional
        Whether the function runs in a child process, a copy of this one, so that an abort is a failing case and the
        check goes on. The function must not have used a GPU in this process before.
    timeout : float, optional
        Seconds after which a call is ended, as a failing case; implies `isolate`.

    Returns
    -------
    ConformanceReport
        Per case pass, fail, refused or not run, with the worst row, what was expected and what came; the first wrong
        result at the smallest n that gives one; and a guess at the cause. ``report.passed`` sums it up,
        ``print(report)`` shows it.

    Raises
    ------
    TypeError, ValueError
        An argument is of the wrong kind or unknown; a text of `only`, `skip` or `without` is no case's; `takes` has an
        unknown key, contradicts itself or `dtype`, or leaves no case. Whatever `function` raises is a finding.

    See Also
    --------
    assert_conforms : The same for a test.

    Notes
    -----
    Time O(cases · n² d) beside the function's own. Source: ours.

    Examples
    --------
    A kernel that forgot to divide by √d:

    >>> import numpy as np
    >>> from refattn.testing import check_attention
    >>> def kernel(q, k, v):
    ...     logits = q @ k.swapaxes(-1, -2)
    ...     logits = np.where(np.tri(*logits.shape[-2:], dtype=bool), logits, -np.inf)
    ...     weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    ...     return weights / weights.sum(axis=-1, keepdims=True) @ v
    >>> report = check_attention(kernel, "dense", profile="quick", without=["grouped"])
    >>> report.passed, report.causes[0].name, report.shrunk.n
    (False, 'missing scale', 2)
    """
    operation = OPERATIONS[as_option("spec", spec, OPERATIONS)]
    if not callable(function):
        raise TypeError(f"function: {type(function).__name__} came, a callable was wanted")
    if backward == "autograd":
        backward = AUTOMATIC[as_option("arrays with backward='autograd'", arrays, AUTOMATIC)](function)
    if isinstance(backward, str) or not (backward is None or callable(backward)):
        raise TypeError(f"backward: {backward!r} came, a callable, 'autograd' or None was wanted")
    said = parse(takes, operation) if takes else Takes()
    if said.dtypes and dtype not in said.dtypes:
        raise ValueError(f"dtype: {dtype} came, which is not among the dtypes of takes: {', '.join(said.dtypes)}")
    gradients = backward if operation.differentiable else None
    caller = Caller(adapter, arrays, dtype, operation.axes, _returns(returns))
    call: Caller | Isolated = caller
    if as_flag("isolate", isolate) or timeout is not None:
        seconds = None if timeout is None else as_real("timeout", timeout, positive=True)
        functions = {"forward": function} | ({} if gradients is None else {"backward": gradients})
        call = Isolated(caller, functions, seconds)
    subject = Subject(
        function,
        gradients,
        operation,
        call,
        PRECISIONS[as_option("dtype", dtype, PRECISIONS)],
        precision_named(dtype if precision is None else precision, accumulate),
        as_real("factor", factor, least=1.0),
        as_option("empty_rows", empty_rows, EMPTY_ROWS),
        as_flag("strict", strict),
        _claims(claims),
        _names(names, operation),
    )
    chosen = select(operation, as_option("profile", profile, PROFILES), said, only, skip, without)
    numbers = _seeds(seeds)
    results, trials = [], []
    first: tuple[Case, int] | None = None
    try:
        for seed in numbers:
            for case in chosen.cases:
                result, trial = _run(subject, case, seed)
                results.append(result)
                if result.verdict == FAIL:
                    trials += [trial] if trial is not None else []
                    if trial is not None and first is None:  # a wrong result can be made smaller, none cannot
                        first = (case, seed)
            results += [
                CaseResult(case.name, case.kind, seed, case.n, {}, NOT_RUN, reason, tags=tuple(sorted(case.tags)))
                for case, reason in chosen.left_out
            ]
        shrunk = None if first is None else _shrunk(subject, *first, said)
    finally:
        if isinstance(subject.call, Isolated):
            subject.call.child.close()
    return ConformanceReport(
        operation.name,
        getattr(function, "__qualname__", repr(function)),
        dtype,
        subject.precision.name,
        subject.factor,
        subject.backward is not None,
        tuple(results),
        shrunk,
        guess_causes(subject, trials),
        profile,
        tuple(chosen.notes),
    )


def _returns(given: str) -> tuple[str, ...]:
    """Return the names of what a function returns."""
    return tuple(as_option("returns", given, ("out", "out, lse")).split(", "))


def _claims(given: str | Iterable[str]) -> frozenset[str]:
    found = [given] if isinstance(given, str) else list(given)
    return frozenset(as_option("claims", one, CLAIMS) for one in found)


def _names(given: Mapping[str, str] | None, operation: Operation) -> dict[str, str]:
    """Return the function's own names of options of the operation."""
    known = list(operation.cases[0].build(1, 0).options)
    for name, theirs in dict(given or {}).items():
        as_option("names", name, known)
        if not isinstance(theirs, str):
            raise TypeError(f"names: {theirs!r} came for {name}, the name of a parameter was wanted")
    return dict(given or {})


def _seeds(given: int | Iterable[int]) -> list[int]:
    """Return the seeds given, at least one, none of them twice."""
    found = [as_count("seeds", seed, least=0) for seed in (given if isinstance(given, Iterable) else [given])]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds: {found} came, at least one seed, and each once, was wanted")
    return found


def assert_conforms(function: Callable[..., Any], spec: str, **options: Any) -> ConformanceReport:
    """Raise ``AssertionError`` with the report as its message unless the function conforms; for tests.

    Parameters
    ----------
    function : callable
        The implementation.
    spec : str
        The operation, as for `check_attention`.
    **options
        As for `check_attention`.

    Returns
    -------
    ConformanceReport
        What `check_attention` found.

    Raises
    ------
    AssertionError
        It does not conform; the message is the report.
    TypeError, ValueError
        As `check_attention`.

    Notes
    -----
    Time and memory as `check_attention`, O(cases · n² d). Source: ours.

    Examples
    --------
    >>> from refattn import dense_attention
    >>> from refattn.testing import assert_conforms
    >>> def kernel(q, k, v, *, causal, scale):
    ...     return dense_attention(q, k, v, mask="causal" if causal else "full", scale=scale)
    >>> assert_conforms(kernel, "dense", profile="quick").counts()["fail"]
    0
    """
    report = check_attention(function, spec, **options)
    if not report.passed:
        raise AssertionError(str(report))
    return report


def _run(subject: Subject, case: Case, seed: int) -> tuple[CaseResult, Trial | None]:
    if case.asks:
        return try_property(subject, case, case.n, seed), None
    return try_case(subject, case, case.n, seed)


def _shrunk(subject: Subject, case: Case, seed: int, takes: Takes) -> CaseResult:
    """Return the case at the smallest n, of those tried and taken, at which it fails."""
    passed = 0
    for n in _sizes(case.n):
        found = _failing(subject, case, n, seed, takes)
        if found is None:
            passed = n
            continue
        least = n
        while least - passed > 1:  # the smallest between a size that passes and one that fails
            middle = (passed + least) // 2
            smaller = _failing(subject, case, middle, seed, takes)
            found, least, passed = (found, least, middle) if smaller is None else (smaller, middle, passed)
        return found
    return _run(subject, case, seed)[0]


def _failing(subject: Subject, case: Case, n: int, seed: int, takes: Takes) -> CaseResult | None:
    """The result at size n, if that size is taken and the result is wrong."""
    if n < case.n and takes.nearest(case.shape.at(n)) != case.shape.at(n):
        return None
    result, trial = try_case(subject, case, n, seed)
    return result if result.verdict == FAIL and trial is not None else None


def _sizes(n: int) -> Iterator[int]:
    """Sizes to try, ascending: all up to 20, then in steps of a twentieth, beyond 400 of a quarter; n last."""
    size = 1
    while size < n:
        yield size
        size += max(1, size // 20 if size < 400 else size // 4)
    yield n
