"""Folders of a release: the names they are known by, and the real paths that a generation keeps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from prefork.config.schema import Folder, Release
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


def test_a_deleted_start_folder_keeps_its_name_if_that_is_known(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    assert start_folder() == str(gone)
    monkeypatch.delenv("PWD")
    with pytest.raises(UsageError, match="the current folder has been deleted"):
        start_folder()


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


@pytest.mark.parametrize(
    "text", ["#!{0}\nimport this", '#!/bin/sh\n\'exec\' "{0}" "$0"', "#!/usr/bin/env {0}\n"]
)
def test_a_script_that_was_executed_is_what_an_upgrade_executes(current, monkeypatch, text):
    """Its first line may name another interpreter by then."""
    script = current / "run"
    script.write_text(text.format("python4"))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.setattr(sys, "orig_argv", ["python4", "run", "shop.toml"])
    assert Origin().program() == (str(script), "shop.toml")


@pytest.mark.parametrize(
    ("text", "mode"), [("#!/usr/bin/python4\n", 0o755), ("#!/usr/bin/env python4\n", 0o644), ("", 0o755)]
)
def test_a_script_that_was_given_to_an_interpreter_is_so_again(current, monkeypatch, text, mode):
    script = current / "run"
    script.write_text(text)
    script.chmod(mode)
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.setattr(sys, "orig_argv", ["python4", "run", "shop.toml"])
    monkeypatch.setattr(sys, "executable", f"{os.getcwd()}/bin/python4")
    assert Origin().program() == (f"{current}/bin/python4", "run", "shop.toml")


def test_a_link_that_led_to_the_start_folder_is_named_once_it_leads_elsewhere(current, monkeypatch):
    monkeypatch.delenv("PWD")  # as under systemd
    origin = Origin()
    config = read(WEB)
    follows = read(f'[master]\ndirectory = "{current}"\n' + WEB)
    own = origin.started.name
    here = msgspec.structs.replace(config.pools["web"], release=Release(Folder(own)))
    config = msgspec.structs.replace(config, pools={"web": here})
    assert origin.doubts(config) == []
    switch(current)
    releases = current.parent / "releases"
    assert origin.doubts(follows) == []
    [told] = origin.doubts(config)
    assert told.startswith(f"this server runs in {releases}/1, {current} is {releases}/2 by now: ")
    assert told.endswith(f'write directory = "{current}" under [master]')


def test_what_only_an_upgrade_takes_is_named(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.setattr(sys, "path", [str(site)])
    origin = Origin()
    assert origin.doubts(read(WEB)) == []
    new = site.resolve() / "shop.pth"
    new.write_text("/srv/shop\n")
    assert origin.doubts(read(WEB)) == [
        f"changed since this server started: {new}; prefork upgrade takes that, a reload does not"
    ]
