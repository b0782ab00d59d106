"""scripts/benchmark: what is read out of wrk's output, and what people see of it."""

from xml.etree import ElementTree as ET

import pytest

from scripts.benchmark.main import is_chosen
from scripts.benchmark.measure import Failure, Figures, read_wrk
from scripts.benchmark.report import chart, median, table
from scripts.benchmark.scenarios import HTTP
from scripts.benchmark.servers import GROUPS

WRK = """Running 1s test @ http://127.0.0.1:8000/hello
  1 threads and 64 connections
  Latency Distribution
     50%  843.00us
     75%    0.90ms
     90%    1.01ms
     99%    1.27ms
  75231 requests in 1.00s, 9.68MB read
Requests/sec:  75112.55
Transfer/sec:      9.67MB
"""


def figures(cpu):
    return Figures(rate=1000.0, cpu=cpu, p99=2000.0, memory=2.0**20)


def test_wrk_is_read():
    assert read_wrk(WRK) == (75112.55, 75231, 1270.0)


@pytest.mark.parametrize(
    ("old", "new"),
    [("75231 requests", "0 requests"), ("Transfer", "Non-2xx or 3xx responses: 7\nTransfer"), ("99%", "98%")],
)
def test_anything_but_answers_of_200_is_a_failure(old, new):
    with pytest.raises(Failure):
        read_wrk(WRK.replace(old, new))


def test_medians_are_of_each_figure():
    rounds = [Figures(1, 9, 5, 7), Figures(2, 8, 5, 7), Figures(3, 1, 5, 8)]
    assert median(rounds) == Figures(2, 8, 5, 7)
    assert median([]) is None


def test_ratios_are_to_the_first_server():
    shown = table("hello", {"prefork": figures(10.0), "other": figures(25.0), "broken": None})
    assert "25.0   2.50x" in shown
    assert shown.splitlines()[-1].split() == ["broken", "failed"]


def test_ratios_without_the_first_server():
    assert "25.0   1.00x" in table("hello", {"prefork": None, "other": figures(25.0)})


def test_chart_sorts_cuts_and_leaves_out_failures():
    medians = {"prefork": figures(10.0), "slow & old": figures(90.0), "fast": figures(5.0), "broken": None}
    root = ET.fromstring(chart([("a <title>", medians), ("another", medians)]))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[1:8] == ["a <title>", "fast", "0.50", "prefork", "1.00", "slow & old", "9.00"]
    assert "broken" not in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) == 2


def test_every_server_is_told_its_port():
    for group in GROUPS:
        for server in group.servers:
            assert "{port}" in " ".join(server.command) + server.config


def test_post_is_told_to_wrk_in_lua():
    assert [scenario.path for scenario in HTTP if scenario.script() and not scenario.is_varied] == ["/echo"]


def test_requests_of_which_no_two_are_alike_are_told_to_wrk_in_lua():
    for scenario in (scenario for scenario in HTTP if scenario.is_varied):
        script = scenario.script()
        assert all(f"[[{line}]]," in script for line in scenario.headers)
        assert script.count('"GET /hello/') == 1
        assert script.count("{") == script.count("}")


def test_choosing_by_words():
    assert is_chosen("granian", None)
    assert is_chosen("gunicorn sync", ["bjoern", "sync"])
    assert not is_chosen("granian", ["bjoern"])
