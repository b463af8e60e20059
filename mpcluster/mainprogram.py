"""The main program, once more: what a worker does that was forked without a target.

The code is read anew in the worker, from where the master had it: the script, the ``-m``
module, or the directory or archive that was given to the interpreter. A program that runs
programs (``coverage run``, ``runpy.run_path``) may leave no more of it than a file's name,
which is as good. It runs as ``__main__``, in a module of its own; the master's stays
behind as it was at the fork.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any, Final

from mpcluster import interpreter, workerside

__all__ = ["MainProgram", "end_at_ctrl_c", "locate", "quietly"]

_SIGINT: Final = int(signal.SIGINT)
_DEFAULT: Final = int(signal.SIG_DFL)


@dataclass(frozen=True, slots=True)
class MainProgram:
    """Where the main program's code is."""

    loader: Any
    module: str | None  # as the loader knows it; a script has no name
    file: str
    spec: ModuleSpec | None
    package: str | None

    def run(self) -> None:
        """Run it as ``__main__``. In a worker."""
        if sys.version_info < (3, 13):
            # What the master had registered is the master's; what this program registers
            # is run when it ends, as of any program (3.13 does so for every child).
            interpreter.renew_exit_functions()
        try:
            _hear_ctrl_c()
            self._execute()
            myself = workerside.current()
            if myself is not None:
                myself.stay()
        except KeyboardInterrupt:
            interpreter.die_of_sigint()
        finally:
            if sys.version_info < (3, 13):
                interpreter.run_exit_functions()

    def _execute(self) -> None:
        code = self._code()
        module = types.ModuleType("__main__")
        module.__dict__.update(
            __file__=self.file,
            __loader__=self.loader,
            __spec__=self.spec,
            __package__=self.package,
            __builtins__=__builtins__,
        )
        sys.modules["__main__"] = module
        exec(code, module.__dict__)  # noqa: S102  # the program's own code, that is the point

    def _code(self) -> types.CodeType:
        # Not `get_code` for a script: that would write a .pyc beside it.
        if self.module is None and hasattr(self.loader, "source_to_code"):
            code = self.loader.source_to_code(self.loader.get_data(self.file), self.file)
        else:
            code = self.loader.get_code(self.module or getattr(self.loader, "name", "__main__"))
        assert isinstance(code, types.CodeType)
        return code


@functools.cache
def locate() -> MainProgram:
    """Find the main program of this process.

    What it finds first holds: up to 3.11 the interpreter deletes ``__file__`` as soon as
    the program has ended, and death callbacks fork after that.

    Raises:
        RuntimeError: It is no file: an interactive session, ``-c``, or standard input.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    name = getattr(main, "__file__", None)
    loader = _loader(main, spec, name)
    if loader is None or name is None or hasattr(sys, "ps1"):
        raise RuntimeError(
            "fork() without a target runs the main program again, and this one is not a "
            "file (interactive, -c or standard input); give fork() a target function"
        )
    return MainProgram(
        loader=loader,
        module=spec.name if spec is not None and spec.loader is loader else None,
        file=_start_file(name),
        spec=spec,
        package=getattr(main, "__package__", None),
    )


def _loader(main: types.ModuleType, spec: ModuleSpec | None, name: str | None) -> Any:
    """Return what can read the program's code, or None."""
    for loader in (getattr(spec, "loader", None), getattr(main, "__loader__", None)):
        if hasattr(loader, "get_data") and hasattr(loader, "get_code"):
            return loader
    if name is not None and os.path.isfile(_start_file(name)):
        return SourceFileLoader("__main__", _start_file(name))
    return None


def _directory_now() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return os.curdir


_start_directory = _directory_now()


def _start_file(file: str) -> str:
    """Make a script's path absolute: the program may have changed its directory since."""
    return os.path.join(_start_directory, file)


_is_deaf = False


def end_at_ctrl_c() -> None:
    """In a new worker, until its program begins: Ctrl-C ends it at once, and without a word."""
    global _is_deaf
    if interpreter.get_handler(_SIGINT) is signal.default_int_handler:
        interpreter.set_handler(_SIGINT, _DEFAULT)
        _is_deaf = True


def _hear_ctrl_c() -> None:
    """From here on it is a KeyboardInterrupt again."""
    global _is_deaf
    if _is_deaf:
        _is_deaf = False
        interpreter.set_handler(_SIGINT, signal.default_int_handler)


def quietly(target: Callable[..., object], *args: object, **kwargs: object) -> None:
    """Call a worker's target; Ctrl-C ends it as it ends any program, but without a traceback."""
    try:
        _hear_ctrl_c()
        target(*args, **kwargs)
    except KeyboardInterrupt:
        interpreter.die_of_sigint()
