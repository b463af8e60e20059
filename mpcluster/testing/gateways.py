"""execnet's group, with gateways to forked workers.

xdist asks a group for its workers. This one gives it forked ones for a plain ``popen``, and
hands everything else (another interpreter, another directory, ssh, sockets) to execnet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import execnet
from execnet.gateway import RInfo

from mpcluster.testing import sessionmark
from mpcluster.testing.line import ControllerEnd
from mpcluster.testing.packing import ControllerChannel, LostChannel

__all__ = ["ForkedGateway", "ForkingGroup", "is_forkable"]


def is_forkable(spec: execnet.XSpec) -> bool:
    """Can a fork of this very program be what is asked for?"""
    others = (spec.python, spec.via, spec.chdir, spec.dont_write_bytecode, spec.installvia)
    return bool(spec.popen) and not any(others)


class ForkedGateway(execnet.Gateway):
    """A gateway to a worker that is, or will soon be, forked.

    It answers for the worker what xdist asks every worker for: they run the same program.
    So nobody waits for a worker before all of them are ordered.

    Args:
        known: The ids of tests that the workers of this run have sent.
    """

    def __init__(self, io: ControllerEnd, spec: execnet.XSpec, known: dict[str, str]) -> None:
        self._known = known
        super().__init__(io, spec)

    def remote_exec(self, source: Any, **kwargs: object) -> Any:
        """Run something in the worker; return the channel to it.

        That of the session packs what it carries, at both ends.
        """
        if source is not sessionmark:
            return super().remote_exec(source, **kwargs)
        try:
            channel = super().remote_exec(source)
        except OSError:  # it has died already, or could not be forked
            return LostChannel()
        return ControllerChannel(channel, self._known)

    def _rinfo(self, update: bool = False) -> RInfo:  # noqa: FBT001, FBT002  # execnet's signature
        if update:
            return super()._rinfo(update)
        return RInfo(
            {
                "executable": sys.executable,
                "version_info": sys.version_info[:5],
                "platform": sys.platform,
                "cwd": os.getcwd(),
                "pid": None,
            }
        )


class ForkingGroup(execnet.Group):
    """A group whose plain ``popen`` gateways lead to forked workers.

    Args:
        original: The group that xdist has made. It has given out ids, and may have proxies;
            gateways that are not forked are its.
        launch: Orders a worker for a spec, and returns this side's end of its stream.
    """

    def __init__(
        self, original: execnet.Group, launch: Callable[[execnet.XSpec, Any], ControllerEnd]
    ) -> None:
        super().__init__(execmodel=original.execmodel.backend)
        self._original = original
        self._launch = launch
        self._known: dict[str, str] = {}

    def allocate_id(self, spec: execnet.XSpec) -> None:
        """Give the spec the next id, unless it has one."""
        self._original.allocate_id(spec)

    def makegateway(self, spec: execnet.XSpec | str | None = None) -> execnet.Gateway:
        """Order a worker, or let execnet start one."""
        if not isinstance(spec, execnet.XSpec) or not is_forkable(spec):
            return self._original.makegateway(spec)
        self.allocate_id(spec)
        gateway = ForkedGateway(self._launch(spec, self.execmodel), spec, self._known)
        self._register(gateway)
        return gateway

    def terminate(self, timeout: float | None = None) -> None:
        """End all workers, forked or not; kill those that take longer than ``timeout``."""
        super().terminate(timeout)
        self._original.terminate(timeout)
