"""A command reaches the server of its file, wherever it is started and by whatever name, and no other server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from tests.harness import PATIENCE, PREFORK, Server, wait_until

CONF = '[master]\numask = "0022"\n[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "prefork.examples.hello:app"\n'


def command(*arguments, cwd="/", **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFORK")}
    return subprocess.run(
        [*PREFORK, *map(str, arguments)],
        cwd=cwd,
        env=kept | {"NO_COLOR": "1", "PWD": str(cwd)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def listed():
    """The servers that prefork list shows, by their files."""
    return {server["file"]: server for server in json.loads(command("list", "--json").stdout)}


def start_two(start, tmp_path):
    servers = []
    for name in ("blue", "green"):
        folder = tmp_path / name
        folder.mkdir()
        servers.append(start(CONF, folder=folder).wait_serving())
    return servers


def test_two_servers_of_files_of_one_name_are_not_mixed_up(start, tmp_path):
    blue, green = start_two(start, tmp_path)
    ran = command("stop", "server.toml", cwd=tmp_path / "green", XDG_RUNTIME_DIR=str(tmp_path))
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (0, "stopped")
    assert green.wait_exit() == 0
    assert str(blue.file) in listed()
    assert str(green.file) not in listed()
    ran = command("stop", green.file)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: no server runs {green.file}\n")
    assert command("status", blue.file).returncode == 0
    assert command("status", "server", cwd=tmp_path).returncode in (0, 2), "others may run here, too"


def test_the_list_shows_a_server_until_it_ends(start, tmp_path):
    server = start(CONF.replace("umask", 'name = "shop"\numask')).wait_serving()
    found = listed()[str(server.file)]
    assert (found["name"], found["state"], found["generation"]) == ("shop", "running", 1)
    assert found["pid"] == server.process.pid
    assert os.path.exists(found["control"])
    assert any(str(server.process.pid) in line for line in command("list").stdout.splitlines())
    assert server.stop() == 0
    assert str(server.file) not in listed()
    assert not os.path.exists(found["control"])


def test_a_link_finds_the_server_that_was_started_by_it_after_it_was_switched(start, tmp_path):
    current = tmp_path / "current"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "server.toml").write_text(CONF)
    current.symlink_to("one")
    server = start(CONF, folder=tmp_path / "one", command=[*PREFORK, "run", f"{current}/server.toml"])
    server.wait_serving()
    current.unlink()
    current.symlink_to("two")
    assert command("reload", current / "server.toml").returncode == 0
    assert listed()[f"{current}/server.toml"]["real"] == f"{os.path.realpath(tmp_path)}/two/server.toml"
    assert command("status", tmp_path / "two" / "server.toml").returncode == 0
    assert command("status", tmp_path / "one" / "server.toml").returncode == 1


def test_hup_brings_back_a_control_socket_that_was_deleted(start, tmp_path):
    server = start(CONF).wait_serving()
    control = listed()[str(server.file)]["control"]
    os.unlink(control)
    ran = command("status", server.file)
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        f"error: the control socket {control} of server is gone",
        f"hint: kill -HUP {server.process.pid} reloads that server and brings the socket back",
    ]
    server.signal(signal.SIGHUP)
    server.wait_serving(2)
    assert command("status", server.file).returncode == 0


def test_a_server_killed_by_force_is_forgotten_and_can_be_started_again(start, tmp_path):
    server = start(CONF).wait_serving()
    server.signal(signal.SIGKILL)
    server.wait_exit()
    assert str(server.file) not in listed()
    again = start(CONF).wait_serving()
    assert listed()[str(again.file)]["pid"] == again.process.pid


def test_a_file_with_mistakes_and_a_deleted_file_still_lead_to_their_server(start, tmp_path):
    server = start(CONF).wait_serving()
    server.file.write_text("[[[")
    assert command("status", server.file).returncode == 0
    server.file.unlink()
    assert command("stop", server.file).returncode == 0
    assert server.wait_exit() == 0


def test_an_upgraded_server_is_found_as_before(start, tmp_path):
    server = start(CONF).wait_serving()
    assert command("upgrade", server.file).returncode == 0
    assert listed()[str(server.file)]["state"] == "running"
    assert command("stop", server.file).returncode == 0
    assert str(server.file) not in listed()


def test_relative_paths_start_at_the_files_folder_and_workers_where_the_command_was_started(start, tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    text = '[master]\ncontrol = "run/c.sock"\npid_file = "run/x.pid"\n[pool.web]\nlisten = ["unix:run/web.sock"]\nwsgi = "prefork.examples.hello:app"\n'
    (folder / "server.toml").write_text(text)
    server = start(
        text,
        folder=folder,
        command=["sh", "-c", 'cd / && exec "$@"', "sh", *PREFORK, "run", str(folder / "server.toml")],
    )
    server.wait_serving()
    assert sorted(os.listdir(folder / "run")) == ["c.sock", "web.sock", "x.pid"]
    (worker,) = json.loads(command("status", server.file, "--json").stdout)["pools"][0]["workers"]
    assert os.readlink(f"/proc/{worker['pid']}/cwd") == "/"


def test_a_command_for_a_halted_server_says_that_it_does_not_answer(start: object, tmp_path) -> None:
    server: Server = start(CONF).wait_serving()
    server.signal(signal.SIGSTOP)
    stat = Path(f"/proc/{server.process.pid}/stat")
    wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it halts")
    ran = command("reload", server.file)
    assert ran.returncode == 1
    assert "did not answer within 10 s\nhint: its process may be stopped (SIGSTOP)" in ran.stderr
    server.signal(signal.SIGCONT)
    assert command("status", server.file).returncode == 0
