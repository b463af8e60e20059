"""What of pytest-xdist and execnet is used, and a check that it is there.

Two attributes of xdist's session are replaced from public hooks, ``dsession.queue`` and
``dsession.nodemanager.group``; and a worker calls what xdist's own remote module calls. All
of it is listed here, so that a version which has moved one of them gives one clear error
and not an odd one later.
"""

from __future__ import annotations

import importlib
import inspect
from importlib import metadata
from typing import Final

import pytest

__all__ = ["check"]

_PACKAGES: Final = ("pytest-xdist", "execnet")

#: module, name in it, and the parameters that it must have (those that we pass).
_USED: Final = (
    ("xdist.dsession", "DSession", ("config",)),
    ("xdist.dsession", "DSession.pytest_sessionstart", ("session",)),
    ("xdist.workermanage", "NodeManager.setup_node", ("spec", "putevent")),
    ("xdist.workermanage", "WorkerController.process_from_remote", ("eventcall",)),
    ("xdist.remote", "WorkerInteractor", ("config", "channel")),
    ("xdist.remote", "WorkerInteractor.pytest_runtestloop", ("session",)),
    ("xdist.remote", "TestQueue.lock", ()),
    ("xdist.remote", "setup_config", ("config", "basetemp")),
    ("xdist.newhooks", "pytest_xdist_setupnodes", ("config", "specs")),
    ("xdist.newhooks", "pytest_xdist_getremotemodule", ()),
    ("xdist.newhooks", "pytest_configure_node", ("node",)),
    ("xdist.newhooks", "pytest_handlecrashitem", ("crashitem", "report", "sched")),
    ("execnet", "Group.makegateway", ("spec",)),
    ("execnet", "Group._register", ("gateway",)),
    ("execnet", "Gateway", ("io", "spec")),
    ("execnet", "Gateway._rinfo", ("update",)),
    ("execnet", "Gateway.remote_exec", ("source",)),
    ("execnet", "Channel.send", ("item",)),
    ("execnet", "Channel.setcallback", ("callback", "endmarker")),
    ("execnet", "Channel.close", ("error",)),
    ("execnet.gateway", "RInfo", ("kwargs",)),
    ("execnet.gateway_base", "WorkerGateway", ("io", "id", "_startcount")),
    ("execnet.gateway_base", "WorkerGateway._local_schedulexec", ("channel", "sourcetask")),
    ("execnet.gateway_base", "WorkerGateway._initreceive", ()),
    ("execnet.gateway_base", "WorkerGateway._terminate_execution", ()),
    ("execnet.gateway_base", "WorkerGateway.executetask", ("item",)),
    ("execnet.gateway_base", "Message", ("msgcode", "channelid", "data")),
    ("execnet.gateway_base", "WorkerPool", ("execmodel", "hasprimary")),
    ("execnet.gateway_base", "get_execmodel", ("backend",)),
    ("execnet.gateway_base", "geterrortext", ("exc",)),
    ("execnet.gateway_base", "loads_internal", ("bytestring",)),
)


def check(option: object) -> None:
    """See that pytest-xdist is there and has what is used.

    Args:
        option: pytest's parsed options.

    Raises:
        pytest.UsageError: It is not installed, or turned off, or this version is not one
            that is known.
    """
    try:
        importlib.import_module("xdist")
    except ImportError as error:
        raise pytest.UsageError(
            "--mpcluster needs pytest-xdist: pip install 'mpcluster[pytest]'"
        ) from error
    if not hasattr(option, "numprocesses"):
        raise pytest.UsageError(
            "--mpcluster needs the plugin of pytest-xdist, which is turned off here: leave out "
            "-p no:xdist, or add -p xdist.plugin where plugins are not loaded by themselves"
        )
    missing = [f"{module}.{name}" for module, name, used in _USED if not _has(module, name, used)]
    if missing:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
        raise pytest.UsageError(
            f"--mpcluster does not know this pytest-xdist ({versions}): {', '.join(missing)} "
            "is not as it was. Leave out --mpcluster, or install pytest-xdist 3.8 and execnet 2.1"
        )


def _has(module: str, name: str, wanted: tuple[str, ...]) -> bool:
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return callable(found) and set(wanted) <= set(inspect.signature(found).parameters)
