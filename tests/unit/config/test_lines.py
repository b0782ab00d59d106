"""The line finder follows TOML's structure, however the text is laid out."""

from __future__ import annotations

from prefork.config.lines import Place, find_places

TEXT = '''# a comment with [brackets] = and "quotes"
top = 1

[master]  # [not.a.table]
name = "a [b] # c"
"quo.ted" = 'x = "y"'

[pool."we b".http]
max_body = 0o17  # octal
[pool."we b"]
text = """
listen = "inside a string"
\\""" still inside""""
raw = \'\'\'
a = '' b
\'\'\'
listen = [
  "a", # a comment, with ] and a comma
  { address = "b", mode = 0660,
    deep.er = [1, [2,
      3]] },
]
day = 1979-05-27 07:32:00
env.LANG = "C"

[[pool.list.listen]]
address = "a"
[[pool.list.listen]]
address = "b"
[pool.list.listen.more]
x = true
'''


def lines(*keys):
    return [find_places(TEXT)[key].line for key in keys]


def test_keys_and_tables_are_found_at_their_lines():
    assert lines(("top",), ("master",), ("master", "name"), ("master", "quo.ted")) == [2, 4, 5, 6]
    assert lines(("pool", "we b", "http"), ("pool", "we b"), ("pool", "we b", "http", "max_body")) == [
        8,
        10,
        9,
    ]


def test_strings_over_several_lines_hide_what_is_in_them():
    assert lines(("pool", "we b", "text"), ("pool", "we b", "raw"), ("pool", "we b", "listen")) == [
        11,
        14,
        17,
    ]


def test_items_and_inline_tables_have_their_own_lines():
    listen = ("pool", "we b", "listen")
    assert lines((*listen, 0), (*listen, 1), (*listen, 1, "mode")) == [18, 19, 19]
    assert lines((*listen, 1, "deep", "er"), (*listen, 1, "deep", "er", 1, 1)) == [20, 21]


def test_dotted_keys_are_paths():
    assert lines(("pool", "we b", "env"), ("pool", "we b", "env", "LANG")) == [24, 24]


def test_tables_in_lists_are_counted():
    listen = ("pool", "list", "listen")
    assert lines((*listen, 0), (*listen, 1, "address"), (*listen, 1, "more", "x")) == [26, 29, 31]


def test_plain_values_are_known_as_written():
    places = find_places(TEXT)
    assert places["pool", "we b", "http", "max_body"] == Place(9, "0o17")
    assert places["pool", "we b", "listen", 1, "mode"].written == "0660"
    assert places["pool", "we b", "day"].written == "1979-05-27 07:32:00"
    assert places["master", "name"].written == ""


def test_line_ends_of_windows_are_no_part_of_a_value():
    assert find_places("a = 1\r\n[b]\r\nc = 2\r\n") == {
        ("a",): Place(1, "1"),
        ("b",): Place(2),
        ("b", "c"): Place(3, "2"),
    }
