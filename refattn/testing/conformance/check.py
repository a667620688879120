"""The check itself: every case of the grid, a failure shrunk, a cause guessed (ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from refattn._validation import as_flag, as_option
from refattn.testing.conformance.adapters import Adapter
from refattn.testing.conformance.judge import FACTOR
from refattn.testing.conformance.operation import PROFILES
from refattn.testing.conformance.registry import OPERATIONS
from refattn.testing.conformance.report import ConformanceReport
from refattn.testing.conformance.running import checked
from refattn.testing.conformance.selection import select
from refattn.testing.conformance.subjects import Said, seeds_of, subject_of
from refattn.testing.conformance.takes import Takes, parse


def check_attention(
    function: Callable[..., Any],
    spec: str,
    *,
    backward: Callable[..., Any] | str | None = None,
    adapter: str | Adapter = "(B, H, N, D)",
    arrays: str = "numpy",
    device: str | None = None,
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
          (B, H, n_q, n_k) with B or H perhaps 1, True where a key may be seen. Further options that a function may
          take, and is then asked about, are `bias`, `alibi_slopes`, `softcap`, `window`, `sinks`, `lengths`,
          `cu_seqlens_q` and `cu_seqlens_k`, `align`, `keep` and `dropout`, `indices`, `blocks` and `block_size`,
          `block_table`, and, the backward alone, `dlse`; the page "Check your kernel" says what each is.
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
    arrays : {"numpy", "torch", "jax", "cupy"}, optional
        Whose arrays the function takes. It may return anything with ``__array__`` or DLPack, on any device: results are
        copied to the host to be judged.
    device : str, optional
        Where the arrays are that it takes, in the library's own words: ``"cuda"``, ``"cuda:1"`` or ``"mps"`` for
        PyTorch, ``"gpu"`` for JAX. The library's own choice if not given; CuPy's are on its current device.
    dtype : {"float32", "float64", "float16", "bfloat16"}, optional
        Of the arrays it takes.
    precision : str, optional
        What it is judged by, where that is not `dtype`: a kernel that takes float32 but multiplies in bfloat16 says so.
        Beside the dtypes ``"float8_e4m3"``, ``"float8_e5m2"`` and ``"int8-keys"`` (a factor for every key), which are
        emulated.
    accumulate : {"float32", "tiles", "dtype"}, optional
        Where sums, logits and other intermediates of half precision are held: in float32, as in kernels; so, but
        that gradients are added up tile by tile in an array of the dtype; or all in the dtype, as where an array
        library's operations are put together, which excuses much more.
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
        What the function returns: the output, or it and the log-sum-exps of the rows, which are judged with ``"dense"``
        except in rows that see nothing.
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
    said = Said(
        backward, adapter, arrays, device, dtype, precision, accumulate, factor, strict, empty_rows, names, returns,
        claims, isolate, timeout,
    )  # fmt: skip
    taken = parse(takes, operation) if takes else Takes()
    with subject_of(function, operation, taken, said) as subject:
        chosen = select(operation, as_option("profile", profile, PROFILES), taken, only, skip, without)
        return checked(subject, chosen, seeds_of(seeds), taken, profile)


def assert_conforms(
    function: Callable[..., Any], spec: str, *, verbose: bool = False, **options: Any
) -> ConformanceReport:
    """Raise ``AssertionError`` with the report as its message unless the function conforms; for tests.

    Parameters
    ----------
    function : callable
        The implementation.
    spec : str
        The operation, as for `check_attention`.
    verbose : bool, optional
        Whether the message is the whole report, ``str(report)``, or its few lines, ``report.short()``.
    **options
        As for `check_attention`.

    Returns
    -------
    ConformanceReport
        What `check_attention` found.

    Raises
    ------
    AssertionError
        It does not conform; the message says where, by how much, and perhaps why.
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
    as_flag("verbose", verbose)
    report = check_attention(function, spec, **options)
    if not report.passed:
        raise AssertionError(str(report) if verbose else report.short())
    return report
