"""Every file in conf/ passes check and runs; so does the example that is a program."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.harness import PREFORK, read_to_end

CONF = Path(__file__).parents[2] / "conf"


def own_addresses(config: str) -> list[str]:
    """Return the options that give each pool with a TCP listener a port of its own."""
    pools = tomllib.loads(config)["pool"]
    return [
        option
        for name, pool in pools.items()
        if any(isinstance(listen, str) and "unix:" not in listen for listen in pool.get("listen", []))
        for option in ("--set", f'pool.{name}.listen=["127.0.0.1:0"]')
    ]


@pytest.mark.parametrize("file", sorted(CONF.glob("*.toml")), ids=lambda file: file.name)
def test_every_file_in_conf_passes_check_and_runs(start, tmp_path, file):
    (tmp_path / "prefork").symlink_to(CONF.parent / "prefork")  # commands name files of the project's folder
    # In the reference that program stands for the user's own.
    config = file.read_text().replace('["node", "assets.js"]', '["sleep", "99"]')
    (tmp_path / file.name).write_text(config)
    options = [*own_addresses(config), "--set", f"master.control={tmp_path}/control.sock"]
    check = subprocess.run(
        [*PREFORK, "check", file.name, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (check.returncode, check.stderr) == (0, "")
    server = start(config, *options).wait_serving()
    assert [pool["degraded"] for pool in server.status()["pools"] if pool["degraded"]] == []
    assert server.stop() == 0


def test_the_example_that_is_a_program_serves(start, tmp_path):
    env = {
        "PREFORK_MASTER__CONTROL": str(tmp_path / "control.sock"),
        "PREFORK_POOL__MAIN__LISTEN": '["127.0.0.1:0"]',
    }
    server = start("", env=env, command=[sys.executable, "-m", "prefork.examples.serve"]).wait_serving()
    with server.connect() as client:
        client.sendall(b"abc\n")
        client.shutdown(1)
        assert read_to_end(client) == b"cba\n"
    assert server.stop() == 0
