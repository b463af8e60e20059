"""What was typed: which command, with which options; and its errors as one sentence each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from . import asking, place, report, settings
from .errors import INTERRUPTED, WRONG, CommandError
from .options import OPTIONS, Option, made_of
from .program import Program

__all__ = ["run"]

_EPILOG: Final = """\
Signals to the master: TERM or INT let the workers finish (a second one ends them at once), QUIT
ends at once, HUP reloads, TTIN and TTOU scale by one, USR1 opens the log file anew, USR2 puts a
new master in the place of this one. Every option may stand in [tool.mpcluster] of pyproject.toml,
or in mpcluster.toml."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status.

    Args:
        arguments: Without the command's own name; those of the process, if None.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    typed, behind = _split(typed)
    asked = parser.parse_args(typed)
    try:
        status: int = _COMMANDS[asked.command](asked, behind)
    except CommandError as error:
        sys.stderr.write(f"mpcluster {asked.command}: {error}\n")
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


# -- the commands ----------------------------------------------------------------------------


def _run(asked: argparse.Namespace, behind: list[str]) -> int:
    from .running import run as run_it

    typed = {key: value for key, value in vars(asked).items() if value is not None}
    for other in ("command", "config", "module"):
        typed.pop(other, None)
    chosen = settings.read(asked.config)
    program = _program(asked.module, behind) or chosen.program
    if program is None:
        raise CommandError("nothing to run: name a script, or a module with -m")
    try:
        options = made_of(program, {**chosen.given, **_read(typed)})
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from None
    return run_it(options)


def _read(typed: dict[str, Any]) -> dict[str, Any]:
    known = {option.key: option for option in OPTIONS}
    given = {}
    for key, value in typed.items():
        try:
            given[key] = known[key].read(value)
        except ValueError as error:
            raise CommandError(f"--{known[key].name}: {error}") from None
    return given


def _status(asked: argparse.Namespace, behind: list[str]) -> int:
    status = asking.ask(_place(asked, behind), "status")
    status.pop("ok")
    _print(json.dumps(status) if asked.json else report.as_text(status))
    return 0


def _top(asked: argparse.Namespace, behind: list[str]) -> int:
    from .top import show

    return show(_place(asked, behind))


def _reload(asked: argparse.Namespace, behind: list[str]) -> int:
    asking.ask(_place(asked, behind), "reload", patient=True)
    return 0


def _scale(asked: argparse.Namespace, behind: list[str]) -> int:
    asking.ask(_place(asked, behind), "scale", workers=asked.workers)
    return 0


def _stop(asked: argparse.Namespace, behind: list[str]) -> int:
    with asking.connected(_place(asked, behind)) as line:
        line.ask("stop", now=asked.now)
        line.wait_for_end()
    return 0


_COMMANDS: Final[dict[str, Callable[[argparse.Namespace, list[str]], int]]] = {
    "run": _run,
    "status": _status,
    "top": _top,
    "reload": _reload,
    "scale": _scale,
    "stop": _stop,
}


def _place(asked: argparse.Namespace, behind: list[str]) -> Any:
    return place.find(asked.control, _program(asked.module, behind))


def _program(module: str | None, behind: list[str]) -> Program | None:
    if module is not None:
        return Program(module, is_module=True, arguments=tuple(behind))
    if behind:
        return Program(behind[0], is_module=False, arguments=tuple(behind[1:]))
    return None


# -- the command line ------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(
        prog="mpcluster",
        description="Run a program on all cores: one port, restarts, reloads that lose no request.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    running = commands.add_parser(
        "run",
        help="run a script or a module in workers",
        usage="mpcluster run [OPTION ...] SCRIPT [ARGUMENT ...]\n"
        "       mpcluster run [OPTION ...] -m MODULE [ARGUMENT ...]",
        allow_abbrev=False,
    )
    for option in OPTIONS:
        _add(running, option)
    running.add_argument("--config", metavar="FILE", help="the settings file")
    _add_module(running)
    asking_ones = {
        "status": "show the workers",
        "top": "show them, once a second",
        "reload": "replace every worker; return when the new ones alone take connections",
        "scale": "have so many workers",
        "stop": "let the workers finish, and end",
    }
    for name, does in asking_ones.items():
        command = commands.add_parser(
            name,
            help=does,
            usage=f"mpcluster {name} {'N ' if name == 'scale' else ''}"
            "[--control PATH | SCRIPT | -m MODULE]",
            allow_abbrev=False,
        )
        command.add_argument("--control", metavar="PATH", help="the master's control socket")
        _add_module(command)
        if name == "scale":
            command.add_argument("workers", metavar="N", type=int)
        elif name == "stop":
            command.add_argument("--now", action="store_true", help="do not let them finish")
        elif name == "status":
            command.add_argument("--json", action="store_true", help="for programs")
    return parser


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    names = [f"--{option.name}"] if option.short is None else [option.short, f"--{option.name}"]
    if option.metavar is None:
        # Only yes can be said: what a file says is taken back by no option, but by another file.
        parser.add_argument(*names, action="store_true", default=None, help=option.help)
    else:
        parser.add_argument(
            *names,
            action="append" if option.many else "store",
            metavar=option.metavar,
            help=option.help,
        )


def _add_module(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", dest="module", metavar="MODULE", help="a module, as python -m")


def _split(typed: list[str]) -> tuple[list[str], list[str]]:
    """Part the command's own options from the script, or what belongs to the module.

    Behind the script, or the module, nothing is the command's any more, whatever it looks like.
    """
    if not typed or typed[0] not in _COMMANDS:
        return typed, []
    taking = {f"--{one.name}" for one in OPTIONS if one.metavar is not None} | {"--config"}
    taking |= {one.short for one in OPTIONS if one.short is not None}
    position = 2 if typed[0] == "scale" else 1
    while position < len(typed):
        word = typed[position]
        if word == "--":
            return typed[:position], typed[position + 1 :]
        if word == "-m" or (word.startswith("-m") and not word.startswith("--")):
            end = position + (2 if word == "-m" else 1)
            return typed[:end], typed[end:]
        if word == "-" or not word.startswith("-"):
            return typed[:position], typed[position:]
        position += 2 if word in taking else 1
    return typed, []


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
