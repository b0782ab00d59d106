"""The command line of the benchmark: what to measure, in which order, and where the results go."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import idle
from .measure import ROOT, Failure, Figures, allow_many_connections, has_wrk, measure, started
from .report import Medians, chart, median, table
from .scenarios import Scenario
from .servers import GROUPS, PACKAGES, Group, Server, compared_with

ENVIRONMENT = ROOT / ".bench"
RESULTS = ROOT / "scripts"
Rounds = dict[Scenario, dict[Server, list[Figures]]]


def main() -> None:
    options = parse_options()
    if options.install:
        install()
        return
    use_installed_environment()
    allow_many_connections()
    if options.idle:
        print(idle.cost(options.idle))
        return
    if not has_wrk():
        sys.exit(
            "error: wrk is not installed\nhint: apt-get install wrk (Debian, Ubuntu), brew install wrk (macOS)"
        )
    report(options, [measure_group(group, options) for group in chosen_groups(options)])


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure prefork and other servers side by side, in the same minutes on the same machine: take "
        "the ratios. Each server gets one core, wrk another one. A round measures every server once; what is "
        "printed are medians.",
    )
    parser.add_argument(
        "--install", action="store_true", help="make .bench, an environment with all servers, and stop"
    )
    parser.add_argument("--seconds", type=int, default=1, help="of one measurement (1)")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken (5)")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument(
        "--only", metavar="WORD", action="append", help="servers with WORD in their names, and the first one"
    )
    parser.add_argument(
        "--scenario", metavar="WORD", action="append", help="scenarios with WORD in their titles"
    )
    parser.add_argument(
        "--against", metavar="FOLDER", type=Path, help="compare with the prefork of another checkout only"
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        type=Path,
        help="where bench.txt and bench.svg go; scripts, if all is measured",
    )
    parser.add_argument(
        "--idle", type=int, metavar="N", help="measure the memory of N idle kept-alive connections"
    )
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    is_complete = not (options.only or options.scenario or options.against or options.quick)
    options.output = options.output or (RESULTS if is_complete else None)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)  # now, and not when all has been measured
    return options


def install() -> None:
    """Make an environment with prefork and every server that can be had here."""
    subprocess.run([ROOT / "scripts/install"], env={**os.environ, "VENV": str(ENVIRONMENT)}, check=True)
    missing = [names[0] for names in PACKAGES if not install_packages(names)]
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
    if "bjoern" in missing:
        print("hint: bjoern is built here and needs libev: apt-get install libev-dev", file=sys.stderr)


def install_packages(names: tuple[str, ...]) -> bool:
    pip = (str(ENVIRONMENT / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    print(f"installing {' '.join(names)}", file=sys.stderr)
    return subprocess.run([*pip, *names], check=False).returncode == 0


def use_installed_environment() -> None:
    """Go on in the environment that was made for it, or in the one of the tests."""
    for folder in (ENVIRONMENT, ROOT / ".venv"):
        interpreter = folder / "bin/python"
        if Path(sys.prefix) == folder:
            return
        if interpreter.exists():
            os.execv(interpreter, [str(interpreter), *sys.argv])
    sys.exit("error: prefork is not installed here\nhint: scripts/bench --install")


def chosen_groups(options: argparse.Namespace) -> Iterator[Group]:
    """Yield what is to be measured, of the servers that are installed."""
    for group in GROUPS:
        if options.against is not None:
            group = compared_with(group, options.against.resolve())
        scenarios = tuple(one for one in group.scenarios if is_chosen(one.title, options.scenario))
        servers = tuple(
            server
            for server in group.servers
            if server.version() is not None
            and (server is group.servers[0] or is_chosen(server.name, options.only))
        )
        if scenarios:
            yield Group(servers, scenarios, group.scheme)


def is_chosen(name: str, words: list[str] | None) -> bool:
    return words is None or any(word in name for word in words)


def measure_group(group: Group, options: argparse.Namespace) -> Rounds:
    """Measure servers in interleaved rounds; one that fails once is left out of that scenario."""
    rounds: Rounds = {
        scenario: {server: [] for server in group.servers if server.takes_part_in(scenario)}
        for scenario in group.scenarios
    }
    for number in range(options.rounds):
        for server in group.servers:
            print(f"\rround {number + 1} of {options.rounds}: {server.name:40}", end="", file=sys.stderr)
            measure_server(server, group.scheme, rounds, options.seconds)
    return rounds


def measure_server(server: Server, scheme: str, rounds: Rounds, seconds: int) -> None:
    wanted = [scenario for scenario, servers in rounds.items() if server in servers]
    if not wanted:
        return
    try:
        with started(server, scheme) as running:
            for scenario in wanted:
                try:
                    rounds[scenario][server].append(measure(running, scenario, seconds))
                except Failure as failure:
                    print(f"{server.name}, {scenario.title}: {failure}", file=sys.stderr)
    except Failure as failure:
        print(failure, file=sys.stderr)


def report(options: argparse.Namespace, groups: list[Rounds]) -> None:
    """Print the tables; write them and the chart to files if that is wanted."""
    results = [(scenario, medians_of(servers)) for rounds in groups for scenario, servers in rounds.items()]
    tables = [heading(options), *(table(scenario.title, medians) for scenario, medians in results)]
    print("\n".join(tables))
    if options.output is not None:
        drawn = [
            (scenario.title, without_logs(medians)) for scenario, medians in results if scenario.is_drawn
        ]
        (options.output / "bench.txt").write_text("\n".join(tables))
        (options.output / "bench.svg").write_text(chart(drawn))


def medians_of(servers: dict[Server, list[Figures]]) -> Medians:
    return {server.name: median(figures) for server, figures in servers.items()}


def without_logs(medians: Medians) -> Medians:
    return {name: figures for name, figures in medians.items() if "access log" not in name}


def heading(options: argparse.Namespace) -> str:
    """Say what was measured, and on what."""
    versions = {
        server.package: server.version() for group in GROUPS for server in group.servers if server.package
    }
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    missing = ", ".join(name for name, version in versions.items() if version is None)
    lines = [
        f"Medians of {options.rounds} rounds of {options.seconds} s; CPU and memory of all processes of a server.",
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} CPUs; {found}.",
    ]
    if missing:
        lines.append(f"Not installed: {missing} (scripts/bench --install).")
    return "\n".join(lines) + "\n"
