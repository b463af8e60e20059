"""Mode ``collect``: the session of all workers, up to the fork.

The template is a worker of xdist that has no controller yet: what it sends is kept. When
the tests are collected, workers are forked; each sends what was kept as its own, and goes
on where the template stopped.
"""

from __future__ import annotations

import pathlib
from types import SimpleNamespace
from typing import Any

import pytest
from execnet.gateway_base import get_execmodel

from mpcluster.testing import capture, safety, shared
from mpcluster.testing.packing import pack
from mpcluster.testing.template import Template
from mpcluster.testing.worker import WorkerSide, become_xdist_worker

__all__ = ["run"]


class _Kept:
    """Stands for the channel to the controller: keeps what is sent."""

    def __init__(self) -> None:
        self.gateway = SimpleNamespace(execmodel=get_execmodel("main_thread_only"))
        self.sent: list[Any] = []

    def send(self, item: Any) -> None:
        self.sent.append(item)


class _Fork:
    """Plugin of the template: the point at which workers leave it."""

    def __init__(self, template: Template, interactor: Any, kept: _Kept) -> None:
        self._template = template
        self._interactor = interactor
        self._kept = kept
        self._once: list[Any] = []  # what the first worker alone shall send
        self.worker: WorkerSide | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """All tests are collected: fork. Goes on to xdist's own loop, in a worker."""
        made = shared.SharedFixtures(session)
        made.set_up()
        so_far = len(self._kept.sent)
        safety.warn(self._template.plan.config)
        self._once, self._kept.sent[so_far:] = self._kept.sent[so_far:], []
        self._template.at_end = made.tear_down
        self.split()
        made.belong_to_another()

    def split(self) -> None:
        """Wait for orders; in a worker, become the one that was ordered."""
        # Once for all: a worker that went over its copies of the ids would make them its own.
        kept = pack(tuple(self._kept.sent))
        worker = self.worker = self._template.serve()
        worker.begin()
        worker.connect()
        assert worker.channel is not None
        workerinput, basetemp = worker.take_input()
        config: Any = worker.plan.config
        config.workerinput.clear()
        config.workerinput.update(workerinput)
        _move_temporary_directory(config, basetemp)
        try:
            worker.call_hook()
        except BaseException as error:  # noqa: BLE001  # the controller reports it
            worker.conclude(error)
            worker.end()
        interactor = self._interactor
        interactor.channel = worker.channel
        worker.channel.watch(interactor.torun)
        interactor.workerid = workerinput["workerid"]
        interactor.testrunuid = workerinput["testrunuid"]
        if kept is not None:
            worker.channel.send_packed(kept)
        rest = [] if kept is not None else self._kept.sent
        for item in rest + ([] if self._template.forked else self._once):
            worker.channel.send(item)


def run(template: Template) -> WorkerSide:
    """Configure, collect, fork. Returns in a worker, when its session is over."""
    plan = template.plan
    # Its terminal reporter writes to nobody, as a worker's does.
    muted = (lambda: None) if capture.is_live(plan.config) else capture.mute
    capture.renew(plan.config, plan.conftest_output, between=muted)
    plan.conftest_output = ("", "")
    workerinput: Any = template.wait_for_input()
    kept = _Kept()
    interactor = become_xdist_worker(plan, workerinput, None, kept)
    fork = _Fork(template, interactor, kept)
    plan.config.pluginmanager.register(fork)
    error: BaseException | None = None
    try:
        plan.config.hook.pytest_cmdline_main(config=plan.config)
    except BaseException as caught:  # noqa: BLE001  # the controller reports it
        error = caught
    if fork.worker is None:  # it came to no collection: let each worker say why
        fork.split()
    worker = fork.worker
    assert worker is not None
    worker.conclude(error)
    return worker


def _move_temporary_directory(config: Any, basetemp: str | None) -> None:
    """Give this worker its own directory for ``tmp_path``: the template had none yet."""
    config.option.basetemp = basetemp
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None and basetemp is not None:
        factory._given_basetemp = pathlib.Path(basetemp).absolute()  # noqa: SLF001
        factory._basetemp = None  # noqa: SLF001
