"""Which workers execute their program anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefork.handlers.load import give
from prefork.master.anew import is_wanted
from prefork.system.privileges import Account

NOBODY = Account("nobody", 65534, 65534)


def post(account: Account | None, kind: str = "wsgi") -> Any:
    return cast(Any, SimpleNamespace(account=account, pool=SimpleNamespace(kind=kind, application="app:app")))


@pytest.mark.parametrize(
    ("account", "kind", "wanted"),
    [
        (NOBODY, "wsgi", True),
        (NOBODY, "task", True),
        (NOBODY, "command", False),  # its program is another one anyway
        (None, "wsgi", False),  # whoever runs as the master's user can read its memory anyway
    ],
)
def test_python_that_runs_as_another_user_is_executed_anew(account, kind, wanted):
    assert is_wanted(post(account, kind)) is wanted


def test_a_function_that_a_program_has_given_is_known_to_no_other_program():
    with give("app:app", object()):
        assert not is_wanted(post(NOBODY))
