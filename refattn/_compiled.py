"""How loops are compiled: with Numba, at the first call, once for every dtype; and kept on disk between processes.

Compiled functions take plain scalars and arrays, write to out-arguments, release the interpreter's lock and round as
IEEE asks (no fastmath; some fuse a product with the sum that it is a term of), so that NaN and infinity stay visible.
A division by zero gives them too: that it might raise instead would keep a loop from being vectorised.
With ``NUMBA_DISABLE_JIT=1`` the same functions run as Python. Numba is imported here and nowhere at the package's
import.

Numba compiles under one lock; a fork waits for it, or a child forked while another thread compiles would wait forever.
The same lock is held while a loop is read from the disk or written to it.

Numba's own cache on disk knows a function by its file: it keeps the old result when a function called by it changes in
another one, and settings of the compiler. Here a loop is known by what it was made of in memory: bytecode and constants
of it and of all it reaches, types, options, settings, versions, processor. A source edited after it was imported, or a
copy of a module with a line changed, is another loop.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from functools import cache, wraps
from hashlib import sha256
from itertools import count
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar, cast

import llvmlite
import numba
import numpy as np
import scipy
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature
from numpy.typing import NDArray

from refattn import _compiled_cache
from refattn._version import __version__

Function = TypeVar("Function", bound=Callable[..., Any])

_copies = count(1)


def compiled(function: Function) -> Function:
    """Compile at the first call, without the interpreter's lock; the type is kept."""
    return _compiled(function)


def compiled_with_fma(function: Function) -> Function:
    """Compile as `compiled`, but a product and the sum that it is a term of may be rounded once instead of twice."""
    return _compiled(function, fastmath={"contract"})


def _compiled(function: Function, **options: Any) -> Function:
    if numba.config.DISABLE_JIT:
        return _silent(function)
    if not _is_its_modules(
        function
    ):  # a changed copy: Numba's symbols, by name and number, may be those of a kept loop
        function.__qualname__ += f"-{next(_copies)}"
    dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
    dispatcher._cache = _OnDisk(dispatcher)
    return cast(Function, dispatcher)


def _is_its_modules(function: Any) -> bool:
    """Whether it belongs to the module that its name leads to, so that another process would find it."""
    module = sys.modules.get(function.__module__)
    return module is not None and module.__dict__ is function.__globals__


def _silent(function: Function) -> Function:
    """Let NumPy's scalars overflow without a warning, in whatever thread, as compiled ones do."""

    @wraps(function)
    def without_warnings(*arguments: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*arguments)

    return cast(Function, without_warnings)


