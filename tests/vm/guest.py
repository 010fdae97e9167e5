# SPDX-License-Identifier: Apache-2.0
"""In the guest: load every BPF program, trace by every rung, run the probes' core tests, print one line of JSON.

python -m tests.vm.guest KERNEL RUNG,RUNG...
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from otelbpf.capture import LADDER, Capture
from otelbpf.errors import LoadError
from otelbpf.native._shim import ffi
from otelbpf.native.object import OBJECTS, Object
from tests.e2e import otlp_json

ROOT = Path(__file__).resolve().parent.parent.parent
REQUESTS = 101
PORT = 8080
LOG_BYTES = 1 << 20
OLD = "-old"  # bpf/compat.bpf.h
LOG_STATS = 4  # BPF_LOG_STATS in include/linux/bpf_verifier.h
PROG_KPROBE, TRACE_FENTRY, TRACE_FEXIT = "2", "24", "25"  # include/uapi/linux/bpf.h
CLIENT = f"""
import http.client, sys
sys.stdin.readline()
connection = http.client.HTTPConnection("127.0.0.1", {PORT})
for _ in range({REQUESTS}):
    connection.request("GET", "/hello")
    assert connection.getresponse().read() == b"hello\\n"
print("done", flush=True)
sys.stdin.readline()
"""


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- the verifier -------------------------------------------------------------------------------


def libbpf():
    """The library that the shim has loaded: its objects are ours too."""
    lib = ctypes.CDLL("libbpf.so.1")
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, *arguments in (
        ("bpf_object__next_program", pointer, pointer, pointer),
        ("bpf_program__name", text, pointer),
        ("bpf_program__autoload", ctypes.c_bool, pointer),
        ("bpf_program__set_log_level", ctypes.c_int, pointer, ctypes.c_uint32),
        ("bpf_program__set_log_buf", ctypes.c_int, pointer, text, ctypes.c_size_t),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Verdicts:
    """What the verifier says of the programs of one object that are to be loaded."""

    def __init__(self, lib):
        self.lib, self.logs = lib, {}

    def listen(self, obj):
        """Before *obj* is loaded."""
        bpf_object = int(ffi.cast("uintptr_t *", obj._ptr)[0])  # struct otb_object's first member
        program = None
        while program := self.lib.bpf_object__next_program(bpf_object, program):
            if self.lib.bpf_program__autoload(program):
                log = ctypes.create_string_buffer(LOG_BYTES)
                self.logs[self.lib.bpf_program__name(program).decode()] = log
                self.lib.bpf_program__set_log_level(program, LOG_STATS)
                self.lib.bpf_program__set_log_buf(program, log, LOG_BYTES)

    def instructions(self):
        """Program -> instructions looked at; all were accepted."""
        return {
            name: int(re.search(rb"^processed (\d+) insns", log.value, re.MULTILINE)[1])
            for name, log in self.logs.items()
        }


def verified(lib):
    """Load what the agent would load; "stem or rung: program" -> instructions."""
    return {**in_rungs(lib), **in_objects(lib)}


def in_rungs(lib):
    """The exchange object's programs belong together, with constants of their rung."""
    found = {}
    for rung in LADDER:
        if any(name.startswith(f"{rung.name}: ") for name in found):
            continue  # its twin for old kernels is not needed here
        verdicts = Verdicts(lib)
        try:
            Capture._open(rung, Object, {}, verdicts.listen).close()
        except LoadError as e:
            say(f"{rung.title}: {e}")
        else:
            found |= {f"{rung.name}: {name}": n for name, n in verdicts.instructions().items()}
    return found


def stems():
    """Every other object: of process, and of every probe. A twin for old kernels is no object of its own."""
    names = {path.name.removesuffix(".bpf.o") for path in OBJECTS.glob("*.bpf.o")}
    return sorted(name for name in names - {rung.stem for rung in LADDER} if not name.endswith(OLD))


def in_objects(lib):
    """Each program by itself: which of them a kernel takes is the probe's to choose from."""
    found = {}
    for stem in stems():
        with Object(stem) as obj:
            programs = obj.programs()
        for program in programs:
            for name in (stem, f"{stem}{OLD}"):
                if not (OBJECTS / f"{name}.bpf.o").exists():
                    continue
                verdicts = Verdicts(lib)
                try:
                    with Object(name) as obj:
                        obj.only([program])
                        verdicts.listen(obj)
                        obj.load()
                except LoadError as e:
                    say(f"{name}: {program}: {e}")
                else:
                    found |= {f"{stem}: {program}": n for n in verdicts.instructions().values()}
                    break
    return found


# ---- the agent ----------------------------------------------------------------------------------


