# SPDX-License-Identifier: Apache-2.0
"""Which rule is a process's, by its texts."""

from __future__ import annotations

import pytest

from otelbpf.config import Exclude, Rule, Select
from otelbpf.errors import ConfigError
from otelbpf.native import select
from otelbpf.selection import Process, Rules

ID = "4f1c9a0b7d2e" + "c" * 52
NGINX = Process(b"/usr/sbin/nginx", b"nginx: master process /usr/sbin/nginx -g daemon off;", (b"/",))
DOCKER = Process(b"/app/server", b"/app/server --port 80", (f"/system.slice/docker-{ID}.scope".encode(),))


def verdict(process, **chosen):
    return Rules(Select(**chosen)).verdict(process)


def selected(process, **chosen):
    return bool(verdict(process, **chosen).number)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("nginx", True),
        ("ngin?", True),
        ("sbin", False),
        ("*bin*", False),  # without a / it is about the file's name
        ("sbin/nginx", True),
        ("/usr/*/nginx", True),
        ("/usr/*", True),
        ("/usr/sbin", False),
        ("*/sbin/*", True),
        ("/sbin/nginx", False),
    ],
)
def test_executables_by_name_or_by_path(pattern, matches):
    assert selected(NGINX, exe=(pattern,)) is matches


@pytest.mark.parametrize(
    ("pattern", "matches"), [("*daemon off;", True), ("*daemon off", False), ("nginx*", True), ("nginx", False)]
)
def test_command_lines_are_matched_as_a_whole(pattern, matches):
    assert selected(NGINX, cmd=(pattern,)) is matches


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        ("/system.slice", True),
        ("/system.slice/", True),
        ("/sys/fs/cgroup/system.slice", True),
        ("/sys/fs/cgroup/unified/system.slice", True),
        ("/sys/fs/cgroup/cpu,cpuacct/system.slice", True),
        ("/sys/fs/cgroup", True),
        ("/", True),
        (f"docker-{ID}.scope", True),
        ("docker-*.scope", True),
        ("/system", False),
        ("system", False),
        ("/docker", False),
    ],
)
def test_a_cgroup_is_its_path_and_all_below(path, matches):
    assert selected(DOCKER, cgroup=(path,)) is matches


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{ID}",
        f"/system.slice/docker-{ID}.scope",
        f"/kubepods/burstable/pod5f0c1d2e-0000-0000-0000-000000000000/{ID}",
        f"/kubepods.slice/kubepods-pod5f.slice/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-pod5f.slice/cri-containerd-{ID}.scope/init",
        f"/kubepods-pod5f.slice:cri-containerd:{ID}",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/../../crio-{ID}.scope",
    ],
)
def test_a_container_is_known_by_the_beginning_of_its_id(path):
    inside = Process(b"/app", b"app", (path.encode(),))
    assert selected(inside, container=(ID,))
    assert selected(inside, container=(ID[:12],))
    assert not selected(inside, container=(ID[1:13],))


def test_selectors_add_up_and_a_rules_lists_must_all_match():
    assert selected(NGINX, exe=("apache2", "nginx"), cmd=("no",))
    assert selected(NGINX, rules=(Rule(exe=("nginx",), cmd=("*off*",)),))
    assert not selected(NGINX, rules=(Rule(exe=("nginx",), cmd=("*on",)),))
    assert not selected(DOCKER, rules=(Rule(cgroup=("/system.slice",), container=("0" * 12,)),))


def test_the_first_rule_that_matches_counts_and_says_why():
    first, second = Rule(exe=("nginx",), service_name="web"), Rule(cmd=("*",))
    rules = Rules(Select(rules=(first, second), exe=("nginx",)))
    found = rules.verdict(NGINX)
    assert rules[found.number].given is first
    assert [(match.key, match.written, match.text) for match in found.why] == [("exe", "nginx", "/usr/sbin/nginx")]
    assert rules[rules.verdict(DOCKER).number].given is second


def test_what_is_excluded_is_not_selected_by_anything():
    exclude = Exclude(exe=("nginx",), container=(ID[:12],))
    for process in (NGINX, DOCKER):
        found = verdict(process, all=True, rules=(Rule(exe=("*",)),), exclude=exclude)
        assert (found.number, found.excluded, len(found.why)) == (0, True, 1)


def test_pids_and_ports_select_nobody_by_their_texts():
    assert not selected(NGINX, pids=(1,), ports=(80,), rules=(Rule(ports=(80,)), Rule(pids=(7,))))


def test_ports_are_anybodys_or_a_rules():
    rules = Rules(Select(ports=(80, 81), rules=(Rule(ports=(81,)), Rule(exe=("nginx",), ports=(80,)))))
    listed = next(each.number for each in rules.numbered if each.source == "select.ports")
    assert sorted(rules.ports()) == [
        (80, 0, listed),
        (80, 2, 2),
        (80, listed, listed),
        (81, 0, 1),
        (81, 1, 1),
        (81, listed, listed),
    ]


def test_there_is_room_for_so_many_rules():
    rule = Rule(ports=(80,))
    Rules(Select(rules=(rule,) * (select.RULES - 1)))
    with pytest.raises(ConfigError, match=f"^select: rules: want {select.RULES - 1} or fewer$"):
        Rules(Select(rules=(rule,) * select.RULES))
    with pytest.raises(ConfigError, match=f"^select: rules: want {select.RULES - 2} or fewer$"):
        Rules(Select(rules=(rule,) * select.RULES, exe=("nginx",)))


def test_there_is_room_for_so_many_characters():
    with pytest.raises(ConfigError) as refused:
        Rules(Select(cmd=("a" * 300, "b" * 300)))
    assert str(refused.value).startswith("select.cmd: cmd: no room for 'bbb")
    assert str(refused.value).endswith("together may have about 512 characters; write fewer or shorter ones")
