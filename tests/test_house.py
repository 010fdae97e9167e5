# SPDX-License-Identifier: Apache-2.0
"""The plan of the house, checked: who imports whom, one stem on every floor, and BPF that only reads."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from otelbpf.native.object import Object
from otelbpf.probes import PROBES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, BPF, OBJECTS = ROOT / "otelbpf", ROOT / "bpf", ROOT / "otelbpf" / "_bpf"
MODULES = sorted(PACKAGE.rglob("*.py"))
STEMS = sorted(path.name.removesuffix(".bpf.c") for path in BPF.glob("*.bpf.c"))
SHARED = {"process"}  # serves every probe

# The ground floor last. A module imports from lower floors only.
FLOORS = (
    {"__main__"},
    {"cli"},
    {"replay"},
    {"agent", "explain"},
    {"record"},
    {"kernel", "probes", "telemetry", "health", "service", "sock", "status"},
    {"http", "tcp", "cuda"},
    {"delayed"},
    {"capture", "probe", "selection"},
    {"aggregate", "classes", "command", "correlate", "identity", "otlp", "protocols", "tape"},
    {"buckets"},
    {"native"},
    {"config", "model", "procfs"},
    {"errors"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Both read a constant or fill a struct of the headers, and call nothing.
SHIM_USERS = {"cuda/metrics.py", "kernel.py", "probes/cuda.py", "probes/exchange.py", "probes/tcp.py"}

PROBES_KNOW = {
    "aggregate",
    "buckets",
    "capture",
    "classes",
    "config",
    "correlate",
    "errors",
    "model",
    "native",
    "probe",
    "protocols",
}
PROBES_KNOW |= {"cuda", "http", "tcp"}  # mappings

modules = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
stems = pytest.mark.parametrize("stem", STEMS)


def room(path):
    """The package's top-level module or folder that holds *path*; '' for otelbpf/__init__.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")


