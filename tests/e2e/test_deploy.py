# SPDX-License-Identifier: Apache-2.0
"""What we ship for others to run: it parses, it is valid to whom it is for, and it agrees with the command line."""

from __future__ import annotations

import configparser
import shlex
from urllib.request import urlopen

import pytest
import yaml

from otelbpf import cli
from tests import parts
from tests.e2e.conftest import COLLECTOR_CONFIG, ROOT, folder, uncommented

DEPLOY = ROOT / "deploy"
DAEMONSET = DEPLOY / "kubernetes" / "daemonset.yaml"
UNIT = DEPLOY / "systemd" / "otelbpf.service"


def unit():
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read_string(UNIT.read_text())
    return parser


def manifests():
    return {each["kind"]: each for each in yaml.safe_load_all(DAEMONSET.read_text())}


def container():
    (only,) = manifests()["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    return only


def capabilities():
    return unit()["Service"]["AmbientCapabilities"].split()


def test_the_unit_starts_what_the_command_line_understands():
    program, *args = shlex.split(unit()["Service"]["ExecStart"])
    assert program == "otelbpf"
    cli._parsed(args)


def test_the_daemonset_starts_what_the_command_line_understands():
    assert container()["command"] == ["otelbpf"]
    cli._parsed(container()["args"])


def test_unit_and_daemonset_have_the_same_capabilities():
    assert unit()["Service"]["CapabilityBoundingSet"].split() == capabilities()
    granted = container()["securityContext"]["capabilities"]
    assert granted["drop"] == ["ALL"]
    assert [f"CAP_{each}" for each in granted["add"]] == capabilities()


def test_every_mount_has_its_volume():
    pod = manifests()["DaemonSet"]["spec"]["template"]["spec"]
    assert [each["name"] for each in container()["volumeMounts"]] == [each["name"] for each in pod["volumes"]]
    assert manifests()["ConfigMap"]["metadata"]["name"] == pod["volumes"][0]["configMap"]["name"]


@pytest.mark.parametrize(
    "text",
    [(DEPLOY / "systemd" / "config.yaml").read_text(), manifests()["ConfigMap"]["data"]["config.yaml"]],
    ids=["systemd", "kubernetes"],
)
def test_configuration_is_valid(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    assert cli.main(["config", "-c", str(tmp_path / "config.yaml")]) == 0


@pytest.mark.parametrize("text", [COLLECTOR_CONFIG.read_text(), uncommented(COLLECTOR_CONFIG.read_text())])
def test_the_collector_accepts_our_configuration(text):
    with folder(parts.NOBODY) as work:
        (work / "config.yaml").write_text(text)
        process = parts.start(parts.otelcol(), "validate", f"--config={work}/config.yaml", log=work / "log")
        assert process.wait(20) == 0, (work / "log").read_text()


@pytest.mark.kernel
def test_the_capabilities_of_the_unit_are_enough(server, agent, collector):
    """The agent as nobody, with what the unit grants: as its systemd would start it."""
    names = ",".join("+" + each.removeprefix("CAP_").lower() for each in capabilities())
    sets = [f"--{which}=-all,{names}" for which in ("bounding-set", "inh-caps", "ambient-caps")]
    drop = ["setpriv", f"--reuid={parts.NOBODY}", f"--regid={parts.NOBODY}", "--clear-groups", "--no-new-privs", *sets]

    with (
        agent("--pid", str(server.pid), endpoint=collector.endpoint, under=drop),
        urlopen(server.url + "/hello") as response,
    ):
        response.read()

    (span,) = collector.spans()
    assert span.resource["service.name"] == server.service
