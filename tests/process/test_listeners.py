"""Listening sockets, from their first bind through reloads to their end (promises 1, 29; fault 12)."""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import signal
import socket
import stat
import threading
import time

import pytest

from tests.clients import Load
from tests.harness import PATIENCE, Server, body_of, descriptors_of, fetch, wait_until

# The number of pidfd_getfd(2), the same on all kinds of machines.
PIDFD_GETFD = 438
POOL = '[pool.{name}]\nlisten = [{listen}]\nwsgi = "web:app"\n'


def pool(*listen: str, name: str = "web") -> str:
    """Return a pool's configuration; listeners that are tables are given as such."""
    written = ", ".join(address if address.startswith("{") else f'"{address}"' for address in listen)
    return POOL.format(name=name, listen=written)


def unix(path: str = "web.sock", **options: object) -> str:
    more = "".join(f", {key} = {value!r}" for key, value in options.items())
    return f'{{ address = "unix:{path}"{more} }}'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(address: tuple[str, int] | str) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        return client.connect_ex(address) == 0


def backlog_of(server: Server, number: int = 0) -> int:
    return server.pool()["listeners"][number]["backlog"]


def test_one_pool_serves_on_ipv4_ipv6_and_unix_sockets(start, tmp_path):
    server = start(pool("127.0.0.1:0", "[::1]:0", "unix:run/web.sock")).wait_serving()
    for address in (server.address(), server.address(number=1), str(tmp_path / "run" / "web.sock")):
        assert fetch(address).startswith(b"HTTP/1.1 200")
    server.wait_for(r"listening on \[::1\]:\d+ \(pool web\)")


def test_pools_have_their_own_listeners(start):
    other = pool("127.0.0.1:0", name="other").replace("web:app", "prefork.examples.hello:app")
    server = start(pool("127.0.0.1:0") + other).wait_serving()
    assert body_of(server.get(pool="other")).startswith(b"Hello from other/0")
    assert body_of(server.get(pool="web")).endswith(b" 0")


def test_the_backlog_is_the_kernels_limit_of_waiting_clients(start):
    server = start(pool('{ address = "127.0.0.1:0", backlog = 3 }')).wait_serving()
    address = server.address()
    for pid in server.pids():
        os.kill(pid, signal.SIGSTOP)
    clients = []
    for _ in range(8):
        clients.append(socket.socket())
        clients[-1].setblocking(False)
        clients[-1].connect_ex(address)
    wait_until(
        lambda: server.pool()["listeners"][0]["queue"] == 4, "the queue is full: one more than the backlog"
    )
    for client in clients:
        client.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_a_unix_socket_has_its_mode_owner_and_group(start, tmp_path):
    server = start(pool(unix(mode="0620", owner="games", group="daemon"))).wait_serving()
    found = (tmp_path / "web.sock").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (
        0o620,
        pwd.getpwnam("games").pw_uid,
        1,
    )
    server.write(pool(unix(mode="0666", owner="root", group="root")))
    server.ask("reload")
    found = (tmp_path / "web.sock").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o666, 0, 0)
    assert fetch(str(tmp_path / "web.sock"))


def test_a_stale_unix_socket_is_replaced(start, tmp_path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "web.sock"))
    start(pool("unix:web.sock")).wait_serving()
    assert fetch(str(tmp_path / "web.sock")).startswith(b"HTTP/1.1 200")


def test_a_unix_socket_that_is_listened_on_is_refused_and_unharmed(start, tmp_path):
    path = tmp_path / "web.sock"
    first = start(pool(f"unix:{path}")).wait_serving()
    second = start(pool(f"unix:{path}"), folder=tmp_path / "second")
    assert second.wait_exit() == 3
    assert f"error: cannot listen on unix:{path}: a running server listens there" in second.everything()
    assert fetch(str(path)).startswith(b"HTTP/1.1 200")
    assert first.stop() == 0
    assert not path.exists()


def test_a_unix_socket_whose_queue_is_full_is_a_living_one(start, tmp_path):
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        server = start(pool(f"unix:{path}"))
        assert server.wait_exit() == 3
        assert path.exists()


def test_a_file_that_is_no_socket_is_refused_and_unharmed(start, tmp_path):
    (tmp_path / "web.sock").write_text("a letter")
    server = start(pool("unix:web.sock"))
    assert server.wait_exit() == 3
    assert (
        f"error: cannot listen on unix:{tmp_path}/web.sock: a file is there that is no socket"
        in server.everything()
    )
    assert (tmp_path / "web.sock").read_text() == "a letter"


