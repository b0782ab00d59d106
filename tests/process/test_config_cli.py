"""Commands on files: check changes nothing, what init writes runs, schema says what the files use (promise 21)."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.harness import APPS, PREFORK, body_of

CONF = Path(__file__).parents[2] / "conf"
WEB = '[pool.web]\nlisten = ["127.0.0.1:0"]\nwsgi = "boots:routes"\n'


def prefork(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would, in a folder."""
    return subprocess.run(
        [*PREFORK, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{APPS}{os.pathsep}{folder}", "NO_COLOR": "1", **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def check(folder: Path, config: str, **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "checked.toml").write_text(config)
    return prefork(folder, "check", "checked.toml", **env)


def test_check_says_that_all_is_well(tmp_path):
    found = check(tmp_path, WEB + "workers = 3\n")
    assert (found.returncode, found.stderr) == (0, "")
    verdict, stop = found.stdout.splitlines()
    assert verdict == "checked.toml: all is well: 1 pool, 3 workers"
    assert stop.startswith("a stop takes at most 31.5 s")


def test_check_shows_the_traceback_of_an_application_that_does_not_load(tmp_path):
    found = check(tmp_path, WEB, BOOT="raise")
    assert found.returncode == 4
    assert found.stderr.count("Traceback") == 1
    assert "error: [pool.web] RuntimeError: the boot went wrong on purpose" in found.stderr
    assert found.stdout == ""


def test_check_gives_an_import_that_never_ends_up_at_boot_timeout(tmp_path):
    found = check(tmp_path, WEB + "boot_timeout = 0.3\n", BOOT="hang")
    assert found.returncode == 4
    assert "not loaded after 0.3 s" in found.stderr


def test_check_tells_of_an_application_that_leaves(tmp_path):
    (tmp_path / "own.py").write_text("import os\nos._exit(9)\n")
    found = check(tmp_path, WEB.replace("boots:routes", "own:app"))
    assert found.returncode == 4
    assert "exit code 9" in found.stderr


def test_check_tells_all_mistakes_of_a_file_at_once_with_their_lines(tmp_path):
    found = check(tmp_path, WEB + 'wokers = 2\ngraceful_timeout = "soon"\n')
    assert found.returncode == 2
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert [error.split(": ")[1] for error in errors] == ["checked.toml:4", "checked.toml:5"]


def test_check_leaves_the_running_server_of_the_same_file_alone(start):
    config = WEB.replace("127.0.0.1:0", "unix:web.sock")
    server = start(config).wait_serving()
    before, lines = server.pids(), server.mark()
    found = server.run("check")
    assert found.returncode == 0, found.stderr
    assert server.pids() == before
    assert server.mark() == lines
    assert (server.folder / "web.sock").exists()
    assert (server.folder / "control.sock").exists()


def test_what_init_writes_runs_as_it_is_and_is_never_overwritten(tmp_path, start):
    folder = tmp_path / "mine"
    written = prefork(tmp_path, "init", "mine")
    assert written.returncode == 0, written.stderr
    assert "hint: prefork run mine/server.toml" in written.stderr
    assert prefork(folder, "check", "server.toml").returncode == 0
    again = prefork(tmp_path, "init", "mine")
    assert again.returncode == 1
    assert "exists already; nothing was written" in again.stderr
    config = (folder / "server.toml").read_text()
    listen = ["--set", 'pool.web.listen=["127.0.0.1:0"]', "--set", f"master.control={folder}/control.sock"]
    server = start(config, *listen, folder=folder).wait_serving()
    assert server.get().startswith(b"HTTP/1.1 200 OK")
    assert body_of(server.get())


def test_the_schema_is_json_and_knows_every_key_of_the_files_to_start_from(tmp_path):
    printed = prefork(tmp_path, "schema")
    assert (printed.returncode, printed.stderr) == (0, "")
    schema = json.loads(printed.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    for file in CONF.glob("*.toml"):
        assert misfits(tomllib.loads(file.read_text()), schema) == [], file


def misfits(value, schema, path="") -> list[str]:
    """Return where a value does not conform, by the few words of JSON Schema that ours is written in."""
    if "anyOf" in schema:
        tried = [misfits(value, choice, path) for choice in schema["anyOf"]]
        return [] if [] in tried else tried[0]
    if "enum" in schema or "const" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [path]
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
    }
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        return [path]
    found = []
    if isinstance(value, dict):
        found += [f"{path}.{key} is missing" for key in schema.get("required", []) if key not in value]
        patterns = list(schema.get("patternProperties", {}).values())
        for key, item in value.items():
            rest = [*patterns, schema["additionalProperties"]]
            chosen = schema.get("properties", {}).get(key, rest[0])
            found += [f"{path}.{key}"] if chosen is False else misfits(item, chosen, f"{path}.{key}")
    if isinstance(value, list):
        found += [place for item in value for place in misfits(item, schema["items"], f"{path}[]")]
    return found


def test_the_schema_refuses_what_prefork_refuses(tmp_path):
    schema = json.loads(prefork(tmp_path, "schema").stdout)
    wrong = {"pool": {"web": {"wsgi": "a:b", "wokers": 2, "threads": "four"}}}
    assert misfits(wrong, schema) == [".pool.web.wokers", ".pool.web.threads"]


COMMANDS = [["status"], ["reload"], ["scale", "web", "2"], ["stop"], ["reopen"], ["stacks"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_command_for_a_server_that_is_not_there_says_so(tmp_path, command):
    (tmp_path / "server.toml").write_text(f'[master]\ncontrol = "{tmp_path}/none.sock"\n{WEB}')
    verb, *rest = command
    found = prefork(tmp_path, verb, "server.toml", *rest)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.splitlines() == [
        f"error: no server listens on {tmp_path}/none.sock",
        "hint: prefork run CONF starts one",
    ]


def test_a_setting_that_would_have_no_effect_on_a_running_server_is_refused(start):
    server = start(WEB).wait_serving()
    result = server.run("reload", "--set", "pool.web.workers=3")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --set pool.web.workers=3: ")
    assert server.run("status", "--set", f"master.control={server.control}").returncode == 0


def test_a_reader_of_stdout_that_has_left_is_no_news():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*PREFORK, "schema"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
