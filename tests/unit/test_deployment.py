"""The files in conf/ for systemd, Docker and Kubernetes: valid by their makers' rules, and their times fit."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.unit.config.reading import read

CONF = Path(__file__).parents[2] / "conf"
MANIFESTS = list(yaml.safe_load_all((CONF / "kubernetes.yaml").read_text()))
# What is left of the time to stop for everything but waiting.
SPARE = 5


def manifest(kind: str) -> Any:
    return next(found for found in MANIFESTS if found["kind"] == kind)


def container() -> Any:
    return manifest("Deployment")["spec"]["template"]["spec"]["containers"][0]


# Kubernetes.


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda found: found["kind"])
def test_manifests_keep_to_the_published_schemas(manifest):
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_a_schema_refuses_a_misspelt_key():
    wrong = yaml.safe_load(
        (CONF / "kubernetes.yaml").read_text().split("---")[1].replace("replicas", "replica")
    )
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_the_pod_has_time_for_its_whole_drain():
    pool = read(manifest("ConfigMap")["data"]["shop.toml"]).pools["web"]
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = manifest("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert pause + pool.drain_delay + pool.graceful_timeout + SPARE <= grace


def test_names_and_ports_of_the_manifests_fit_each_other():
    pool = read(manifest("ConfigMap")["data"]["shop.toml"]).pools["web"]
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports["http"] == pool.listen[0].address.port
    assert container()["readinessProbe"]["httpGet"]["port"] == "http"
    assert manifest("Service")["spec"]["ports"][0]["targetPort"] == "http"
    assert (
        manifest("Service")["spec"]["selector"] == manifest("Deployment")["spec"]["selector"]["matchLabels"]
    )
    (path,) = container()["args"][1:]
    assert path == container()["livenessProbe"]["exec"]["command"][-1] == "/etc/prefork/shop.toml"


# Docker.


def test_the_image_runs_a_file_that_is_copied_into_it():
    text = (CONF / "Dockerfile").read_text()
    sources = [
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert sources
    assert all((CONF.parent / name).exists() for name in sources)
    assert re.search(r'^ENTRYPOINT \["prefork"\]$', text, re.MULTILINE)
    (setting,) = re.findall(r'"--set", "((?:[^"\\]|\\.)+)"\]', text)
    assert read((CONF / "server.toml").read_text(), settings=[setting.replace('\\"', '"')])


# systemd.


def unit(name: str) -> configparser.RawConfigParser:
    parsed = configparser.RawConfigParser(strict=False, comment_prefixes="#")
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read(CONF / name)
    return parsed


def test_the_units_fit_each_other():
    assert unit("prefork.socket")["Socket"]["FileDescriptorName"] == "web"
    assert unit("prefork.service")["Unit"]["Requires"] == "prefork.socket"
    assert unit("prefork.service")["Service"]["Type"] == "notify"


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and "CI" not in os.environ, reason="systemd-analyze is not here"
)


@needs_systemd
def test_the_service_is_hardened():
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=25",
        str(CONF / "prefork.service"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_systemd
def test_systemd_finds_no_mistake_in_the_units(tmp_path: Path):
    for name in ("prefork.service", "prefork.socket"):
        text = (CONF / name).read_text().replace("/opt/shop/.venv/bin/prefork", "/bin/true")
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in ("prefork.service", "prefork.socket")]
    command = ["systemd-analyze", "verify", "--man=no", "--generators=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert not ours