@pytest.mark.parametrize("foreign", ["file", "socket"])
def test_only_the_servers_own_socket_is_unlinked_at_its_end(start, tmp_path, foreign):
    path = tmp_path / "web.sock"
    server = start(pool("unix:web.sock")).wait_serving()
    path.unlink()
    if foreign == "file":
        path.write_text("somebody else's")
    else:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert server.stop() == 0
    assert path.exists()


@pytest.fixture
def misses():
    """Give a function that watches a path, and returns the list to which each moment without a listener is added."""
    found: list[float] = []
    over = threading.Event()
    watchers: list[threading.Thread] = []

    def watch(path: str) -> list[float]:
        def look() -> None:
            while not over.is_set():
                if not os.path.exists(path):
                    found.append(time.monotonic())

        watchers.append(threading.Thread(target=look))
        watchers[0].start()
        return found

    yield watch
    over.set()
    for watcher in watchers:
        watcher.join()


def test_the_path_is_there_at_every_moment_of_a_reload(start, tmp_path, misses):
    path = str(tmp_path / "web.sock")
    server = start(pool("unix:web.sock")).wait_serving()
    inode, missed = os.stat(path).st_ino, misses(path)
    with Load(path) as load:
        for _ in range(3):
            load.wait_answered(10)
            server.ask("reload")
    assert not missed
    assert load.lost == {}, load.examples
    assert os.stat(path).st_ino == inode


# What a reload changes.


def test_a_reload_opens_new_listeners_and_closes_removed_ones_without_a_loss(start, tmp_path):
    first, second = free_port(), free_port()
    server = start(pool(f"127.0.0.1:{first}", "unix:old.sock")).wait_serving()
    old_path, new_path = str(tmp_path / "old.sock"), str(tmp_path / "new.sock")
    with Load(("127.0.0.1", first), pause=0.005) as leaving, Load(old_path, pause=0.005) as leaving_path:
        leaving.wait_answered(30)
        leaving_path.wait_answered(30)
        server.write(pool(f"127.0.0.1:{second}", "unix:new.sock"))
        server.ask("reload")
    for load in (leaving, leaving_path):
        assert set(load.lost) <= {"refused"}, (load.lost, load.examples)
    assert not listens(("127.0.0.1", first))
    assert not os.path.exists(old_path)
    for address in (("127.0.0.1", second), new_path):
        assert fetch(address).startswith(b"HTTP/1.1 200")
    assert [listener["address"] for listener in server.pool()["listeners"]] == [
        f"127.0.0.1:{second}",
        f"unix:{new_path}",
    ]


def test_a_reload_adds_and_removes_pools(start):
    server = start(pool("127.0.0.1:0") + pool("127.0.0.1:0", name="old")).wait_serving()
    old, kept = server.address("old"), server.pids("web")
    with Load(server.address("web")) as load, Load(old) as leaving:
        leaving.wait_answered(20)
        server.write(pool("127.0.0.1:0") + pool("127.0.0.1:0", name="new"))
        server.ask("reload")
        load.wait_answered(10)
    assert load.lost == {}, load.examples
    assert set(leaving.lost) <= {"refused"}, (leaving.lost, leaving.examples)
    assert [found["name"] for found in server.status()["pools"]] == ["web", "new"]
    assert not listens(old)
    assert server.get(pool="new")
    assert server.pids("web").isdisjoint(kept)


def test_an_address_moves_from_one_pool_to_another_without_a_loss(start):
    port = free_port()
    address = f"127.0.0.1:{port}"
    server = start(pool(address, name="one") + pool("127.0.0.1:0", name="two")).wait_serving()
    with Load(("127.0.0.1", port), pause=0.005) as load:
        load.wait_answered(30)
        server.write(pool("127.0.0.1:0", name="one") + pool(address, name="two"))
        server.ask("reload")
        load.wait_answered(30)
        two = server.pids("two")
        server.write(pool(address, name="two"))
        server.ask("reload")
        load.wait_answered(30)
    assert load.lost == {}, load.examples
    assert server.pids("two").isdisjoint(two)
    assert server.address("two")[1] == port


def test_a_changed_backlog_is_taken_over_on_the_same_socket(start):
    port = free_port()
    server = start(pool(f'{{ address = "127.0.0.1:{port}", backlog = 7 }}')).wait_serving()
    with Load(("127.0.0.1", port)) as load:
        server.write(pool(f'{{ address = "127.0.0.1:{port}", backlog = 99 }}'))
        server.ask("reload")
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    assert backlog_of(server) == 99
    assert server.log.count("listening on") == 1


