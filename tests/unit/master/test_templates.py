"""Where templates cannot work they are refused."""

from __future__ import annotations

import pytest

from prefork.errors import ConfigError
from prefork.master.server import check_templates
from tests.unit.config.reading import WEB, read


def test_preload_is_refused_where_orphans_cannot_be_adopted() -> None:
    with pytest.raises(ConfigError) as caught:
        check_templates(read(WEB + "preload = true\n"), can_adopt=False)
    (problem,) = caught.value.problems
    assert problem.message.startswith("[pool.web] preload: expected Linux")
    assert problem.hint == "write preload = false: each worker then loads the application by itself"


def test_everything_else_is_allowed_there() -> None:
    check_templates(read(WEB), can_adopt=False)
    check_templates(read(WEB + "preload = true\n"), can_adopt=True)
