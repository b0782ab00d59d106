"""Reads a configuration as a test gives it, or its problems."""

from __future__ import annotations

import pytest

from prefork.config.load import load
from prefork.errors import ConfigError

WEB = '[pool.web]\nlisten = ["127.0.0.1:8000"]\nwsgi = "shop.web:app"\n'


def read(text, *, settings=(), environment=None, source="conf/server.toml", cpus=3, file="/srv/server.toml"):
    return load(
        text if isinstance(text, bytes) else text.encode(),
        source=source,
        directory="/srv",
        runtime_directory="/run/user/1",
        cpus=cpus,
        environment=environment or {},
        settings=settings,
        file=file,
    )


def problems(text, **more):
    with pytest.raises(ConfigError) as caught:
        read(text, **more)
    return [
        (problem.message.removeprefix("conf/server.toml"), problem.hint) for problem in caught.value.problems
    ]
