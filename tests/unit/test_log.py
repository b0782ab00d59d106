"""What a record looks like, and what becomes of it where there is no room."""

from __future__ import annotations

import errno
import json
import logging
import logging.config
import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefork.errors import ListenError
from prefork.log import (
    Destination,
    Identity,
    JsonFormatter,
    TextFormatter,
    close_file,
    logger,
    open_file,
    open_outlets,
    write_nowait,
)

OWN = Identity("master", 4700)
WORKER = Identity("web/2", 4711, 3)


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("prefork", logging.WARNING, __file__, 1, message, arguments, None)
    made.created = 1795366800.123
    made.__dict__.update(extra)
    return made


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def fill(writing: int) -> int:
    """Write until there is no room, and return how much it took."""
    os.set_blocking(writing, False)
    size = 0
    try:
        while True:
            size += os.write(writing, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writing, True)
        return size


def drain(reading: int) -> bytes:
    """Read all that is there."""
    os.set_blocking(reading, False)
    data = b""
    try:
        while more := os.read(reading, 65536):
            data += more
    except BlockingIOError:
        pass
    return data


class TestText:
    def test_a_line_says_when_how_bad_who_and_what(self) -> None:
        line = TextFormatter(OWN).format(record("ready in %.2f s", 0.414, identity=WORKER))
        assert line == "2026-11-22T17:00:00.123Z warning web/2 gen=3 pid=4711 ready in 0.41 s"

    def test_who_writes_is_who_it_is_about_unless_said(self) -> None:
        assert " master pid=4700 hello" in TextFormatter(OWN).format(record("hello"))

    def test_further_lines_are_indented_and_control_characters_are_shown(self) -> None:
        line = TextFormatter(OWN).format(record("one\ntwo \x1b[31m\r"))
        assert line.endswith("one\n    two \\x1b[31m\\r")


class TestJson:
    def test_a_line_is_one_object_with_the_figures_that_came_along(self) -> None:
        line = JsonFormatter(OWN).format(record("two\nlines", identity=WORKER, figures={"age": 1.5}))
        assert "\n" not in line
        assert json.loads(line) == {
            "time": "2026-11-22T17:00:00.123Z",
            "level": "warning",
            "name": "web/2",
            "generation": 3,
            "pid": 4711,
            "message": "two\nlines",
            "age": 1.5,
        }


class TestWriting:
    def test_a_record_longer_than_the_pipes_atom_is_written_whole(self, pipe: tuple[int, int]) -> None:
        reading, writing = pipe
        data = b"x" * (3 * select.PIPE_BUF + 1)
        assert write_nowait(writing, data) == len(data)
        assert os.read(reading, 65536) == data

    def test_a_full_pipe_takes_nothing_and_nobody_waits(self, pipe: tuple[int, int]) -> None:
        fill(pipe[1])
        assert write_nowait(pipe[1], b"a line\n") == 0

    def test_a_pipe_with_room_for_a_part_takes_that_part(self, pipe: tuple[int, int]) -> None:
        reading, writing = pipe
        fill(writing)
        os.read(reading, select.PIPE_BUF)
        assert write_nowait(writing, bytes(2 * select.PIPE_BUF)) == select.PIPE_BUF

    def test_a_reader_that_left_and_a_full_disk_are_no_errors(self) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        assert write_nowait(writing, b"a line\n") == 0
        os.close(writing)
        if os.path.exists("/dev/full"):
            full = open_file("/dev/full")
            assert write_nowait(full, b"a line\n") == 0
            close_file(full)


