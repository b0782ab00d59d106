"""Patterns of files: what they match, and which folders have to be watched for them."""

from __future__ import annotations

import glob

import pytest

from prefork.config.patterns import expression, folder_of, goes_deeper
from tests.unit.config.reading import WEB, problems, read

FILES = [
    "a.py",
    "b.pyc",
    "src/a.py",
    "src/ab.py",
    "src/x/a.py",
    "src/x/y/a.py",
    "src/x/a.html",
    "src/[x].py",
    "other/a.py",
]


@pytest.mark.parametrize(
    ("pattern", "folder", "is_deep"),
    [
        ("/*.py", "/", False),
        ("/src/*.py", "/src", False),
        ("/src/a.py", "/src", False),
        ("/src/a?.py", "/src", False),
        ("/src/*/a.py", "/src", True),
        ("/src/**/*.py", "/src", True),
        ("/src/**/a.*", "/src", True),
        ("/**/[ao].py", "/", True),
        ("/src/[!b]*.py", "/src", False),
        ("/src/[[]x].py", "/src", False),
        ("/src/x*/**/*.py", "/src", True),
    ],
)
def test_a_pattern_matches_what_glob_finds(tmp_path, pattern, folder, is_deep):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = set(glob.glob(f"{tmp_path}{pattern}", recursive=True))
    # The folder's own name is random: it may not be read as a pattern.
    matching = {name for name in FILES if expression(pattern).fullmatch(f"/{name}")}
    assert matching == {path.removeprefix(f"{tmp_path}/") for path in found}
    assert (folder_of(pattern), goes_deeper(pattern)) == (folder, is_deep)


@pytest.mark.parametrize(
    "pattern", ["/a[", "/a[]", "/[^a]", "/[a&&b]", "/[z-a]", "/[\\]", "/]*[", "/***", "/a|b"]
)
def test_any_text_is_a_pattern(pattern):
    assert not expression(pattern).fullmatch("/x/y/z/nothing") or "**" in pattern


def test_patterns_start_at_the_masters_directory():
    text = (
        '[master]\ndirectory = "shop"\n'
        + WEB
        + 'directory = "web"\nreload_on_change = ["src/**/*.py", "/etc/x"]\n'
    )
    assert read(text).pools["web"].reload_on_change == ("/srv/shop/src/**/*.py", "/etc/x")
    assert read(WEB).pools["web"].reload_on_change == ()


@pytest.mark.parametrize(
    ("written", "found", "hint"),
    [
        ('"*.py"', '"*.py"', 'write reload_on_change = ["*.py"]'),
        ("[3]", "a list", 'write reload_on_change = ["src/**/*.py"]'),
        ("true", "true", 'write reload_on_change = ["src/**/*.py"]'),
    ],
)
def test_what_is_no_list_of_patterns_is_refused(written, found, hint):
    expected = f":4: [pool.web] reload_on_change: expected a list of patterns of files, found {found}"
    assert problems(WEB + f"reload_on_change = {written}\n") == [(expected, hint)]
