"""Where a master can be asked: the path of its control socket.

Below ``$XDG_RUNTIME_DIR/mpcluster``, or ``/tmp/mpcluster-UID``, a directory that is this
user's alone; there by the program's name, with a few digits that tell two of one name apart.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from pathlib import Path

from .errors import NOBODY_THERE, CommandError
from .program import Program

__all__ = ["answers", "default", "find", "prepare"]


def directory() -> Path:
    """Where this user's masters are found."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime, "mpcluster")
    return Path(f"/tmp/mpcluster-{os.getuid()}")  # noqa: S108  # checked by prepare()


def default(program: Program) -> Path:
    """The path for a program where no other is given."""
    where = f"{program.directory} -m" if program.is_module else os.path.realpath(program.name)
    digits = hashlib.sha256(f"{where} {program.name}".encode()).hexdigest()[:6]
    # A socket's path has room for some hundred bytes.
    return directory() / f"{program.stem[:40]}-{digits}.sock"


def prepare(path: Path) -> None:
    """Make the directory of a default path, and see that it is nobody else's.

    Raises:
        CommandError: It is, and what is in there cannot be trusted.
    """
    parent = path.parent
    if parent != directory():
        return  # the user's own choice
    try:
        parent.mkdir(mode=0o700, exist_ok=True)
        found = parent.lstat()
    except OSError as error:
        raise CommandError(f"no control socket can be made there: {error}; see --control") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise CommandError(
            f"{parent} is not a directory of this user alone (mode 0700), so no control socket "
            "is made there; remove it, or choose another path by --control"
        )


def answers(path: Path) -> bool:
    """Does anybody accept connections there?"""
    with socket.socket(socket.AF_UNIX) as knocking:
        try:
            knocking.connect(str(path))
        except OSError:
            return False
        return True


def find(control: str | None, program: Program | None) -> Path:
    """Where the master is that a command is meant for.

    Args:
        control: The path, if it was given.
        program: The program that it runs, if that was.

    Raises:
        CommandError: There is none, or there are several, and which one was not said.
    """
    if control is not None:
        return Path(control)
    if program is not None:
        return default(program)
    living = [one for one in sorted(directory().glob("*.sock")) if answers(one)]
    if len(living) == 1:
        return living[0]
    if not living:
        raise CommandError(
            f"no master of this user runs (none answers in {directory()}); one that was "
            "started with --control PATH is asked with --control PATH",
            NOBODY_THERE,
        )
    names = "\n  ".join(f"--control {one}" for one in living)
    raise CommandError(f"several masters run; say which one is meant:\n  {names}")