class TestDestination:
    def test_what_was_lost_is_counted_and_told_first_on_a_line_of_its_own(
        self, pipe: tuple[int, int]
    ) -> None:
        reading, writing = pipe
        destination = Destination(writing)
        destination.setFormatter(TextFormatter(OWN))
        fill(writing)
        os.read(reading, select.PIPE_BUF)
        destination.emit(record("y" * 2 * select.PIPE_BUF))  # a part of it is written
        destination.emit(record("lost as well"))
        assert destination.lost == 2
        drain(reading)
        destination.emit(record("there is room again"))
        end_of_torn, notice, line = drain(reading).decode().splitlines()
        assert end_of_torn == ""
        assert notice.endswith("2 records of this log were lost: its destination was full or gone")
        assert line.endswith("there is room again")

    def test_the_count_of_losses_is_a_record_as_every_other(self, pipe: tuple[int, int]) -> None:
        reading, writing = pipe
        destination = Destination(writing)
        destination.setFormatter(JsonFormatter(OWN))
        destination.lost = 3
        destination.emit(record("after"))
        notice, after = (json.loads(line) for line in os.read(reading, 65536).splitlines())
        assert notice["message"] == "3 records of this log were lost: its destination was full or gone"
        assert after["message"] == "after"
        assert destination.lost == 0

    def test_another_descriptor_takes_over_and_the_old_one_is_closed(self, pipe: tuple[int, int]) -> None:
        reading, old = os.pipe()
        destination = Destination(old)
        destination.setFormatter(TextFormatter(OWN))
        destination.reopen(os.dup(pipe[1]))
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(old)
        destination.emit(record("to the new one"))
        assert b"to the new one" in os.read(pipe[0], 4096)
        os.close(reading)
        close_file(destination.descriptor)


def test_a_log_file_that_cannot_be_opened_is_said_with_its_path_and_reason() -> None:
    with pytest.raises(ListenError, match=r"cannot open the log file /dev/null/x: "):
        open_file("/dev/null/x")


def test_no_configuration_of_logging_by_an_application_reaches_the_log(pipe):
    reading, writing = pipe
    before = logger.handlers[:]
    logger.addHandler(Destination(writing))
    try:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})
        logging.disable(logging.CRITICAL)
        logger.error("still there")
    finally:
        logging.disable(logging.NOTSET)
        logger.handlers[:] = before
    assert b"still there" in os.read(reading, 4096)


class TestFoldersOfOthers:
    """A log in a folder that others can write to: they can put links and FIFOs in its place."""

    @pytest.fixture
    def theirs(self, tmp_path: Path) -> Path:
        folder = tmp_path / "theirs"
        folder.mkdir()
        folder.chmod(0o777)
        return folder

    @pytest.fixture
    def precious(self, tmp_path: Path) -> Path:
        file = tmp_path / "precious"
        file.write_text("precious")
        return file

    @pytest.mark.parametrize("outlets", [("log", "off"), ("-", "log")])
    def test_a_link_is_refused(self, theirs: Path, precious: Path, outlets: tuple[str, str]) -> None:
        (theirs / "log").symlink_to(precious)
        with pytest.raises(ListenError, match="it is a symbolic link, in a folder that others can write to"):
            open_outlets(*(str(theirs / name) if name == "log" else name for name in outlets))

    def test_a_link_to_nowhere_makes_no_file(self, theirs: Path, tmp_path: Path) -> None:
        (theirs / "log").symlink_to(tmp_path / "new")
        with pytest.raises(ListenError, match="symbolic link"):
            open_file(str(theirs / "log"))
        assert not (tmp_path / "new").exists()

    def test_a_file_with_another_name_is_refused(self, theirs: Path, precious: Path) -> None:
        (theirs / "log").hardlink_to(precious)
        with pytest.raises(ListenError, match="it has 2 names, in a folder that others can write to"):
            open_file(str(theirs / "log"))

    def test_a_link_of_ours_to_a_link_of_theirs_is_refused(self, theirs: Path, precious: Path) -> None:
        (theirs / "log").symlink_to(precious)
        (theirs.parent / "log").symlink_to("theirs/log")
        with pytest.raises(ListenError, match="symbolic link"):
            open_file(str(theirs.parent / "log"))

    def test_links_in_folders_of_ours_are_followed(self, tmp_path: Path) -> None:
        (tmp_path / "logs").mkdir()
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("logs/c")
        close_file(open_file(str(tmp_path / "a")))
        assert (tmp_path / "logs" / "c").exists()

    def test_links_in_a_ring_end_somewhere(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(ListenError, match="cannot open the log file"):
            open_file(str(tmp_path / "a"))

    def test_a_fifo_without_a_reader_hangs_nobody(self, theirs: Path) -> None:
        os.mkfifo(theirs / "log")
        descriptor = open_file(str(theirs / "log"))
        assert stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        assert (
            write_nowait(descriptor, b"x" * 200000) < 200000
        )  # what finds no room is lost, and nobody waits
        close_file(descriptor)

    @pytest.mark.parametrize("name", ["/dev/null", "/dev/stderr", "/dev/full"])
    def test_devices_are_opened_as_ever(self, name: str) -> None:
        close_file(open_file(name))
