"""What `run` can be told: one table, for the command line and the settings file alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mpcluster.supervision import Rules

from . import units
from .lines import FORMS
from .program import Program

__all__ = ["OPTIONS", "RAW", "Option", "RunOptions", "made_of"]


#: No form: the workers write for themselves.
RAW: Final = "raw"


@dataclass(frozen=True, slots=True)
class Option:
    """One of them.

    Attributes:
        name: With dashes, as it is written everywhere.
        read: Makes a value of what was written; its ValueError says what is wanted.
        help: What it does.
        metavar: What stands for the value in the help; None: it takes none, and is yes.
        short: Another name on the command line.
        many: It may be given several times.
    """

    name: str
    read: Callable[[object], Any]
    help: str
    metavar: str | None = None
    short: str | None = None
    many: bool = False

    @property
    def key(self) -> str:
        """As Python has it."""
        return self.name.replace("-", "_")


def _form(value: object) -> str:
    if value not in (*FORMS, RAW):
        raise ValueError(f"the log's form is one of {', '.join(FORMS)}, raw; not {value!r}")
    return str(value)


OPTIONS: Final = (
    Option("workers", units.workers, "how many; auto (the default): one a processor", "N", "-n"),
    Option(
        "scheduling",
        units.text,
        "how connections are spread: auto, shared, slots, round_robin, least_connections, ip_hash",
        "POLICY",
    ),
    Option(
        "share",
        units.text,
        "what is shared: python, what Python binds; kernel, what C and Rust bind, too",
        "WHAT",
    ),
    Option("max-connections", units.count, "that one worker may have open at once", "N"),
    Option("restart", units.text, "who is started again: always, on-failure, never", "WHEN"),
    Option(
        "ready",
        units.text,
        "what makes a worker ready: auto, listening, explicit, online",
        "WHEN",
    ),
    Option("ready-timeout", units.seconds, "that a worker has to get ready", "TIME"),
    Option("drain-timeout", units.seconds, "that a worker has to finish what it has", "TIME"),
    Option("kill-timeout", units.seconds, "between a SIGTERM and the SIGKILL", "TIME"),
    Option("min-uptime", units.seconds, "after which a worker's end is no crash loop", "TIME"),
    Option("max-crashes", units.count, "ends in a row after which it is given up", "N"),
    Option("backoff", units.seconds, "before the second restart in a row; then doubled", "TIME"),
    Option("heartbeat", units.seconds, "without a sign of life, and a worker is replaced", "TIME"),
    Option("max-memory", units.size, "that a worker may use until it is replaced", "SIZE"),
    Option("max-age", units.seconds, "after which a worker is replaced", "TIME"),
    Option("max-tasks", units.count, "(worker.count()) after which it is replaced", "N"),
    Option("watch", units.flag, "reload when a Python file in the program's directory changes"),
    Option("watch-path", units.texts, "watch this too: a file or a directory", "PATH", many=True),
    Option("preload", units.texts, "import it in the master, once for all", "MODULE", many=True),
    Option("control", units.text, "the control socket; none: without one", "PATH"),
    Option("monitor", units.text, "a web page that shows what goes on", "HOST:PORT"),
    Option("log", units.text, "write everything to this file; USR1 opens it anew", "FILE"),
    Option("log-form", _form, "text, json, or raw: workers write for themselves", "FORM"),
    Option("json", units.flag, "the same as --log-form json"),
)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What one `run` was told, checked as far as that can be without doing it.

    Attributes:
        program: What the workers run.
        workers: How many.
        rules: The supervisor's.
        setup: For :func:`mpcluster.setup`.
        control: A path, ``none``, or None: the default.
        given: Everything, as it was given.
    """

    program: Program
    workers: int
    rules: Rules
    setup: dict[str, Any]
    preload: tuple[str, ...] = ()
    watch: bool = False
    watch_paths: tuple[str, ...] = ()
    control: str | None = None
    monitor: str | None = None
    log: str | None = None
    form: str = "text"
    given: Mapping[str, Any] = field(default_factory=dict)


_SETUP: Final = ("scheduling", "kill_timeout", "max_connections", "share")
_RULES: Final = tuple(one.name for one in dataclasses.fields(Rules))


def made_of(program: Program, given: Mapping[str, Any]) -> RunOptions:
    """Put together what was given.

    Args:
        program: What to run.
        given: By the options' keys; what is not there has its default.

    Raises:
        TypeError, ValueError: A rule is broken; as :class:`Rules` says it.
    """
    paths = tuple(given.get("watch_path", ()))
    form = "json" if given.get("json") else given.get("log_form", "text")
    return RunOptions(
        program=program,
        workers=given.get("workers") or units.workers("auto"),
        rules=Rules(**{key: given[key] for key in _RULES if key in given}),
        setup={key: given[key] for key in _SETUP if key in given},
        preload=tuple(given.get("preload", ())),
        watch=bool(given.get("watch") or paths),
        watch_paths=paths,
        control=given.get("control"),
        monitor=given.get("monitor"),
        log=given.get("log"),
        form=form,
        given=dict(given),
    )
