"""Templates of the access log: what they say, and what is wrong with them."""

from __future__ import annotations

import pytest

from prefork.config.access import FIELDS, TEMPLATES, parse_template
from tests.unit.config.reading import WEB, problems, read


def access_format(text):
    return f"[log]\naccess_format = '{text}'\n{WEB}"


def test_a_template_is_literals_and_fields_in_turn():
    assert parse_template('{client} "{request}"') == ("", "client", ' "', "request", '"')
    assert parse_template("{{{status}}} 100%") == ("{", "status", "} 100%")
    assert parse_template("{header.Accept-Language}\t{pid}") == (
        "",
        "header.Accept-Language",
        "\t",
        "pid",
        "",
    )


@pytest.mark.parametrize("text", TEMPLATES.values())
def test_the_templates_with_a_name_are_templates(text):
    assert set(parse_template(text)[1::2]) <= FIELDS.keys()


@pytest.mark.parametrize(
    "text", ["common", "combined", "json", "{status}", "{header.x-forwarded-for} {path}"]
)
def test_formats_are_accepted(text):
    assert read(access_format(text)).log.access_format == text


@pytest.mark.parametrize(
    ("text", "expected", "hint"),
    [
        ("combine", 'expected "common", "combined", "json", or a template', 'did you mean "combined"?'),
        ("%h %l %u", 'expected "common", "combined", "json", or a template', None),
        ("{stat}", "expected a known field, found", "did you mean {status}?"),
        ("{header.NAME_X}", "expected a known field, found", "header.NAME"),
        ("{}", "expected a known field", "the fields are"),
        ("{status", "expected fields in braces", "write {{"),
        ("{status} }", "expected fields in braces", "write {{"),
        ("{method}{path}", "expected something between two fields, found", "put a space"),
        ("{status}" + "x" * 1100, "printable characters", None),
    ],
)
def test_what_is_wrong_with_a_template_is_told(text, expected, hint):
    ((message, told),) = problems(access_format(text))
    assert message.startswith(":2: [log] access_format: ")
    assert expected in message
    assert hint in (told or "") if hint else told is None


def test_a_template_is_one_printable_line():
    ((message, _),) = problems(f'[log]\naccess_format = "{{status}}\\nx"\n{WEB}')
    assert "printable" in message


def test_a_path_is_made_absolute_and_off_is_none():
    assert read(f'[log]\naccess = "access.log"\n{WEB}').log.access == "/srv/access.log"
    assert read(f'[log]\naccess = "./off"\n{WEB}').log.access == "/srv/off"
    assert [read(f'[log]\naccess = "{text}"\n{WEB}').log.access for text in ("off", "-")] == ["off", "-"]
    assert read(WEB).log.access == "off"


def test_two_files_at_one_path_are_refused():
    ((message, _),) = problems(f'[log]\nfile = "x.log"\naccess = "x.log"\n{WEB}')
    assert "[log] access: expected a path of its own, found /srv/x.log, which is [log] file" in message
    ((message, _),) = problems(f'[master]\ncontrol = "x"\n[log]\naccess = "x"\n{WEB}')
    assert "expected a path of its own" in message


def test_an_access_log_that_nobody_would_write_is_refused():
    echo = '[pool.echo]\nlisten = ["127.0.0.1:7000"]\nhandler = "a:b"\n'
    ((message, hint),) = problems(f'[log]\naccess = "-"\n{echo}')
    assert "expected a pool with wsgi" in message
    assert hint == 'write access = "off"'
    assert read(f'[log]\naccess = "-"\n{echo}{WEB}').log.access == "-"
