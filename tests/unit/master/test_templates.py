"""Where templates cannot work they are refused."""

from __future__ import annotations

from prefork.master.machine import templates_without_subreapers
from tests.unit.config.reading import WEB, read


def test_preload_is_refused_where_orphans_cannot_be_adopted() -> None:
    (problem,) = templates_without_subreapers(read(WEB + "preload = true\n"), can_adopt=False)
    assert "[pool.web] preload: expected Linux" in problem.message
    assert problem.hint == "write preload = false: each worker then loads the application by itself"


def test_everything_else_is_allowed_there() -> None:
    assert not templates_without_subreapers(read(WEB), can_adopt=False)
    assert not templates_without_subreapers(read(WEB + "preload = true\n"), can_adopt=True)