def as_input(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous, read-only view (or copy): one compiled signature for every input of a dtype."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


class _OnDisk(NullCache):  # type: ignore[misc]
    """The cache of one function, as Numba asks for it: under its lock, once for every signature."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self.first: object = None

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return what another process compiled, or None."""
        name = self._name(signature)
        if name is None:
            return None
        target.refresh()
        environment = _environment(target.codegen())
        content = _compiled_cache.read(environment, name)
        if content is None:
            return None
        try:
            return CompileResult._rebuild(target, *pickle.loads(content))
        except Exception:  # whatever a pickle raises that is whole and yet not right
            _compiled_cache.discard(environment, name)
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep what has been compiled, where it holds no address of this process."""
        name = self._name(signature)
        if name is not None and not result.lifted and not result.library.has_dynamic_globals:
            _compiled_cache.write(_environment(result.codegen), name, dumps(result._reduce()))

    def _name(self, signature: Any) -> str | None:
        """Name what is compiled for these types: the same name in any process, and for nothing else."""
        function = self._dispatcher.py_func
        try:
            made_of = repr((normalize_signature(signature), _reached(self._dispatcher)))
        except _UnknownError:
            return None
        digest = sha256(made_of.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{function.__module__.removeprefix('refattn.')}.{function.__qualname__}-{digest}"


class _UnknownError(Exception):
    """A compiled function depends on something of which it cannot be told whether it is the same in another process."""


def _reached(dispatcher: Any) -> list[object]:
    """Describe a function and all that it reaches: what each is made of, and the places here of those it refers to."""
    order, found = {id(dispatcher): 0}, [dispatcher]
    described: list[object] = []
    for function in found:  # which grows
        own, referred = _made_of(function)
        for other in referred:
            if id(other) not in order:
                order[id(other)] = len(found)
                found.append(other)
        described.append((own, [order[id(other)] for other in referred]))
    return described


def _made_of(function: Any) -> tuple[str, list[Any]]:
    """Describe one function, and list the functions of ours that it refers to.

    Numba compiles with the globals of that moment: one that has changed since it compiled first makes it unknown.
    """
    referred: list[Any] = []
    plain = getattr(function, "py_func", function)
    if not _is_its_modules(plain):
        raise _UnknownError(plain)
    names = sorted(_names(plain.__code__) & plain.__globals__.keys())
    inner = [cell.cell_contents for cell in plain.__closure__ or ()]
    defaults = plain.__defaults__, tuple(sorted((plain.__kwdefaults__ or {}).items()))
    options = sorted(getattr(function, "targetoptions", {}).items())
    reads = [(name, _described(plain.__globals__[name], referred)) for name in names]
    parts = (plain.__module__, plain.__qualname__, options, reads)
    own = repr((*parts, _described((plain.__code__, defaults, *inner), referred)))
    kept = getattr(function, "_cache", None)
    if isinstance(kept, _OnDisk):
        kept.first = kept.first or (own, referred)
        if kept.first != (own, referred):
            raise _UnknownError(plain)
    return own, referred


def _names(code: CodeType) -> set[str]:
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*inner)


def _described(value: Any, referred: list[Any]) -> object:
    """Describe what a function refers to, by what has the same text wherever it is the same; functions are listed."""
    if value is None or value is Ellipsis or isinstance(value, bool | int | float | complex | str | bytes):
        return type(value).__name__, repr(value)
    if isinstance(value, np.generic):
        return type(value).__name__, value.tobytes()
    if isinstance(value, tuple):
        return "tuple", [_described(item, referred) for item in value]
    if isinstance(value, frozenset):
        return "frozenset", sorted(repr(_described(item, referred)) for item in value)
    if isinstance(value, CodeType):
        counts = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags
        names = value.co_name, value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars
        return "code", value.co_code, value.co_exceptiontable, counts, names, _described(value.co_consts, referred)
    if isinstance(value, Dispatcher | FunctionType):
        referred.append(value)
        return "function", value.__module__, getattr(value, "__qualname__", "")
    if isinstance(value, ModuleType):
        home = name = value.__name__
    else:
        name = getattr(value, "__qualname__", getattr(value, "__name__", ""))
        home = "numpy" if isinstance(value, np.ufunc) else getattr(value, "__module__", None) or ""
    if name and home.partition(".")[0] in ("builtins", "math", "numpy", "numba"):  # their versions are in the key
        return type(value).__name__, home, name
    raise _UnknownError(value)


def _environment(codegen: Any) -> str:
    """Name what compiled code depends on beside the function: versions, processor, settings of the compiler."""
    settings = {name: repr(value) for name, value in vars(numba.config).items() if _is_setting(name, value)}
    return _digest(codegen.magic_tuple(), tuple(sorted(settings.items())))


def _is_setting(name: str, value: Any) -> bool:
    """Whether it may change what is compiled: not how many threads, where Numba's files are, what a GPU does."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return name.isupper() and plain and not any(word in name for word in ("THREAD", "CACHE", "CUDA", "COLOR"))


@cache
def _digest(target: tuple[str, ...], settings: tuple[tuple[str, str], ...]) -> str:
    versions = [module.__version__ for module in (numba, llvmlite, np, scipy)]
    facts = __version__, sys.version, versions, sys.platform, target, settings
    return f"{__version__}-{sys.implementation.cache_tag}-{sha256(repr(facts).encode()).hexdigest()[:32]}"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )
