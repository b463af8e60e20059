"""The settings file, and who wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpcluster.cli import command, running, settings
from mpcluster.cli.errors import CommandError
from mpcluster.cli.options import OPTIONS, RunOptions
from mpcluster.cli.program import Program


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(name="told")
def told_fixture(monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """What `run` is told, in the place of running it."""
    told: list[RunOptions] = []

    def run(options: RunOptions) -> int:
        told.append(options)
        return 0

    monkeypatch.setattr(running, "run", run)
    return told


def refusal(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(CommandError) as refused:
        settings.read(None)
    return str(refused.value)


def test_both_files_are_read(here: Path) -> None:
    (here / "pyproject.toml").write_text('[tool.mpcluster]\nworkers = 3\nmax-memory = "1M"')
    assert settings.read(None).given == {"workers": 3, "max_memory": 1 << 20}
    (here / "pyproject.toml").write_text("[tool.other]\nx = 1")
    (here / "mpcluster.toml").write_text("workers = 4\nwatch_path = ['a', 'b']")
    assert settings.read(None).given == {"workers": 4, "watch_path": ["a", "b"]}


def test_without_a_file_there_are_no_settings() -> None:
    assert settings.read(None) == settings.Settings()


def test_every_option_may_stand_in_a_file(here: Path) -> None:
    values = {"N": "2", "TIME": '"2s"', "SIZE": "7", "FORM": '"json"', None: "true"}
    text = "".join(f"{one.name} = {values.get(one.metavar, repr('x'))}\n" for one in OPTIONS)
    (here / "mpcluster.toml").write_text(text)
    assert settings.read(None).given.keys() == {one.key for one in OPTIONS}


def test_the_command_line_wins(here: Path, told: list[RunOptions]) -> None:
    (here / "mpcluster.toml").write_text('script = "app.py"\nworkers = 3\nrestart = "never"')
    assert command.run(["run", "-n", "5"]) == 0
    (options,) = told
    assert options.workers == 5
    assert options.rules.restart == "never"
    assert options.program == Program("app.py", is_module=False)


def test_a_program_on_the_command_line_hides_that_of_the_file(
    here: Path, told: list[RunOptions]
) -> None:
    (here / "mpcluster.toml").write_text('module = "app"\narguments = ["--port", "80"]')
    command.run(["run"])
    command.run(["run", "other.py"])
    assert told[0].program == Program("app", is_module=True, arguments=("--port", "80"))
    assert told[1].program == Program("other.py", is_module=False)


def test_behind_the_script_nothing_is_the_commands(told: list[RunOptions]) -> None:
    command.run(["run", "--restart", "never", "app.py", "-n", "9", "--json", "-m", "x"])
    command.run(["run", "-n2", "-m", "pack.age", "--restart", "never"])
    command.run(["run", "--", "-app.py", "x"])
    assert told[0].program == Program("app.py", False, ("-n", "9", "--json", "-m", "x"))
    assert told[1].program == Program("pack.age", True, ("--restart", "never"))
    assert told[1].workers == 2
    assert told[1].rules.restart == "always"
    assert told[2].program == Program("-app.py", False, ("x",))


def test_an_unknown_key_is_named_with_the_next_best(here: Path) -> None:
    text = refusal(here / "mpcluster.toml", "max_memroy = 3")
    assert text == "mpcluster.toml: there is no setting 'max_memroy'; is 'max-memory' meant?"
    text = refusal(here / "mpcluster.toml", "colour = 3")
    assert text.startswith("mpcluster.toml: there is no setting 'colour'; there are: workers, ")


def test_a_wrong_value_is_named_with_its_key(here: Path) -> None:
    text = refusal(here / "pyproject.toml", '[tool.mpcluster]\nkill-timeout = "soon"')
    assert text.startswith("pyproject.toml: kill-timeout: a time is a number of seconds")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers = ", "is no TOML"),
        ("script = 'a'\nmodule = 'b'", "script and module are two programs"),
        ("arguments = ['x']", "arguments belong to a script or a module"),
        ("kill-timeout = 1\nkill_timeout = 2", "kill_timeout is there twice"),
    ],
)
def test_what_cannot_be_meant_is_refused(here: Path, text: str, said: str) -> None:
    assert said in refusal(here / "mpcluster.toml", text)


def test_two_files_with_settings_are_refused(here: Path) -> None:
    (here / "pyproject.toml").write_text("[tool.mpcluster]\nworkers = 3")
    assert "one would hide the other" in refusal(here / "mpcluster.toml", "workers = 4")
    assert settings.read("mpcluster.toml").given == {"workers": 4}


def test_a_named_file_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="the settings in other.toml cannot be read: No such"):
        settings.read("other.toml")


def test_a_wrong_value_on_the_command_line_is_named_with_its_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.run(["run", "--max-memory", "much", "app.py"]) == 2
    assert capsys.readouterr().err.startswith("mpcluster run: --max-memory: a size is a number")


def test_nothing_to_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["run", "-n", "2"]) == 2
    said = "mpcluster run: nothing to run: name a script, or a module with -m\n"
    assert capsys.readouterr().err == said
