"""The file-system life of one unix socket's path, kept by the master.

A server that starts removes what it finds at its path, and one that stops removes it, too;
with several workers they would remove it under one another. So the master keeps a hidden
hard link beside the path, and puts the path back from it. What a dead program left is
taken over; what a living one answers at, or what is no socket, is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

__all__ = ["UnixPath", "bind_path"]


class UnixPath:
    """A path that was bound here: it and its hidden link are this very socket's.

    Does nothing in a forked child: the path is its parent's.

    Args:
        path: Absolute.
        kind: The socket's type, for knocking at what others leave at the path.
    """

    def __init__(self, path: str, kind: int) -> None:
        self.path = path
        self._kind = kind
        self._pid = os.getpid()
        self._inode = _inode(path)
        self._hidden: str | None = self._hide()

    def __repr__(self) -> str:
        return f"<UnixPath {self.path} hidden={self._hidden}>"

    def holds(self, path: str) -> bool:
        """Is ``path`` this one, by its name or by what is there? Also while it is removed."""
        return path == self.path or (self._inode is not None and _inode(path) == self._inode)

    def restore(self) -> None:
        """Put the path back if it was removed.

        Raises:
            OSError: ``EADDRINUSE``: somebody else is there now and answers, or the path
                holds no socket.
        """
        if _inode(self.path) == self._inode:
            return
        _clear(self.path, self._kind)
        if self._hidden is None or _inode(self._hidden) != self._inode:
            raise OSError(errno.ENOENT, "The path of the shared listener was removed")
        os.link(self._hidden, self.path)

    def remove(self) -> None:
        """Remove the path and the hidden link, if they still are this socket's. Idempotent."""
        if os.getpid() != self._pid or self._inode is None:
            return
        for path in (self.path, self._hidden):
            if path is not None and _inode(path) == self._inode:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def _hide(self) -> str | None:
        """Make the hidden link; without one (no room, no hard links) servers may go wrong."""
        hidden = _hidden_name(self.path)
        if self._inode is not None and _inode(hidden) == self._inode:
            return hidden  # of the master before this one, whose socket this is
        try:
            _clear(hidden, self._kind)  # of a master that was killed
            os.link(self.path, hidden)
        except OSError:
            return None
        return hidden


def bind_path(sock: socket.socket, path: str, mode: int | None) -> UnixPath:
    """Bind a unix socket to a path, taking it over from a dead program.

    Args:
        sock: Unbound.
        path: Absolute.
        mode: Permission bits of the path, in force from its first moment; ``None``: as the
            umask has it.

    Raises:
        OSError: ``EADDRINUSE`` where somebody answers or no socket is; the kernel's, else.
    """
    if mode is not None:
        os.fchmod(sock.fileno(), mode)  # the path's, once it is bound, less the umask
    try:
        sock.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _clear(path, sock.type)
        sock.bind(path)
    if mode is not None:
        os.chmod(path, mode)  # and now what the umask had taken away
    return UnixPath(path, sock.type)


def _clear(path: str, kind: int) -> None:
    """Remove a socket at which nobody answers; nothing there is fine, too.

    Raises:
        OSError: ``EADDRINUSE``: somebody answers, or it is no socket. It stays.
    """
    found = _status(path)
    if found is None:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "Address already in use by a file that is no socket")
    if _answers(path, kind):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    now = _status(path)
    # Nobody else has just taken it over. That one's socket has the number of the dead inode, as
    # a rule, which is free by then; but it was changed later.
    if now is not None and _moment(now) == _moment(found):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _answers(path: str, kind: int) -> bool:
    """Knock. Only a refusal says that the socket's program is gone."""
    with socket.socket(socket.AF_UNIX, kind) as knocking:
        knocking.settimeout(0)  # a full queue is a living program's: do not wait in it
        try:
            knocking.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # EAGAIN, EPROTOTYPE, EACCES: there is somebody, or we cannot know
            return True
    return True


def _inode(path: str) -> tuple[int, int] | None:
    found = _status(path)
    return None if found is None else (found.st_dev, found.st_ino)


def _moment(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _hidden_name(path: str) -> str:
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name}.held")
