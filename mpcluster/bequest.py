"""What one master leaves to the next: its shared listeners, as values in the environment.

A master that is replaced by a new one (a program of its own, with new code) hands its kept
sockets down by number, and this beside them: what each is filed by, by which policy its
connections are spread. So the new one goes on with the very sockets, their queues included.
"""

from __future__ import annotations

import ast
import dataclasses
import os
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass

from mpcluster.messages import Key

__all__ = ["VARIABLE", "Bequest", "read", "written"]

VARIABLE = "MPCLUSTER_LISTENERS"
#: Whose it is: a variable that some other program has inherited says nothing.
_OWNER = "MPCLUSTER_LISTENERS_FROM"


@dataclass(frozen=True, slots=True)
class Bequest:
    """One listener.

    Attributes:
        keys: All that lead to it.
        policy: The policy's name.
        fds: The kept sockets, in the policy's order.
        held: The master itself holds it.
        takes_ipv4: It was handed down bound to ``::``, and serves ``0.0.0.0``, too.
        path: Of a unix path that the master removes at its end.
        max_connections: That each user may have open.
    """

    keys: tuple[Key, ...]
    policy: str
    fds: tuple[int, ...]
    held: bool = False
    takes_ipv4: bool = False
    path: str | None = None
    max_connections: int | None = None


def written(bequests: Iterable[Bequest]) -> dict[str, str]:
    """The variables for the environment of a child of this process."""
    values = []
    for one in bequests:
        value = {name: getattr(one, name) for name in _FIELDS}
        # Plain numbers: the socket module's are enums.
        value["keys"] = tuple((*map(int, key[:3]), key[3], key[4]) for key in one.keys)
        values.append(value)
    return {VARIABLE: repr(values), _OWNER: str(os.getpid())}


def read(environ: MutableMapping[str, str]) -> list[Bequest]:
    """What this process was left by its parent; the variables are removed."""
    text, owner = environ.pop(VARIABLE, ""), environ.pop(_OWNER, "")
    if not text or owner != str(os.getppid()):
        return []
    return [Bequest(**value) for value in ast.literal_eval(text)]


_FIELDS = tuple(one.name for one in dataclasses.fields(Bequest))
