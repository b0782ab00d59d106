"""A module is compiled anew where its file has changed since its bytecode was written, whatever the file's time says.

Python takes the bytecode in __pycache__ if the source has the size and the second of change that are noted there (PEP 3147).
Two versions of a file can have both in common: saved and formatted within a second, or unpacked with a fixed time, as by
reproducible builds. The kernel's own record of a file's last change (ctime, inode(7)) cannot be set by anybody.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import cache_from_source
from typing import Any

# What installers put there they compile themselves; and images are unpacked in any order, so that ctimes say nothing.
INSTALLED = ("site-packages", "dist-packages")
STANDARD_LIBRARY = os.path.dirname(os.__file__)
# No source has this size: bytecode that notes another one is not taken, and is written anew.
NO_SIZE = -1


class Loader(SourceFileLoader):
    """Loads modules from source files, or from bytecode that was written after the last change of the source."""

    def path_stats(self, path: str) -> Any:
        """Return the time and size that bytecode has to have noted for a source file."""
        found = dict(super().path_stats(path))
        return found | {"size": NO_SIZE} if _has_changed_since(path) else found


def check_in(folders: Iterable[str]) -> None:
    """Have modules from these folders, and below, loaded by ``Loader``: those of the application."""
    own = tuple(folder for folder in folders if folder != os.sep)
    find = FileFinder.path_hook(
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (Loader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )

    def find_in_own(path: str) -> Any:
        if not _is_within(path, own):
            raise ImportError(f"{path} is left to Python's own finder")
        return find(path)

    sys.path_hooks.insert(0, find_in_own)
    for path in [path for path in sys.path_importer_cache if _is_within(path, own)]:
        del sys.path_importer_cache[path]


def _is_within(path: str, folders: tuple[str, ...]) -> bool:
    is_own = any(path == folder or path.startswith(folder + os.sep) for folder in folders)
    is_installed = path.startswith(STANDARD_LIBRARY) or any(name in path.split(os.sep) for name in INSTALLED)
    return is_own and not is_installed


def _has_changed_since(source: str) -> bool:
    """Tell whether a source file is of a later change than its bytecode."""
    try:
        return os.stat(source).st_ctime_ns > os.stat(cache_from_source(source)).st_ctime_ns
    except (OSError, NotImplementedError):
        return False  # there is no bytecode
