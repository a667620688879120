"""A function in a child process, so that an abort or a hang is a verdict (ours)."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from refattn.testing.conformance.adapters import Caller, Result


class Ended(Exception):
    """The child process ended, or was ended, without a result."""


class Raised(Exception):
    """What the function raised in the child process; `kind` is the name of its class."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


Work = Callable[..., Any]


class Child:
    """Runs ``work[name](*arguments)`` in a forked process that stays until it hangs or dies, and is then replaced.

    A fork needs no pickle of the functions, and what a function compiles at its first call is still there at the next.
    """

    def __init__(self, work: Mapping[str, Work], timeout: float | None) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise ValueError("isolate: True came; this system starts no process as a copy of this one")
        self.work, self.timeout = work, timeout
        self.context = multiprocessing.get_context("fork")
        self.process: Any = None
        self.pipe: Any = None

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Return what the work returns, or raise `Raised` or `Ended`."""
        if self.process is None:
            self.pipe, theirs = self.context.Pipe()
            self.process = self.context.Process(target=_serve, args=(self.work, theirs, self.pipe), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.pipe.send((name, arguments))
            if not self.pipe.poll(self.timeout):
                self.close()
                raise Ended(f"timed out after {self.timeout:g} s")
            fine, *came = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            self.close()
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            raise Ended(f"the process ended with {how}") from None
        if not fine:
            raise Raised(*came)
        return came[0]

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()
        self.process = None


class Isolated:
    """Calls functions as a `Caller` does, in a child process."""

    def __init__(self, caller: Caller, functions: Mapping[str, Work], timeout: float | None) -> None:
        def work(function: Work) -> Work:
            return lambda *arguments: (caller(function, *arguments), caller.written)

        self.functions = functions
        self.child = Child({name: work(function) for name, function in functions.items()}, timeout)
        self.arrays, self.returns, self.written = caller.arrays, caller.returns, caller.written

    def __call__(self, function: Work, *arguments: Any) -> list[Result]:
        """Return the results."""
        name = next(name for name, known in self.functions.items() if known is function)
        found, self.written = self.child(name, *arguments)
        return list(found)


def _serve(work: Mapping[str, Work], pipe: Connection, other: Connection) -> None:
    """Answer until the other end is closed."""
    other.close()
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, work[name](*arguments))
        except Exception as error:
            answer = (False, type(error).__name__, str(error))  # type: ignore[assignment]
        pipe.send(answer)
