"""The program that the workers run: a script or a module, exactly as it is.

The master looks whether it is there, and never imports it: each worker reads it anew, so a
reload brings what has changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any

from mpcluster.mainprogram import MainProgram

from .errors import CommandError

__all__ = ["Program"]


@dataclass(frozen=True, slots=True)
class Program:
    """What was typed behind the options.

    Attributes:
        name: A script's path (a file, or a directory or archive with a ``__main__``), or a
            module's name.
        is_module: It is a module's: ``-m``.
        arguments: Its own.
    """

    name: str
    is_module: bool
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"-m {self.name}" if self.is_module else self.name

    @property
    def stem(self) -> str:
        """A short name: of a script its file's without the ending."""
        if self.is_module:
            return self.name
        return os.path.splitext(os.path.basename(os.path.abspath(self.name)))[0] or "program"

    @property
    def directory(self) -> str:
        """Where its own modules are: what ``sys.path`` begins with."""
        path = os.path.realpath(self.name)
        if self.is_module:
            return os.getcwd()
        return path if os.path.isdir(path) or _importer(path) else os.path.dirname(path)

    # -- in the master -----------------------------------------------------------------------

    def check(self) -> None:
        """See that it is there, without running any of it.

        Raises:
            CommandError: It is not.
        """
        if self.is_module:
            # Of a dotted name only the first part: to look further would import that.
            top = self.name.partition(".")[0]
            if not self._known(top):
                raise CommandError(
                    f"there is no module {top!r} in {os.getcwd()} or where Python looks for modules"
                )
        elif os.path.isdir(self.name):
            if not os.path.isfile(os.path.join(self.name, "__main__.py")):
                raise CommandError(f"{self.name} is a directory without a __main__.py")
        elif not os.path.exists(self.name):
            raise CommandError(f"there is no script {self.name} (here is {os.getcwd()})")
        elif not os.access(self.name, os.R_OK):
            raise CommandError(f"{self.name} may not be read by this user")

    def _known(self, top: str) -> bool:
        if top in sys.builtin_module_names or top in sys.stdlib_module_names:
            return True
        return PathFinder.find_spec(top, [self.directory, *sys.path]) is not None

    # -- in a worker -------------------------------------------------------------------------

    def run(self) -> None:
        """Run it as ``__main__``, as the interpreter would. In a worker."""
        importlib.invalidate_caches()  # the master may have looked there long ago
        sys.argv[:] = [self.name, *self.arguments]
        if not sys.flags.safe_path:
            sys.path[0] = self.directory  # what stood there was the command's own
        main = self._module() if self.is_module else self._script()
        # What the program itself starts, or asks, is to find it.
        main.run()

    def _script(self) -> MainProgram:
        path = os.path.abspath(self.name)
        importer = _importer(path)
        if importer is None:
            return MainProgram(SourceFileLoader("__main__", path), None, path, None, None)
        if sys.flags.safe_path:
            sys.path.insert(0, path)
        spec = importer.find_spec("__main__")
        if spec is None:
            sys.exit(f"there is no __main__ in {self.name}")
        return _of(spec)

    def _module(self) -> MainProgram:
        spec = importlib.util.find_spec(self.name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{self.name}.__main__")
        if spec is None or spec.loader is None:
            sys.exit(f"there is no module {self.name}, or it is a package without a __main__")
        main = _of(spec)
        sys.argv[0] = main.file
        return main


def _of(spec: ModuleSpec) -> MainProgram:
    return MainProgram(spec.loader, spec.name, spec.origin or spec.name, spec, spec.parent)


def _importer(path: str) -> Any:
    """What imports from this directory or archive; None of a plain file."""
    return pkgutil.get_importer(path)