def test_first_bytes_are_awaited_only_where_the_client_speaks_first(start):
    port = free_port()
    listen = f'[pool.web]\nlisten = ["127.0.0.1:{port}"]\n'
    web, own = listen + 'wsgi = "web:app"\n', listen + 'handler = "sockets:pid"\n'
    server = start(web).wait_serving()
    for content, awaited in ((own, 0), (web, 1), (own, 0)):
        assert deferral_of(server) != awaited
        server.write(content)
        server.ask("reload")
        assert deferral_of(server) == awaited
    # The new configuration does not get as far as to serve, so nothing changes.
    server.write(web.replace("web:app", "web:missing"))
    assert server.run("reload").returncode != 0
    assert deferral_of(server) == 0
    # A client who only connects is to wake the first worker.
    server.write(web + "[pool.web.scale]\nmin = 0\nmax = 2\n")
    server.ask("reload")
    assert deferral_of(server) == 0


def deferral_of(server: Server) -> int:
    """Return for how many seconds the server's TCP listener waits for first bytes."""
    (listener,) = tcp_listeners_of(server.process.pid)
    with listener:
        return listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)


def tcp_listeners_of(pid: int) -> list[socket.socket]:
    """Return copies of the listening sockets that another process holds."""
    libc, handle, found = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid), []
    for number, target in descriptors_of(pid).items():
        if target.startswith("socket:"):
            copy = libc.syscall(PIDFD_GETFD, handle, number, 0)
            if copy < 0:
                assert ctypes.get_errno() == errno.EBADF  # a connection that was closed since
                continue
            held = socket.socket(fileno=copy)
            if held.family == socket.AF_INET and held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.append(held)
            else:
                held.close()
    os.close(handle)
    return found


@pytest.mark.parametrize("where", ["port", "path"])
def test_an_occupied_new_listener_fails_the_reload_and_changes_nothing(start, tmp_path, where):
    server = start(pool("127.0.0.1:0")).wait_serving()
    before = server.pids()
    family = socket.AF_INET if where == "port" else socket.AF_UNIX
    with socket.socket(family) as other, Load(server.address()) as load:
        other.bind(("127.0.0.1", 0) if where == "port" else str(tmp_path / "other.sock"))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}" if where == "port" else "unix:other.sock"
        server.write(pool("127.0.0.1:0", f"unix:{tmp_path}/fine.sock", taken))
        reload = server.run("reload")
        assert reload.returncode == 1
        assert "error: cannot listen on" in reload.stderr
        mark = server.mark()
        server.signal(signal.SIGHUP)
        server.wait_for("the reload is refused", since=mark)
        load.wait_answered(20)
    assert load.lost == {}, load.examples
    assert server.pids() == before
    assert server.status()["generation"] == 1
    assert not (tmp_path / "fine.sock").exists()
    assert len(server.pool()["listeners"]) == 1


def test_a_generation_that_is_given_up_takes_its_listeners_along(start, tmp_path):
    server = start(pool("127.0.0.1:0")).wait_serving()
    server.write(pool("127.0.0.1:0", "unix:new.sock").replace("web:app", "no_such_module:app"))
    assert server.run("reload").returncode == 1
    assert not (tmp_path / "new.sock").exists()
    server.write(pool("127.0.0.1:0", "unix:new.sock"))
    server.ask("reload")
    assert fetch(str(tmp_path / "new.sock"))


def test_a_listener_that_comes_back_while_its_old_one_is_emptied_serves(start):
    """The doors of a removed listener are shut before it is closed; a reload that wants it again opens them."""
    port = free_port()
    both, one = pool("127.0.0.1:0", f"127.0.0.1:{port}"), pool("127.0.0.1:0")
    server = start(both).wait_serving()
    for _ in range(3):
        server.write(one)
        server.signal(signal.SIGHUP)
        server.wait_for("rolling out generation")
        server.write(both)
        server.ask("reload")
        assert fetch(("127.0.0.1", port)).startswith(b"HTTP/1.1 200")


