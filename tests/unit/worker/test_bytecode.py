"""Bytecode of another version of a file is not run, though size and second of change are the same."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from prefork.worker import bytecode


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that modules of the application are imported from."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "path_hooks", list(sys.path_hooks))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    bytecode.check_in([str(tmp_path)])
    return tmp_path


def version_of(name: str) -> int:
    """Return what a new worker would import."""
    sys.modules.pop(name, None)
    importlib.invalidate_caches()
    found = importlib.import_module(name).VERSION
    del sys.modules[name]
    return int(found)


def test_the_second_of_two_versions_with_one_size_and_time_is_run(folder):
    source = folder / "twin_for_bytecode.py"
    source.write_text("VERSION = 1")
    os.utime(source, (1, 1))
    assert version_of(source.stem) == 1
    source.write_text("VERSION = 2")
    os.utime(source, (1, 1))
    assert version_of(source.stem) == 2
    assert version_of(source.stem) == 2


def test_bytecode_that_is_later_than_its_source_is_used(folder):
    source = folder / "kept_for_bytecode.py"
    source.write_text("VERSION = 1")
    assert version_of(source.stem) == 1
    cached = Path(cache_from_source(str(source)))
    before = cached.stat()
    assert version_of(source.stem) == 1
    assert cached.stat() == before  # not written anew


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/srv/shop", True),
        ("/srv/shop/models", True),
        ("/srv/shopping", False),
        ("/srv/shop/venv/lib/python3.13/site-packages", False),
        (os.path.dirname(os.__file__), False),
    ],
)
def test_only_the_applications_own_modules_are_looked_at(path, found):
    folders = ("/srv/shop", os.path.dirname(os.path.dirname(os.__file__)))
    assert bytecode._is_within(path, folders) is found
