"""What becomes of a mounted application's paths, and of what proxies say."""

from __future__ import annotations

import pytest

from prefork.handlers.peer import Claims, believe, mount


@pytest.mark.parametrize(
    ("root", "path", "prefix", "script_name", "path_info"),
    [
        ("/shop", "/shop/a", None, "/shop", "/a"),
        ("/shop", "/shop", None, "/shop", ""),
        ("/shop", "/shop/", None, "/shop", "/"),
        ("/shop", "/shopping", None, "/shop", "/shopping"),
        ("/shop", "/a", None, "/shop", "/a"),
        ("/shop", "", None, "/shop", ""),
        ("", "/a", "/outer", "/outer", "/a"),
        ("", "/outer/a", "/outer", "/outer", "/outer/a"),
        ("/shop", "/shop/a", "/outer", "/outer/shop", "/a"),
        ("/shop", "/a", "/outer", "/outer", "/a"),
        ("/shop", "/a", "", "", "/a"),
    ],
)
def test_paths_are_split_where_the_application_is_mounted(
    root: str, path: str, prefix: str | None, script_name: str, path_info: str
) -> None:
    environ = {"SCRIPT_NAME": root, "PATH_INFO": path}
    mount(environ, root, prefix)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


def test_what_is_not_claimed_stays_as_it_is() -> None:
    environ = {"REMOTE_ADDR": "1.2.3.4", "REMOTE_PORT": "5", "wsgi.url_scheme": "http", "HTTP_HOST": "a"}
    before = dict(environ)
    believe(environ, Claims())
    assert environ == before
    believe(environ, Claims("5.6.7.8", "", "https", "b"))
    assert environ == {
        "REMOTE_ADDR": "5.6.7.8",
        "REMOTE_PORT": "",
        "wsgi.url_scheme": "https",
        "HTTP_HOST": "b",
    }
