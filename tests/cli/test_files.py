"""`--watch`: what counts as a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpcluster.cli.files import Files


@pytest.fixture(name="tree")
def tree_fixture(tmp_path: Path) -> Path:
    for name in ("app.py", "data.txt", "pack/mod.py", ".git/x.py", "env/y.py", "env/pyvenv.cfg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    return tmp_path


def changes(files: Files) -> list[str]:
    """Two looks: the second one sees that it has come to rest."""
    return files.changed() or files.changed()


def test_nothing_has_changed_at_first(tree: Path) -> None:
    assert changes(Files([str(tree)])) == []


def test_a_change_counts_when_it_has_come_to_rest(tree: Path) -> None:
    files = Files([str(tree)])
    (tree / "app.py").write_text("22")
    assert files.changed() == []
    (tree / "app.py").write_text("333")
    assert files.changed() == []
    assert files.changed() == [str(tree / "app.py")]
    assert files.changed() == []


def test_new_files_count_and_so_do_those_that_go(tree: Path) -> None:
    files = Files([str(tree)])
    (tree / "pack" / "more.py").write_text("")
    (tree / "app.py").unlink()
    assert changes(files) == [str(tree / "app.py"), str(tree / "pack" / "more.py")]


@pytest.mark.parametrize("name", ["data.txt", ".git/x.py", "env/y.py"])
def test_what_is_no_source_of_ones_own_does_not_count(tree: Path, name: str) -> None:
    files = Files([str(tree)])
    (tree / name).write_text("changed")
    assert changes(files) == []


def test_a_file_that_is_named_counts_whatever_it_is(tree: Path) -> None:
    files = Files([str(tree / "data.txt"), str(tree / "absent.txt")])
    (tree / "data.txt").write_text("changed")
    (tree / "absent.txt").write_text("here now")
    assert changes(files) == [str(tree / "absent.txt"), str(tree / "data.txt")]


def test_one_that_is_touched_and_put_back_is_no_change(tree: Path) -> None:
    files = Files([str(tree)])
    (tree / "pack" / "passing.py").write_text("")
    assert files.changed() == []
    (tree / "pack" / "passing.py").unlink()
    assert files.changed() == []
    assert files.changed() == []
