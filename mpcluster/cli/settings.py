"""The settings file: what `run` is told without being told each time.

``[tool.mpcluster]`` in ``pyproject.toml``, or the whole of ``mpcluster.toml``, in the directory
where the command is run; or the file that ``--config`` names. What the command line says, wins::

    [tool.mpcluster]
    script = "app.py"            # or: module = "package"
    arguments = ["--port", "80"]
    workers = 4
    max-memory = "500M"
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from . import units
from .errors import CommandError
from .options import OPTIONS
from .program import Program

__all__ = ["FILES", "Settings", "read"]

FILES: Final = ("mpcluster.toml", "pyproject.toml")

_PROGRAM: Final = ("script", "module", "arguments")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a file says.

    Attributes:
        given: Options, by their keys.
        program: What to run, if it says that.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    program: Program | None = None


def read(named: str | None) -> Settings:
    """Read the file of that name, or what is in this directory.

    Raises:
        CommandError: There is no such file, or what it says is wrong; the key is named.
    """
    if named is not None:
        return _of(Path(named), _table(Path(named)))
    found = [(Path(name), _table(Path(name))) for name in FILES if Path(name).is_file()]
    found = [(path, table) for path, table in found if table]
    if len(found) > 1:
        raise CommandError(
            f"both {' and '.join(FILES)} have settings, and one would hide the other: choose one "
            "of them, or say which by --config"
        )
    return _of(*found[0]) if found else Settings()


def _table(path: Path) -> dict[str, Any]:
    try:
        whole = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"the settings in {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} is no TOML: {error}") from None
    if path.name == "pyproject.toml":
        whole = whole.get("tool", {}).get("mpcluster", {})
    return whole


def _of(path: Path, table: dict[str, Any]) -> Settings:
    options = {option.key: option for option in OPTIONS}
    given: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in table.items():
        key = name.replace("-", "_")
        if key in given or key in rest:
            raise CommandError(f"{path}: {name} is there twice, with a dash and with an underscore")
        if key in _PROGRAM:
            rest[key] = value
        elif key in options:
            try:
                given[key] = options[key].read(value)
            except ValueError as error:
                raise CommandError(f"{path}: {name}: {error}") from None
        else:
            raise CommandError(_unknown(path, name))
    return Settings(given, _program(path, rest))


def _unknown(path: Path, name: str) -> str:
    names = [*(option.name for option in OPTIONS), *_PROGRAM]
    near = difflib.get_close_matches(name.replace("_", "-"), names, 1)
    return (
        f"{path}: there is no setting {name!r}; is {near[0]!r} meant?"
        if near
        else f"{path}: there is no setting {name!r}; there are: {', '.join(names)}"
    )


def _program(path: Path, rest: dict[str, Any]) -> Program | None:
    try:
        arguments = tuple(units.texts(rest["arguments"])) if rest.get("arguments") else ()
        if "script" in rest and "module" in rest:
            raise ValueError("script and module are two programs; one can be run")
        for key in ("script", "module"):
            if key in rest:
                return Program(units.text(rest[key]), key == "module", arguments)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from None
    if arguments:
        raise CommandError(f"{path}: arguments belong to a script or a module, and there is none")
    return None
