"""Folders of a release: the names they are known by, and the real paths that a generation keeps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from prefork.config.schema import Folder
from prefork.errors import UsageError
from prefork.master.release import Origin, pin, start_folder
from prefork.worker.settle import find
from tests.unit.config.reading import WEB, read


@pytest.fixture
def current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give /…/current -> releases/1, with this process in it, as by a shell's cd; there is a release 2 as well."""
    root = tmp_path.resolve()
    for name in ("1", "2"):
        (root / "releases" / name / "lib").mkdir(parents=True)
    link = root / "current"
    link.symlink_to("releases/1")
    monkeypatch.chdir(link)
    monkeypatch.setenv("PWD", str(link))
    return link


def switch(link: Path) -> None:
    link.unlink()
    link.symlink_to("releases/2")


def test_the_start_folder_has_the_name_that_its_user_went_by(current):
    assert start_folder() == str(current)


@pytest.mark.parametrize("named", ["", "relative", "/", "/no/such/folder"])
def test_a_pwd_that_means_another_folder_is_not_believed(current, monkeypatch, named):
    monkeypatch.setenv("PWD", named)
    assert start_folder() == str(current.resolve())


def test_a_deleted_start_folder_is_told_of_unless_there_is_one_of_its_name(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    with pytest.raises(UsageError, match=f"the current folder, {gone}, has been deleted"):
        start_folder()
    gone.mkdir()  # another one
    assert start_folder() == str(gone)


def test_each_reading_pins_the_folders_that_links_lead_to_then(current):
    config = read(f'[master]\ndirectory = "{current}"\n' + WEB + 'directory = "lib"\n')
    releases = current.parent / "releases"
    first = pin(config).pools["web"].release
    assert first.start == Folder(f"{current}/lib", f"{releases}/1/lib")
    assert first.imports == (first.start, Folder(str(current), f"{releases}/1"))
    switch(current)
    assert pin(config).pools["web"].release.start == Folder(f"{current}/lib", f"{releases}/2/lib")
    assert first.start.real == f"{releases}/1/lib"


def test_entries_of_sys_path_in_the_start_folder_go_with_it(current, monkeypatch):
    """``python -m`` and a relative PYTHONPATH put real paths there, which no switch of a link would change."""
    real = os.getcwd()
    monkeypatch.setattr(sys, "path", ["", real, f"{real}/lib", f"{real}er", "/usr"])
    origin = Origin()
    switch(current)
    releases = current.parent / "releases"
    assert [folder.real for folder in origin.pinned_path()] == [
        "",
        f"{releases}/2",
        f"{releases}/2/lib",
        f"{releases}/1er",
        os.path.realpath("/usr"),
    ]


def test_a_release_that_was_deleted_is_replaced_by_what_its_name_means_now(current):
    folder = pin(read(f'[master]\ndirectory = "{current}"\n' + WEB)).pools["web"].release.start
    switch(current)
    releases = current.parent / "releases"
    assert find(folder) == f"{releases}/1"
    (releases / "1" / "lib").rmdir()
    (releases / "1").rmdir()
    assert find(folder) == f"{releases}/2"
