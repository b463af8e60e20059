"""Finding the main program, and running it once more. (As programs: test_ending.py.)"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpcluster import mainprogram


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is found first holds, so each test begins with nothing found; no prompt."""
    monkeypatch.delattr(sys, "ps1", raising=False)
    mainprogram.locate.cache_clear()
    yield
    mainprogram.locate.cache_clear()


def script(path: Path) -> types.ModuleType:
    """A ``__main__`` as the interpreter makes it for a script."""
    main = types.ModuleType("__main__")
    main.__file__ = str(path)
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", str(path))
    main.__spec__ = None
    main.__package__ = None
    return main


def test_a_script_is_known_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "program.py"
    monkeypatch.setitem(sys.modules, "__main__", script(path))
    found = mainprogram.locate()
    assert found.file == str(path)
    assert found.module is None
    assert found.spec is None


def test_what_is_found_first_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3.11 deletes ``__file__`` as soon as the program has ended, and callbacks fork then."""
    main = script(tmp_path / "program.py")
    monkeypatch.setitem(sys.modules, "__main__", main)
    found = mainprogram.locate()
    del main.__file__
    assert mainprogram.locate() is found


@pytest.mark.parametrize("missing", ["__file__", "__loader__"])
def test_one_without_a_file_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """No name of a file, as at ``-c``; or a name that is no file's, as a notebook may have."""
    main = script(tmp_path / "program.py")
    delattr(main, missing)
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(RuntimeError, match="give fork\\(\\) a target function"):
        mainprogram.locate()


def test_where_another_program_runs_it_the_name_of_its_file_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``coverage run -m`` leaves a spec with the module's name, and a loader that reads nothing."""
    path = tmp_path / "program.py"
    path.write_text("seen = (__spec__.name, __package__, __file__)\n")
    main = types.ModuleType("__main__")
    main.__file__ = str(path)
    main.__loader__ = types.SimpleNamespace(name="package.program")  # type: ignore[assignment]
    main.__spec__ = importlib.machinery.ModuleSpec("package.program", main.__loader__)
    main.__package__ = "package"
    monkeypatch.setitem(sys.modules, "__main__", main)
    mainprogram.locate()._execute()
    assert sys.modules["__main__"].seen == ("package.program", "package", str(path))
    assert list(tmp_path.iterdir()) == [path]


def test_at_the_prompt_it_is_refused_although_a_script_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "__main__", script(tmp_path / "program.py"))
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with pytest.raises(RuntimeError, match="interactive"):
        mainprogram.locate()


def test_it_runs_as_main_in_a_module_of_its_own_and_leaves_no_bytecode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "program.py"
    path.write_text("seen = (__name__, __file__, __package__, __spec__)\n")
    before = script(path)
    monkeypatch.setitem(sys.modules, "__main__", before)
    mainprogram.locate()._execute()
    after = sys.modules["__main__"]
    assert after is not before
    assert not hasattr(before, "seen")
    assert after.seen == ("__main__", str(path), None, None)
    assert list(tmp_path.iterdir()) == [path]


def test_the_code_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "program.py"
    path.write_text("version = 1\n")
    monkeypatch.setitem(sys.modules, "__main__", script(path))
    found = mainprogram.locate()
    path.write_text("version = 2\n")
    found._execute()
    assert sys.modules["__main__"].version == 2