def test_an_owner_that_this_machine_does_not_have_is_refused_before_anything_happens(start, tmp_path):
    plain = """
[pool.web]
listen = [{ address = "unix:web.sock", mode = "0660" }]
wsgi = "web:app"
"""
    server = start(plain).wait_serving()
    before = server.pids()
    server.write(
        plain.replace('mode = "0660"', 'group = "nosuchgroup"').replace("]\nwsgi", ', "unix:new.sock"]\nwsgi')
    )
    checked, reloaded = server.run("check"), server.run("reload")
    for result, code in ((checked, 2), (reloaded, 1)):
        assert result.returncode == code
        assert "[pool.web] listen: " in result.stderr
        assert "expected a group of this machine, found 'nosuchgroup'" in result.stderr
    mark = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_for("the reload is refused", since=mark)
    assert not any(line.endswith("None") for line in server.lines)
    assert server.pids() == before
    assert not (tmp_path / "new.sock").exists()


def test_a_unix_socket_whose_file_is_gone_is_bound_anew_by_a_reload(start, tmp_path):
    """A client in the queue of the old one is served, even if no old worker can do so."""
    path = tmp_path / "web.sock"
    server = start(pool(f"unix:{path}")).wait_serving()
    (old,) = server.pids()
    os.kill(old, signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as early:
        early.settimeout(PATIENCE)
        early.connect(str(path))
        early.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        path.unlink()
        server.signal(signal.SIGHUP)
        assert early.recv(100).startswith(b"HTTP/1.1 200")
    os.kill(old, signal.SIGCONT)
    server.wait_serving(2)
    for _ in range(3):
        assert fetch(str(path)).startswith(b"HTTP/1.1 200")
    assert len(server.pool()["listeners"]) == 1
    server.wait_for(r"web\.sock: its file is gone; putting another one there")
    assert server.stop() == 0
    assert not path.exists()


def test_a_refused_reload_leaves_a_lost_unix_socket_as_it_was(start, tmp_path):
    path = tmp_path / "web.sock"
    server = start(pool(f"unix:{path}", "127.0.0.1:0")).wait_serving()
    path.unlink()
    server.write(pool(f"unix:{path}", "127.0.0.1:0").replace("web:app", "no_such_module:app"))
    assert server.run("reload").returncode == 1
    assert not path.exists()  # no worker would accept there
    assert fetch(server.address(number=1)).startswith(b"HTTP/1.1 200")
    server.write(pool(f"unix:{path}", "127.0.0.1:0"))
    assert server.run("reload").returncode == 0
    assert fetch(str(path)).startswith(b"HTTP/1.1 200")
    assert server.stop() == 0


def test_a_lost_unix_socket_where_another_server_listens_refuses_the_reload(start, tmp_path):
    path = tmp_path / "web.sock"
    server = start(pool(f"unix:{path}")).wait_serving()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        done = server.run("reload")
        assert done.returncode != 0
        assert f"cannot listen on unix:{path}: a running server listens there" in done.stderr
    assert len(server.pool()["listeners"]) == 1
    assert server.stop() == 0
    assert path.exists()


def test_what_a_switched_link_leads_to_gets_sockets_and_pid_file_at_a_reload(start, tmp_path):
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
    link = tmp_path / "current"
    link.symlink_to("1")
    head = f'[master]\ncontrol = "{tmp_path}/control.sock"\npid_file = "{link}/run/server.pid"\n'
    server = start(head + pool(f"unix:{link}/run/web.sock")).wait_serving()
    link.unlink()
    link.symlink_to("2")
    assert server.run("reload").returncode == 0
    assert fetch(f"{link}/run/web.sock").startswith(b"HTTP/1.1 200")
    assert (link / "run/server.pid").read_text() == f"{server.process.pid}\n"
    assert os.listdir(tmp_path / "1" / "run") == []
    assert server.stop() == 0
    assert os.listdir(tmp_path / "2" / "run") == []


def test_a_listener_gets_wider_by_a_reload_and_narrower_by_a_new_start_only(start):
    port = free_port()
    server = start(pool(f"127.0.0.1:{port}")).wait_serving()
    with Load(("127.0.0.1", port)) as load:
        server.write(pool(f"0.0.0.0:{port}"))
        assert server.run("reload").returncode == 0
    assert load.lost == {}, load.examples
    assert fetch(("127.0.0.2", port)).startswith(b"HTTP/1.1 200")
    server.write(pool(f"127.0.0.1:{port}"))
    done = server.run("reload")
    assert done.returncode != 0
    told = (
        f"cannot listen on 127.0.0.1:{port}: this server listens on 0.0.0.0:{port} itself, which includes it"
    )
    assert told in done.stderr
    assert fetch(("127.0.0.1", port)).startswith(b"HTTP/1.1 200")
    assert server.stop() == 0
