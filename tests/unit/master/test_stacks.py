"""What is left of a worker's stacks for people."""

from __future__ import annotations

from prefork.master.stacks import PACKAGE, readable

THREADING = "/usr/lib/python3.11/threading.py"


def thread(*frames: str, current: bool = False) -> str:
    """As faulthandler writes it; a frame is ``FILE FUNCTION``, and % stands for the package."""
    head = f"{'Current thread' if current else 'Thread'} 0x00007f81 (most recent call first):\n"
    lines = [frame.replace("%", PACKAGE).rsplit(" ", 1) for frame in frames]
    return head + "".join(f'  File "{file}", line 7 in {function}\n' for file, function in lines)


STARTED = (f"{THREADING} run", f"{THREADING} _bootstrap_inner", f"{THREADING} _bootstrap")
FORKED = (
    "%/worker/main.py work",
    "%/master/perform.py <lambda>",
    "%/cli/app.py main",
    "/bin/prefork <module>",
)
ORDERS = thread("%/worker/orders.py _hear", *STARTED)


def frames(text: str) -> list[str]:
    """The functions that are shown."""
    return [line.rpartition(" in ")[2] for line in text.splitlines() if line.startswith("  File ")]


def test_the_users_code_is_shown_with_the_frame_that_called_it():
    stack = (
        "/app/own.py deeper",
        "/app/own.py handle",
        "%/worker/blocking.py _serve",
        "%/worker/blocking.py run",
    )
    assert frames(readable(thread(*stack, *FORKED))) == ["deeper", "handle", "_serve"]


def test_our_code_that_the_users_code_has_called_stays():
    stack = (
        "%/handlers/body.py read",
        "/app/own.py app",
        "%/handlers/wsgi.py call",
        "%/worker/evented.py run",
    )
    assert frames(readable(thread(*stack, *FORKED))) == ["read", "app", "call"]


def test_an_idle_loop_is_one_frame():
    stack = ("%/worker/evented.py _turn", "%/worker/evented.py run", "%/worker/evented.py serve")
    assert frames(readable(thread(*stack, *FORKED))) == ["_turn"]


def test_an_import_is_shown_without_its_machinery():
    machinery = ("<frozen importlib._bootstrap_external> exec_module", "<frozen importlib._bootstrap> _load")
    stack = ("/app/b.py <module>", *machinery, "/app/a.py <module>", *machinery, "%/handlers/load.py load")
    assert frames(readable(thread(*stack, "%/worker/main.py prepare", *FORKED))) == [
        "<module>",
        "<module>",
        "load",
    ]


def test_examples_are_the_users_code():
    stack = ("%/examples/echo.py handle", "%/worker/blocking.py _serve", "%/worker/blocking.py run")
    assert frames(readable(thread(*stack, *FORKED))) == ["handle", "_serve"]


def test_a_thread_is_shown_without_its_start():
    assert frames(readable(thread("/app/own.py work", *STARTED))) == ["work"]
    assert frames(readable(thread("%/worker/blocking.py _turn", "%/worker/blocking.py run", *STARTED))) == [
        "_turn"
    ]


def test_a_thread_that_waits_in_the_threading_module_still_shows_where():
    assert frames(readable(thread(f"{THREADING} wait", f"{THREADING} run", *STARTED))) == ["wait"]


def test_the_thread_that_hears_the_master_is_not_shown():
    text = ORDERS + "\n" + thread("/app/own.py handle", *FORKED, current=True)
    assert readable(text).count("most recent call first") == 1
    assert frames(readable(text)) == ["handle"]


def test_what_stands_around_the_threads_stays():
    crash = "Fatal Python error: Segmentation fault\n\n" + thread("/app/own.py handle", *FORKED, current=True)
    text = readable(crash + "\nExtension modules: a.b (total: 1)\n")
    assert text.startswith("Fatal Python error: Segmentation fault\n\nCurrent thread")
    assert text.endswith("Extension modules: a.b (total: 1)")


def test_a_thread_without_python_frames_stays_as_it_is():
    text = "Thread 0x00007f81 (most recent call first):\n  <no Python frame>"
    assert readable(text) == text


def test_what_is_no_stack_stays_as_it_is():
    assert readable("") == ""
    assert readable("Segmentation fault") == "Segmentation fault"