def imported(path):
    """What a module imports of ours, without the leading `otelbpf`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            inside = node.module == "otelbpf" or node.module.startswith("otelbpf.")
            names = [f"{node.module}.{alias.name}" for alias in node.names] if inside else []
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "otelbpf" and rest != ["__version__"]:
                yield tuple(rest)


@modules
def test_imports_go_downstairs(path):
    here = room(path)
    for there in imported(path):
        if there[0] == here:
            continue
        assert here, f"{path}: the package itself imports nothing of ours, but otelbpf.{'.'.join(there)}"
        assert FLOOR[there[0]] > FLOOR[here], f"{path} must not import otelbpf.{'.'.join(there)}"


@modules
def test_probes_know_neither_each_other_nor_where_their_spans_go(path):
    if room(path) != "probes" or path.name == "__init__.py":
        return
    own = path.relative_to(PACKAGE).with_suffix("").parts[:2]
    for there in imported(path):
        assert there[0] in PROBES_KNOW or there[:2] == own


@modules
def test_outputs_know_what_a_span_is_and_not_who_made_it(path):
    if room(path) == "otlp":
        assert {there[0] for there in imported(path)} <= {"otlp", "config", "errors", "model"}


@modules
def test_only_native_touches_the_shim(path):
    if room(path) == "native" or str(path.relative_to(PACKAGE)) in SHIM_USERS:
        return
    assert "_shim" not in path.read_text()
    assert not re.search(r"\b(import|from) (cffi|ctypes)\b", path.read_text())


@modules
def test_what_probes_make_depends_on_nothing_that_a_recording_does_not_hold(path):
    """Objects, rings, time and chance come from the Context: else a replay would not give the same output."""
    if room(path) not in {"aggregate", "capture", "correlate", "http", "probes", "protocols", "tcp"}:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name(id="Object" | "Ring" as name)):
                pytest.fail(f"{path}:{node.lineno}: {name}(): use context.object() and its ring()")
            case ast.Attribute(value=ast.Name(id="time"), attr=name) if name != "sleep":
                pytest.fail(f"{path}:{node.lineno}: time.{name}: use context.monotonic_ns() or now_ns()")
            case ast.Import(names=[ast.alias(name="secrets" | "random" | "uuid" as name)]):
                pytest.fail(f"{path}:{node.lineno}: {name}: use context.random()")


def test_every_module_is_on_a_floor():
    assert {room(path) for path in MODULES} - {""} == FLOOR.keys()


# ---- one stem on every floor --------------------------------------------------------------------


@stems
def test_the_same_stem_is_on_every_floor(stem):
    assert (BPF / f"{stem}.h").exists()
    if stem not in SHARED:
        assert (PACKAGE / "probes" / f"{stem}.py").exists()
        assert (ROOT / "tests" / "probes" / f"test_{stem}.py").exists()


def test_every_probe_is_listed_once_and_named_by_its_stem():
    assert sorted(probe.name for probe in PROBES) == [stem for stem in STEMS if stem not in SHARED]


@stems
def test_bpf_programs_include_what_is_shared_and_their_own_header(stem):
    shared = {path.name for path in BPF.glob("*.h")} - {f"{other}.h" for other in STEMS}
    own = set(re.findall(r'#include "(.+)"', (BPF / f"{stem}.bpf.c").read_text()))
    assert own <= shared | {f"{stem}.h"}


@stems
def test_both_compilers_see_the_same_events(stem):
    events = re.findall(r"^EVENT\((\w+)\);", (BPF / f"{stem}.bpf.c").read_text(), re.MULTILINE)
    assert events
    with Object(stem) as obj:
        for event in events:
            assert obj.layout(event).itemsize > 0


@stems
def test_every_event_of_a_header_is_kept_in_the_object(stem):
    declared = set(re.findall(r"^struct (\w+) \{", (BPF / f"{stem}.h").read_text(), re.MULTILINE))
    kept = set(re.findall(r"^EVENT\((\w+)\);", (BPF / f"{stem}.bpf.c").read_text(), re.MULTILINE))
    assert declared == kept


# ---- licences -----------------------------------------------------------------------------------

SOURCES = sorted(
    path
    for folder in ("otelbpf", "bpf", "tests", "bench", "demo")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".c", ".h", ".js"} and path.name != "_shim.c"
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_source_file_names_its_licence(path):
    if path.stat().st_size:
        first = path.read_text().splitlines()[0]
        licence = "GPL-2.0 OR Apache-2.0" if path.parent == BPF else "Apache-2.0"
        assert re.fullmatch(rf"(#|//|/\*) SPDX-License-Identifier: {licence}( \*/)?", first), first


# ---- BPF that only reads ------------------------------------------------------------------------

# enum bpf_func_id in include/uapi/linux/bpf.h. What is not here changes something outside of our
# maps and rings, or nobody has looked yet: read its documentation before it is added.
HELPERS = {
    1: "map_lookup_elem",
    2: "map_update_elem",
    3: "map_delete_elem",
    5: "ktime_get_ns",
    8: "get_smp_processor_id",
    14: "get_current_pid_tgid",
    16: "get_current_comm",
    27: "get_stackid",
    35: "get_current_task",
    46: "get_socket_cookie",
    112: "probe_read_user",
    114: "probe_read_user_str",
    113: "probe_read_kernel",
    115: "probe_read_kernel_str",
    118: "jiffies64",
    130: "ringbuf_output",
    134: "ringbuf_query",
    158: "get_current_task_btf",
    164: "for_each_map_elem",
    137: "skc_to_tcp_sock",
    148: "copy_from_user",
    156: "task_storage_get",
    174: "get_attach_cookie",
    175: "task_pt_regs",
}
CALL = 0x85
INSTRUCTION = re.compile(r"^\s+\d+:\s+((?:[0-9a-f]{2}\s){8})", re.MULTILINE)
BUILT = sorted(OBJECTS.glob("*.bpf.o"))

objects = pytest.mark.parametrize("path", BUILT, ids=lambda path: path.name)


def objdump(*args):
    return subprocess.run(["llvm-objdump", *args], check=True, capture_output=True, text=True).stdout


def helpers_called(path):
    instructions = [bytes.fromhex(text) for text in INSTRUCTION.findall(objdump("-d", str(path)))]
    assert len(instructions) > 50
    calls = [each for each in instructions if each[0] == CALL]
    for call in calls:
        assert call[1] >> 4 in {0, 1}, "a kernel function: neither a helper nor a function of the object"
    return {int.from_bytes(call[4:], "little") for call in calls if call[1] >> 4 == 0}


def test_every_program_was_built():
    assert {path.name.partition(".")[0].partition("-")[0] for path in BUILT} == set(STEMS)


@objects
def test_no_program_calls_a_helper_that_writes_to_what_it_observes(path):
    called = helpers_called(path)
    assert called - HELPERS.keys() == set()
    assert called & {1, 2, 3}  # the disassembly was understood


def test_no_helper_is_allowed_that_nobody_calls():
    assert set().union(*map(helpers_called, BUILT)) == HELPERS.keys()


@objects
def test_no_program_calls_kernel_functions(path):
    """They would be undefined symbols: whatever is called is a helper, by number, or in the object."""
    symbols = objdump("-t", str(path)).splitlines()
    undefined = [line.split()[-1] for line in symbols if "*UND*" in line]
    assert set(undefined) <= {"*UND*"}


@objects
def test_programs_only_sit_where_nothing_can_be_changed(path):
    """No fmod_ret, lsm, tc, xdp, sockops or struct_ops: what those return decides something."""
    headers = objdump("-h", str(path)).splitlines()
    code = {line.split()[1] for line in headers if line.rstrip().endswith("TEXT")} - {".text"}
    assert code
    assert {name.partition("/")[0] for name in code} <= {
        *("tp_btf", "fentry", "fexit", "kprobe", "kretprobe"),
        *("uprobe", "uretprobe", "uprobe.s", "uretprobe.s"),
        *("syscall", "iter"),  # run by us
    }
