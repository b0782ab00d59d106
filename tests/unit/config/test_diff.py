"""What a reload has to do, from the old and the new configuration."""

from __future__ import annotations

from prefork.config.diff import Change, compare
from prefork.config.listeners import all_keyed
from tests.unit.config.reading import read


def pool(name, *addresses, workers=1):
    listen = ", ".join(f'"{address}"' for address in addresses)
    return f'[pool.{name}]\nlisten = [{listen}]\nhandler = "a:b"\nworkers = {workers}\n'


def change(old, new):
    return compare(read(old), read(new))


def test_nothing_changes_between_equal_files():
    text = pool("a", "127.0.0.1:1") + pool("b", "unix:x")
    assert change(text, text) == Change()


def test_options_of_a_pool_are_no_change_of_the_servers():
    text = pool("a", "127.0.0.1:1")
    assert change(text, text + "threads = 4\nrequest_timeout = 1\n") == Change()


def test_a_listener_that_moves_to_another_pool_is_no_change():
    old = pool("a", "127.0.0.1:1") + pool("b", "127.0.0.1:2")
    new = pool("a", "127.0.0.1:2") + pool("b", "127.0.0.1:1")
    assert change(old, new) == Change()


def test_each_port_chosen_by_the_kernel_is_a_listener_of_its_own():
    text = pool("a", "127.0.0.1:0", "127.0.0.1:0") + pool("b", "127.0.0.1:0", "unix:x")
    assert len(all_keyed(read(text))) == 4
    assert all_keyed(read(text)).keys() > all_keyed(read(pool("a", "127.0.0.1:0"))).keys()


def test_pools_come_and_go_in_the_order_of_the_files():
    old = pool("c", "127.0.0.1:1") + pool("keep", "127.0.0.1:2") + pool("a", "127.0.0.1:3")
    new = pool("z", "127.0.0.1:1") + pool("keep", "127.0.0.1:2") + pool("b", "127.0.0.1:3")
    found = change(old, new)
    assert (found.added, found.removed) == (("z", "b"), ("c", "a"))


def test_other_counts_are_told_for_pools_that_stay():
    old = pool("a", "127.0.0.1:1", workers=2) + pool("b", "127.0.0.1:2") + pool("c", "127.0.0.1:3")
    new = pool("a", "127.0.0.1:1", workers=5) + pool("b", "127.0.0.1:2") + pool("d", "127.0.0.1:3", workers=4)
    assert change(old, new).counts == {"a": 5}
    assert change(old, new).lines() == ["pool d is added", "pool c is removed", "pool a gets 5 workers"]


def test_what_names_the_running_server_is_fixed():
    text = pool("a", "127.0.0.1:1")
    found = change(text, text + '[master]\nname = "x"\npid_file = "p"\nuser = "www"\n')
    assert found.fixed == ("master.name", "master.control", "master.pid_file")