def held(pid):
    """Not what the agent says, but the programs and links behind its descriptors: (name, value) of each line."""
    lines = []
    for each in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            lines += each.read_text().splitlines()
    wanted = ("prog_type:", "attach_type:", "recursion_misses:")
    return [tuple(line.split(":\t")) for line in lines if line.startswith(wanted)]


def rung_in_use(pid):
    lines = held(pid)
    if ("prog_type", PROG_KPROBE) in lines:
        return "kprobe"
    if ("attach_type", TRACE_FENTRY) in lines or ("attach_type", TRACE_FEXIT) in lines:
        return "fentry"
    return "tracepoint"


def pinned(command, cpu, **kwargs):
    """On a CPU of its own: while a BPF program is preempted, the kernel skips it for the CPU's other tasks."""
    return subprocess.Popen(["taskset", "--cpu-list", str(cpu), sys.executable, *command], **kwargs)


def trace(rung, capture, server, *selectors):
    """101 requests between two processes, selected by pid or by *selectors*; returns what became of them."""
    work = Path(tempfile.mkdtemp())
    config, spans, log = work / "config.yaml", work / "spans.jsonl", work / "log"
    config.write_text(f"probes: {{exchange: {{capture: {capture}}}}}\n" if capture else "")
    client = pinned(["-c", CLIENT], 1, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-m", "otelbpf", "run", f"--config={config}", f"--output=file:{spans}"]
    with log.open("wb") as output:
        agent = subprocess.Popen(
            [*command, *(selectors or (f"--pid={server.pid}", f"--pid={client.pid}"))],
            stdout=output,
            stderr=output,
            cwd=ROOT,
        )
    found = {"rung": rung, "in_use": "", "server": 0, "client": 0, "missed": 0}
    while b"otelbpf: tracing" not in log.read_bytes() and agent.poll() is None:
        time.sleep(0.1)
    if agent.poll() is None:
        found["in_use"] = rung_in_use(agent.pid)
        client.stdin.write("go\n")
        client.stdin.flush()
        client.stdout.readline()  # the connection stays open: the last exchange is for the sweep to find
        found["missed"] = sum(int(value) for name, value in held(agent.pid) if name == "recursion_misses")
        agent.send_signal(signal.SIGTERM)
        agent.wait()
        kinds = [span.kind for span in otlp_json.spans(spans)]
        found |= {kind.name.lower(): kinds.count(kind) for kind in (otlp_json.Kind.SERVER, otlp_json.Kind.CLIENT)}
    client.stdin.close()
    client.wait()
    found["exit"], found["said"] = agent.returncode, log.read_text(errors="replace")
    say(f"{rung}: {found}")
    return found


# ---- the probes' core tests ---------------------------------------------------------------------


class Outcomes:
    """A plugin of pytest: what became of each test."""

    def __init__(self, kernel):
        self.kernel, self.found = kernel, {}

    @pytest.hookimpl(trylast=True)  # after -m
    def pytest_collection_modifyitems(self, config, items):
        for item in items:
            reason = item.get_closest_marker("vm").kwargs.get("without", {}).get(self.kernel)
            if reason:
                self.found[item.nodeid] = f"without: {reason}"
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in self.found])
        items[:] = [item for item in items if item.nodeid not in self.found]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            why = report.longrepr[2] if report.skipped else str(report.longrepr).splitlines()[-1]
            self.found[report.nodeid] = "passed" if report.passed else f"{report.outcome}: {why}"


def core_tests(kernel):
    """Run what is marked `vm`; test -> "passed", "without: why", or what went wrong."""
    files = [str(path) for path in (ROOT / "tests").rglob("test_*.py") if "@pytest.mark.vm" in path.read_text()]
    outcomes = Outcomes(kernel)
    status = pytest.main(["-m", "vm", "-p", "no:cacheprovider", "--tb=short", "--color=no", *files], plugins=[outcomes])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        outcomes.found["pytest"] = f"failed: it ended with {status}"
    return outcomes.found


def main():
    kernel, rungs = sys.argv[1:]
    result = os.dup(1)
    os.dup2(2, 1)  # pytest talks
    programs = verified(libbpf())
    server = pinned([str(ROOT / "tests" / "apps" / "http_server.py"), str(PORT), "HTTP/1.1"], 0)
    # the first is the best, so it must be the one that the agent chooses itself
    first, *others = rungs.split(",")
    runs = [trace(first, "", server), *(trace(rung, rung, server) for rung in others)]
    everything = trace(first, "", server, "--all")  # here nobody else's processes are in reach
    found = {"release": platform.release(), "programs": programs, "runs": runs, "all": everything}
    found["tests"] = core_tests(kernel)
    os.write(result, json.dumps(found).encode())


if __name__ == "__main__":
    main()
