"""The command line in this process: exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from prefork import __version__
from prefork.cli.app import run_command
from prefork.control.messages import Identity, Request
from prefork.control.server import Reply
from tests.unit.cli.test_render import BUSY
from tests.unit.room import Room

STATUS = msgspec.to_builtins(BUSY)
GOOD = '[pool.web]\nlisten = ["127.0.0.1:0"]\nworkers = 3\nwsgi = "prefork.examples.hello:app"\n'

Captured = pytest.CaptureFixture[str]


def serve(room: Room, answer: Callable[[Request, Reply], Any]) -> str:
    room.answer = answer
    room.start()
    return room.path


def identify(file: str) -> dict[str, Any]:
    """What a server of that file says to the question which one it is; it does for any other answer as well."""
    return msgspec.to_builtins(Identity("server", 1, "1", file, file, "running", 1, 1.0))


def write(folder: str, text: str) -> str:
    path = f"{folder}/server.toml"
    with open(path, "w") as file:
        file.write(text)
    return path


def test_the_version_is_data(capsys: Captured) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr() == (f"prefork {__version__}\n", "")


def test_no_command_is_a_usage_error_that_shows_the_help(capsys: Captured) -> None:
    assert run_command([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: prefork" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stauts", "x"], "No such command 'stauts'"),
        (["status"], "Missing argument 'TARGET'"),
        (["run", "--fast", "x"], "No such option"),
        (["scale", "x", "web", "many"], "Invalid value for 'N'"),
        (["scale", "x", "web", "--", "-1"], "Invalid value for 'N'"),
        (["status", "x.sock", "--set", "a=1"], "--set changes a TOML file's values"),
    ],
)
def test_a_command_line_that_makes_no_sense_exits_2_in_two_lines(
    arguments: list[str], message: str, capsys: Captured
) -> None:
    assert run_command(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")


def test_every_command_has_a_summary_that_is_not_cut_off(capsys: Captured) -> None:
    assert run_command(["--help"]) == 0
    out = capsys.readouterr().out
    commands = [line.split()[0] for line in out.split("Commands:\n")[1].splitlines()]
    assert (
        " ".join(commands)
        == "run check init schema list status reload restart upgrade scale signal stop reopen stacks"
    )
    assert "..." not in out.split("Commands:")[1]


@pytest.mark.parametrize(
    "arguments", [["status"], ["reload"], ["upgrade"], ["stop"], ["reopen"], ["stacks"], ["status", "--json"]]
)
def test_a_target_without_a_server_is_a_failure_with_a_hint(
    folder: str, arguments: list[str], capsys: Captured
) -> None:
    assert run_command([*arguments, f"{folder}/x.sock"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: no server listens on {folder}/x.sock\nhint: prefork run CONF starts one\n"


def test_status_prints_tables_without_colours_into_a_pipe(room: Room, capsys: Captured) -> None:
    path = serve(room, lambda _request, reply: reply.result(STATUS))
    assert run_command(["status", path]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("shop is running: generation 3")
    assert "\x1b" not in out
    assert err == ""


def test_status_json_is_the_servers_answer(room: Room, capsys: Captured) -> None:
    told = STATUS | {"new": {"of": "a later version"}}
    path = serve(room, lambda _request, reply: reply.result(told))
    assert run_command(["status", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told


def test_a_status_of_another_version_is_an_error_not_a_traceback(room: Room, capsys: Captured) -> None:
    path = serve(room, lambda _request, reply: reply.result({"name": "shop"}))
    assert run_command(["status", path]) == 1
    assert "hint: it may run another version of prefork" in capsys.readouterr().err


def test_reload_shows_progress_and_end_as_messages(room: Room, capsys: Captured) -> None:
    def answer(_request: Request, reply: Reply) -> None:
        reply.progress("web: 1 of 1 workers of generation 4 ready")
        reply.result({"generation": 4, "seconds": 1.2})

    assert run_command(["reload", serve(room, answer)]) == 0
    assert capsys.readouterr() == (
        "",
        "web: 1 of 1 workers of generation 4 ready\nreloaded: generation 4 serves, after 1.2 s\n",
    )


def test_a_failed_reload_exits_1_with_the_workers_traceback(room: Room, capsys: Captured) -> None:
    traceback = 'Traceback (most recent call last):\n  File "app.py"\nZeroDivisionError: x\n'
    path = serve(room, lambda _request, reply: reply.error("web: no new worker got ready", None, traceback))
    assert run_command(["reload", path]) == 1
    assert capsys.readouterr() == ("", f"{traceback}error: web: no new worker got ready\n")


def test_each_problem_that_the_server_found_gets_its_own_error_and_hint(room: Room, capsys: Captured) -> None:
    path = serve(
        room, lambda _request, reply: reply.error("a.toml:1: bad\nhint: write good\na.toml:2: worse")
    )
    assert run_command(["reload", path]) == 1
    assert capsys.readouterr().err == "error: a.toml:1: bad\nhint: write good\nerror: a.toml:2: worse\n"


def test_arguments_arrive_at_the_server(room: Room, capsys: Captured) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    rollout = {"generation": 2, "seconds": 1.5}
    answers: dict[str, dict[str, Any]] = {
        "scale": {"pool": "web", "workers": 7, "ready": 7, "stopped": False},
        "reload": rollout,
        "restart": rollout,
        "signal": {"pool": "cron", "signal": "SIGUSR1", "programs": 1},
    }

    def answer(request: Request, reply: Reply) -> None:
        asked.append((request.command, request.arguments))
        reply.result(answers.get(request.command, {"workers": []}))

    path = serve(room, answer)
    assert run_command(["scale", path, "web", "7"]) == 0
    assert run_command(["stacks", path]) == 0
    assert run_command(["stacks", path, "web/2"]) == 0
    assert run_command(["reopen", path]) == 0
    assert run_command(["reload", path, "web", "api"]) == 0
    assert run_command(["restart", path, "web"]) == 0
    assert run_command(["signal", path, "cron", "USR1"]) == 0
    assert asked == [
        ("scale", {"pool": "web", "workers": 7}),
        ("stacks", {"worker": None}),
        ("stacks", {"worker": "web/2"}),
        ("reopen", {}),
        ("reload", {"pools": ["web", "api"]}),
        ("restart", {"pool": "web"}),
        ("signal", {"pool": "cron", "signal": "USR1"}),
    ]
    assert capsys.readouterr().err.splitlines() == [
        "web: 7 of 7 workers ready",
        "log reopened",
        "reloaded: generation 2 serves, after 1.5 s",
        "restarted web: generation 2, after 1.5 s",
        "cron: sent SIGUSR1 to 1 program",
    ]


def test_interrupting_a_waiting_client_exits_130_quietly(room: Room, capsys: Captured) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), 2)

    assert run_command(["reload", serve(room, interrupt)]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_missing_file_is_a_configuration_error(folder: str, capsys: Captured) -> None:
    for command in ("run", "check", "status"):
        assert run_command([command, f"{folder}/none.toml"]) == 2
        assert capsys.readouterr().err == (
            f"error: cannot read {folder}/none.toml: No such file or directory\n"
            "hint: prefork init writes a first one\n"
        )


def test_check_prints_all_problems_and_exits_2(folder: str, capsys: Captured) -> None:
    path = write(folder, GOOD.replace("workers = 3", 'workers = "four"\nwokers = 4'))
    assert run_command(["check", path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [
        f'error: {path}:3: [pool.web] workers: expected a whole number or "auto", found "four"',
        f'error: {path}:4: [pool.web]: expected a known key, found "wokers"',
    ]
    assert "hint: did you mean workers?" in err


STOP = "a stop takes at most 31.5 s: TimeoutStopSec and terminationGracePeriodSeconds have to be longer"


def test_check_says_that_all_is_well(folder: str, capsys: Captured) -> None:
    assert run_command(["check", path := write(folder, GOOD), "--set", "pool.web.workers=5"]) == 0
    assert capsys.readouterr() == (f"{path}: all is well: 1 pool, 5 workers\n{STOP}\n", "")


def test_check_shows_the_traceback_of_an_application_that_does_not_load(
    folder: str, capsys: Captured
) -> None:
    path = write(folder, GOOD.replace("prefork.examples.hello:app", "prefork.examples.nothing:app"))
    assert run_command(["check", path]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "ModuleNotFoundError: No module named 'prefork.examples.nothing'" in err
    assert "error: " in err


def test_the_toml_file_leads_to_its_server(folder: str, capsys: Captured) -> None:
    room = Room(f"{folder}/server.sock")
    path = write(folder, f'{GOOD}[master]\ncontrol = "{room.path}"\n')
    serve(room, lambda _request, reply: reply.result(identify(path)))
    assert run_command(["reopen", path]) == 0
    room.close()
    assert capsys.readouterr().err == "log reopened\n"


@pytest.mark.parametrize("mistake", ["wokers = 4\n", "workers = \n", "[[[\n"])
def test_a_mistake_elsewhere_in_the_file_does_not_hide_its_server(
    folder: str, mistake: str, capsys: Captured
) -> None:
    room = Room(f"{folder}/server.sock")
    path = write(folder, f'[master]\ncontrol = "{room.path}"\n{GOOD}{mistake}')
    serve(room, lambda _request, reply: reply.result(identify(path)))
    assert run_command(["reopen", path]) == 0
    room.close()


def test_a_mistake_in_the_master_table_is_reported(folder: str, capsys: Captured) -> None:
    path = write(folder, f"[master]\ncontrol = 3\n{GOOD}wokers = 3\n")
    assert run_command(["reopen", path]) == 2
    err = capsys.readouterr().err
    assert "[master] control" in err
    assert "wokers" in err, "all problems, not only those of the table that was needed"


ESCAPES = "\x1b]0;owned\x07\x9b31m\u202e"
SHOWN = "\\x1b]0;owned\\x07\\x9b31m\\u202e"


def test_what_a_worker_says_does_not_reach_the_terminal_as_it_is(room: Room, capsys: Captured) -> None:
    def answer(request: Request, reply: Reply) -> None:
        if request.command == "stacks":
            reply.result(
                {"workers": [{"worker": "web/0", "generation": 1, "pid": 1, "stack": f"a\n\tb{ESCAPES}"}]}
            )
        else:
            reply.progress(ESCAPES)
            reply.error(f"web: {ESCAPES}", None, f"Traceback\n  {ESCAPES}")

    path = serve(room, answer)
    assert run_command(["stacks", path]) == 0
    assert capsys.readouterr().out == f"web/0 gen=1 pid=1\na\n        b{SHOWN}\n"
    assert run_command(["reload", path]) == 1
    assert capsys.readouterr().err == f"{SHOWN}\nTraceback\n  {SHOWN}\nerror: web: {SHOWN}\n"


def test_json_is_no_way_around_that(room: Room, capsys: Captured) -> None:
    path = serve(room, lambda _request, reply: reply.result({"name": f"é{ESCAPES}\U000e0001"}))
    assert run_command(["status", path, "--json"]) == 0
    out = capsys.readouterr().out
    assert "é" in out
    assert all(sign.isprintable() or sign == "\n" for sign in out)
    assert json.loads(out) == {"name": f"é{ESCAPES}\U000e0001"}


def test_a_scale_that_meets_an_upgrade_is_asked_for_again(room: Room, capsys: Captured) -> None:
    asked: list[object] = []

    def answer(request: Request, reply: Reply) -> None:
        if request.command == "scale":
            asked.append(request.arguments)
        if len(asked) == 1:
            reply.error("the server was upgraded in the meantime", "ask again", again=True)
        else:
            reply.result({"pool": "web", "workers": 3, "ready": 3, "stopped": False})

    assert run_command(["scale", serve(room, answer), "web", "3"]) == 0
    assert capsys.readouterr().err == "web: 3 of 3 workers ready\n"
    assert asked == [{"pool": "web", "workers": 3}] * 2


def test_a_question_that_meets_an_upgrade_is_asked_again(room: Room, capsys: Captured) -> None:
    answers = iter([None, None, {"workers": []}])

    def answer(_request: Request, reply: Reply) -> None:
        result = next(answers)
        if result is None:
            reply.error("the server was upgraded in the meantime", "ask again", again=True)
        else:
            reply.result(result)

    assert run_command(["stacks", serve(room, answer)]) == 0


def test_init_writes_a_server_that_passes_check(folder: str, capsys: Captured) -> None:
    assert run_command(["init", f"{folder}/new/shop"]) == 0
    assert sorted(os.listdir(f"{folder}/new/shop")) == ["app.py", "server.toml"]
    out, err = capsys.readouterr()
    assert out == ""
    assert f"hint: prefork run {folder}/new/shop/server.toml" in err


def test_init_never_overwrites_and_then_writes_nothing(folder: str, capsys: Captured) -> None:
    with open(f"{folder}/app.py", "w") as file:
        file.write("mine")
    assert run_command(["init", folder]) == 1
    assert os.listdir(folder) == ["app.py"]
    with open(f"{folder}/app.py") as file:
        assert file.read() == "mine"
    assert f"error: {folder}/app.py exists already" in capsys.readouterr().err


def test_schema_is_json(capsys: Captured) -> None:
    assert run_command(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == "object"
