# SPDX-License-Identifier: Apache-2.0
"""The CUDA probe on programs that nvcc made: on a fake runtime, and on the real one without a driver."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from otelbpf.cuda import limit
from otelbpf.kernel import Host
from otelbpf.model import View
from otelbpf.probes.cuda import Cuda, CudaConfig
from otelbpf.probes.exchange import Exchange, ExchangeConfig
from tests.cuda import toolkit
from tests.probes.conftest import Tracing, unaccounted

pytestmark = pytest.mark.kernel

INTERNAL, SERVER = 1, 2
UNSET, ERROR = 0, 2
SCALE = "(anonymous namespace)::scale"


class Program:
    """A child that reads lines and prints lines."""

    def __init__(self, path, libraries=None, **env):
        env |= {"LD_LIBRARY_PATH": str(libraries or toolkit.fake_cudart())}
        self.process = subprocess.Popen(
            [path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **env}, text=True, bufsize=1
        )
        self.pid = self.process.pid

    def say(self, line=""):
        self.process.stdin.write(f"{line}\n")

    def ask(self, line=""):
        self.say(line)
        return self.process.stdout.readline().strip()

    def end(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def start():
    """start(path, FAKE_CUDA_…=…): run a program on the fake runtime, or on that of another folder."""
    started = []

    def program(*args, **kwargs):
        started.append(Program(*args, **kwargs))
        return started[-1]

    yield program
    for each in started:
        each.close()


@pytest.fixture
def trace():
    """trace(program, ...): select these; yields a Tracing. Checks that every event is accounted for."""

    @contextmanager
    def tracing(*programs, **config):
        with Host((), 2000) as host:
            for each in programs:
                host.select(each.pid)
            exchange = Exchange(ExchangeConfig(), host)
            try:
                cuda = Cuda(CudaConfig(**config), host)
                try:
                    seen = Tracing(host, exchange, cuda)
                    seen.cuda = cuda
                    yield seen
                    seen.finish()
                    assert not unaccounted(cuda.tally()), cuda.tally()
                    assert not any(cuda.tally().lost.values())
                finally:
                    cuda.close()
            finally:
                exchange.close()

    return tracing


def calls(spans):
    return [span for span in spans if span["cuda.api.name"]]


def work(port, numbers):
    """One keep-alive connection that asks for /task/N, one after the other."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as c:
        for n in numbers:
            c.sendall(f"GET /task/{n} HTTP/1.1\r\nHost: gpu\r\n\r\n".encode())
            assert c.recv(4096).startswith(b"HTTP/1.1 200")


# ---- under the request --------------------------------------------------------------------------


def test_a_launch_is_a_child_of_the_request_that_caused_it(start, trace):
    server = start(toolkit.program("server", "-O2"))
    with trace(server) as seen:
        work(int(server.ask()), [17])
        spans = seen.settle()
    (request,) = [span for span in spans if span.kind == SERVER]
    launch = next(span for span in spans if span.name == "cudaLaunchKernel vectorAdd")
    assert launch.kind == INTERNAL
    assert launch.status == UNSET
    assert (launch.trace_id, launch.parent_id) == (request.trace_id, request.span_id)
    assert request.start_ns <= launch.start_ns < launch.end_ns <= request.end_ns
    assert launch.resource == request.resource
    assert launch["cuda.stream.id"] > 2
    assert {k: v for k, v in launch.attributes.items() if k != "cuda.stream.id"} == {
        "cuda.api.name": "cudaLaunchKernel",
        "cuda.api.layer": "runtime",
        "cuda.kernel.name": "vectorAdd",
        "cuda.kernel.symbol": "_Z9vectorAddPKfS0_Pfi",
        "cuda.grid.x": 17,
        "cuda.grid.y": 2,
        "cuda.grid.z": 3,
        "cuda.block.x": 32,
        "cuda.block.y": 4,
        "cuda.block.z": 1,
        "cuda.shared_memory.dynamic": 512,
        "cuda.timing.source": "host_call",
        "otelbpf.correlation.method": "thread",
    }


PER_REQUEST = Counter(
    {
        ("cudaLaunchKernel vectorAdd", None): 4,
        (f"cudaLaunchKernel {SCALE}", None): 2,
        ("cudaLaunchKernel model::softmax", None): 1,
        ("cudaMemcpyAsync", 1024): 1,
        ("cudaMemcpyAsync", 512): 1,
        ("cudaStreamSynchronize", None): 1,
        ("cudaMalloc", 1024): 1,
        ("cudaMalloc", 2048): 1,
        ("cudaFree", 1024): 1,
        ("cudaFree", 2048): 1,
    }
)


def test_of_a_thousand_requests_on_eight_threads_none_is_given_the_calls_of_another(start, trace):
    server = start(toolkit.program("server", "-O2"))
    with trace(server) as seen, ThreadPoolExecutor(8) as pool:
        port = int(server.ask())
        clients = [pool.submit(work, port, range(1 + i * 125, 126 + i * 125)) for i in range(8)]
        while not all(each.done() for each in clients):
            seen.settle(0.05)
        for each in clients:
            each.result()
        spans = seen.settle(0.5)
    requests = {span.span_id: span for span in spans if span.kind == SERVER}
    assert len(requests) == 1000
    children = {span_id: [] for span_id in requests}
    for span in calls(spans):
        children[span.parent_id].append(span)
    for span_id, request in requests.items():
        mine = children[span_id]
        assert Counter((span.name, span["cuda.bytes"]) for span in mine) == PER_REQUEST
        assert {span.trace_id for span in mine} == {request.trace_id}
        # each request asked for a grid of its own
        grids = {span["cuda.grid.x"] for span in mine if span["cuda.kernel.name"] == "vectorAdd"}
        assert grids == {int(request["url.path"].rpartition("/")[2])}


# ---- names --------------------------------------------------------------------------------------

LAUNCHED = Counter({"vectorAdd": 1, "(anonymous namespace)::hidden": 2, "model::softmax": 1})
SYMBOLS = {"_Z9vectorAddPKfS0_Pfi", "_ZN5model7softmaxIdEEvNS_5layerIT_EE"}
LEGACY = ("-D__NV_LEGACY_LAUNCH", "-Xcompiler", "-D__NV_LEGACY_LAUNCH")  # the launch code of CUDA 12 and before


def flavour(name, *flags, cudart="shared", strip=False):
    """launch.cu as it may come; the runtime is the fake one only if it is shared."""
    path = toolkit.program(f"launch-{name}", *flags, source="launch", cudart=cudart)
    return toolkit.stripped(path) if strip else path


FLAVOURS = {
    "shared": lambda: flavour("shared"),
    "shared, optimised, stripped": lambda: flavour("optimised", "-O2", strip=True),
    "at a fixed address": lambda: flavour("fixed", "-O2", "-Xcompiler", "-no-pie", "-Xlinker", "-no-pie"),
    "fixed, stripped": lambda: flavour("fixed", "-O2", "-Xcompiler", "-no-pie", "-Xlinker", "-no-pie", strip=True),
    "a stream per thread": lambda: flavour("threads", "-default-stream=per-thread"),
    "as before CUDA 13": lambda: flavour("legacy", "-O2", *LEGACY),
    "before CUDA 13, stripped": lambda: flavour("legacy", "-O2", *LEGACY, strip=True),
    "compressed": lambda: flavour("compressed", "-Xfatbin", "-compress-all"),
    "static": lambda: flavour("static", "-O2", cudart="static"),
    "static, not optimised": lambda: flavour("static-O0", "-O0", cudart="static"),
    "static, stripped": lambda: flavour("static", "-O2", cudart="static", strip=True),
    "static, not optimised, stripped": lambda: flavour("static-O0", "-O0", cudart="static", strip=True),
    "static, fixed, stripped": lambda: flavour("sf", "-O2", "-Xcompiler", "-no-pie", cudart="static", strip=True),
    "static, before CUDA 13, stripped": lambda: flavour("sl", "-O2", *LEGACY, cudart="static", strip=True),
    "static, a stream per thread": lambda: flavour("st", "-default-stream=per-thread", cudart="static"),
}
flavours = pytest.mark.parametrize("make", FLAVOURS.values(), ids=FLAVOURS)


def check_names(spans, n):
    launches = [span for span in spans if span["cuda.kernel.name"] or "Launch" in span.name]
    assert Counter(span["cuda.kernel.name"] for span in launches) == Counter({k: n * v for k, v in LAUNCHED.items()})
    symbols = {span["cuda.kernel.symbol"] for span in launches}
    assert symbols > SYMBOLS
    (hidden,) = symbols - SYMBOLS
    assert hidden.startswith("_ZN")
    assert "hiddenILi3EfEEvP" in hidden
    assert {span["cuda.api.name"] for span in launches} == {"cudaLaunchKernel"}
    first = next(span for span in launches if span["cuda.kernel.name"] == "vectorAdd")
    grid = {key: value for key, value in first.attributes.items() if "grid" in key or "block" in key}
    assert grid == dict(
        zip(
            [f"cuda.{what}.{axis}" for what in ("grid", "block") for axis in "xyz"],
            (11, 12, 13, 21, 22, 2),
            strict=True,
        )
    )
    assert first["cuda.shared_memory.dynamic"] == 4096


@flavours
def test_kernels_have_names_however_they_were_built(start, trace, make):
    program = start(make())
    with trace(program, batch_over=1000, spans_per_s=1000) as seen:
        program.ask("go 3")
        check_names(seen.settle(), 3)


@flavours
def test_kernels_have_names_when_they_were_launched_before_we_came(start, trace, make):
    program = start(make())
    program.ask("go 2")  # handles are asked for once, with the first launch
    with trace(program, batch_over=1000, spans_per_s=1000) as seen:
        program.ask("go 3")
        check_names(seen.settle(), 3)


# ---- metrics ------------------------------------------------------------------------------------


def metrics(seen):
    """Points by name: {(attribute values, sorted by key): value}; of a histogram (count, sum)."""
    found = {}
    for points in seen.cuda.points(1, View()):
        series = found.setdefault(points.name, {})
        for i, attributes in enumerate(points.attributes):
            key = tuple(value for _, value in sorted(attributes.items()))
            if hasattr(points, "values"):
                series[key] = int(points.values[i])
            else:
                series[key] = int(points.counts[i].sum()), float(points.sums[i])
    return found


def test_metrics_count_everything_whatever_became_a_span(start, trace):
    program = start(toolkit.program("launch-optimised", "-O2", source="launch"))
    with trace(program, spans_per_s=1) as seen:
        program.ask("go 1009")
        spans = seen.settle()
        found = metrics(seen)
        assert len(spans) <= 2
        assert seen.cuda.tally().omitted["rate"] > 0
        assert found["gpu.cuda.kernel.launch.calls"] == {
            ("vectorAdd",): 1009,
            ("(anonymous namespace)::hidden",): 2018,
            ("model::softmax",): 1009,
        }
        assert found["gpu.cuda.device.synchronize.calls"] == {(): 1}
        launches, seconds = found["gpu.cuda.call.duration"]["cudaLaunchKernel",]
        assert launches == 4 * 1009
        assert 0 < seconds < 10
        assert "gpu.cuda.errors" not in found
        program.end()
        seen.settle()
        assert metrics(seen)["gpu.cuda.kernel.launch.calls"] == found["gpu.cuda.kernel.launch.calls"]


def test_bytes_are_counted_by_what_was_done_with_them(start, trace):
    server = start(toolkit.program("server", "-O2"))
    with trace(server) as seen:
        work(int(server.ask()), range(7))
        seen.settle()
        found = metrics(seen)
    assert found["gpu.cuda.memory.allocations"] == {("device",): 7 * 3072}
    assert found["gpu.cuda.memory.free.bytes"] == {(): 7 * 3072}
    assert found["gpu.cuda.memory.copies"] == {("HostToDevice",): (7, 7 * 1024.0), ("DeviceToHost",): (7, 7 * 512.0)}
    assert found["gpu.cuda.stream.synchronize.calls"] == {(): 7}
    assert found["gpu.cuda.memory.live"] == {("device",): 0}


# ---- errors -------------------------------------------------------------------------------------


def test_a_failed_call_says_with_what_and_where(start, trace):
    program = start(
        toolkit.program("fail", "-O2", "-Xcompiler", "-fno-omit-frame-pointer"), FAKE_CUDA_FAIL="cudaLaunchKernel:719"
    )
    with trace(program) as seen:
        program.ask("go 1")
        spans = seen.settle()
        found = metrics(seen)
    (failed,) = [span for span in spans if span.status == ERROR]
    assert failed.name == "cudaLaunchKernel doomed"
    assert failed["error.type"] == "cudaErrorLaunchFailure"
    assert failed["cuda.error.code"] == 719
    functions = [line.partition("+")[0] for line in failed["code.stacktrace"].splitlines()]
    assert [each for each in functions if each.startswith("train")] == ["train_step", "train"]
    assert found["gpu.cuda.errors"] == {("cudaLaunchKernel", "cudaErrorLaunchFailure"): 1}
    assert not [span for span in spans if span["code.stacktrace"] and span.status != ERROR]


REAL = {
    "shared": lambda: (toolkit.program("fail-shared", source="fail"), toolkit.libraries()),
    "static": lambda: (toolkit.program("fail-static", source="fail", cudart="static"), None),
    "a stream per thread": lambda: (
        toolkit.program("fail-threads", "-default-stream=per-thread", source="fail", cudart="static"),
        None,
    ),
}


@pytest.mark.parametrize("make", REAL.values(), ids=REAL)
def test_the_real_runtime_without_a_driver_fails_in_every_call(start, trace, make):
    path, libraries = make()
    program = start(path, libraries=libraries or path.parent)
    with trace(program) as seen:
        program.ask("go 3")
        spans = seen.settle()
    assert Counter((span.name, span["error.type"]) for span in spans) == Counter(
        {
            ("cudaLaunchKernel doomed", "cudaErrorInsufficientDriver"): 3,
            ("cudaStreamSynchronize", "cudaErrorInsufficientDriver"): 3,
        }
    )
    assert {span.status for span in spans} == {ERROR}


def test_failed_calls_come_first_when_there_are_too_many(start, trace):
    program = start(toolkit.program("fail"), FAKE_CUDA_FAIL="cudaStreamSynchronize:700")
    with trace(program, spans_per_s=5, batch_over=1000) as seen:
        program.ask("go 5")
        spans = seen.settle()
    assert Counter(span.name for span in spans) == {"cudaStreamSynchronize": 5}


# ---- the driver API -----------------------------------------------------------------------------


DRIVER_CALLS = [
    ("cuMemAlloc", 96, None),
    ("cuMemCreate", 2 << 20, None),
    ("cuMemcpyHtoD", 96, None),
    ("cuLaunchKernel triton_poi_fused_add_0", None, None),
    ("cuLaunchKernelEx jit::kernel", None, None),
    ("cuLaunchKernel jit::kernel", None, None),
    ("cuMemcpyDtoHAsync", 48, None),
    ("cuStreamSynchronize", None, None),
    ("cuCtxSynchronize", None, None),
    ("cuMemAlloc", 2 << 40, "cudaErrorMemoryAllocation"),
    ("cuMemRelease", 2 << 20, None),
]


def test_the_driver_api_has_names_sizes_and_errors(start, trace):
    program = start(toolkit.driver_program(), libraries=toolkit.fake_cuda())
    with trace(program) as seen:
        program.ask()
        spans = seen.settle()
        found = metrics(seen)
    shown = sorted(((span.name, span["cuda.bytes"], span["error.type"]) for span in calls(spans)), key=str)
    assert shown == sorted(DRIVER_CALLS, key=str)
    plain = next(span for span in spans if "triton" in span.name)
    with_config = next(span for span in spans if "Ex" in span.name)
    for span, grid, block, shared, stream in (
        (plain, (11, 12, 13), (21, 22, 23), 4096, 0x77),
        (with_config, (1, 2, 3), (4, 5, 6), 777, 0x88),
    ):
        assert tuple(span[f"cuda.grid.{axis}"] for axis in "xyz") == grid
        assert tuple(span[f"cuda.block.{axis}"] for axis in "xyz") == block
        assert (span["cuda.shared_memory.dynamic"], span["cuda.stream.id"]) == (shared, stream)
        assert span["cuda.api.layer"] == "driver"
    assert found["gpu.cuda.memory.live"] == {("device",): 96}
    assert found["gpu.cuda.memory.copies"] == {("HostToDevice",): (1, 96.0), ("DeviceToHost",): (1, 48.0)}


# ---- memory -------------------------------------------------------------------------------------


def test_a_leak_is_reported_with_the_call_that_allocates(start, trace, caplog):
    program = start(toolkit.program("leak", "-O2", "-Xcompiler", "-fno-omit-frame-pointer"))
    with trace(program, leak_window_s=0.1) as seen:
        for _ in range(12):
            program.ask("both 5")
            seen.settle(0.1)
        found = metrics(seen)
    ((site, api), growth) = next(iter(found["gpu.cuda.memory.leak.growth"].items()))
    assert len(found["gpu.cuda.memory.leak.growth"]) == 1
    assert site.startswith("leaky_allocation+")
    assert api == "cudaMalloc"
    assert 0 < growth <= 60_000
    assert growth % 1000 == 0
    assert found["gpu.cuda.memory.live"] == {("device",): 60_000}
    (said,) = [record.getMessage() for record in caplog.records if "leak" in record.getMessage()]
    assert f"process {program.pid} seems to leak" in said
    assert "allocations of cudaMalloc called from leaky_allocation+" in said


def test_what_another_thread_frees_is_no_leak(start, trace, caplog):
    program = start(toolkit.program("leak", "-O2", "-Xcompiler", "-fno-omit-frame-pointer"))
    with trace(program, leak_window_s=0.1) as seen:
        for _ in range(12):
            program.ask("clean 5")
            seen.settle(0.1)
        found = metrics(seen)
    assert "gpu.cuda.memory.leak.growth" not in found
    assert found["gpu.cuda.memory.live"] == {("device",): 0}
    assert "leak" not in caplog.text


# ---- who uses what ------------------------------------------------------------------------------


def launches(seen):
    return Counter(span["cuda.kernel.name"] for span in seen.settle() if "cudaLaunchKernel" in span.name)


def until(seen, condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        seen.settle(0.05)
    assert condition()


@pytest.mark.parametrize("cudart", ["shared", "static"])
def test_a_library_that_is_loaded_later_is_found_when_it_is(start, trace, cudart):
    flags = ("-shared", "-Xcompiler", "-fPIC", "-O2")
    plugin = toolkit.program(f"plugin-{cudart}.so", *flags, source="plugin", cudart=cudart)
    program = start(toolkit.c_program("loader", "-ldl"))
    with trace(program) as seen:
        seen.settle()
        assert not seen.cuda.libraries.attached
        assert program.ask(f"load {plugin}") == "loaded"
        until(seen, seen.cuda.libraries.busy)
        program.ask("run 3")
        assert launches(seen) == {"(anonymous namespace)::plugged": 3}


def test_a_program_that_is_started_later_is_found_when_it_is(start, trace, tmp_path):
    shell = tmp_path / "shell"
    shell.write_text(f"#!/bin/sh\nread go\n{flavour('shared')}\n")
    shell.chmod(0o755)
    program = start(shell)
    with trace(program) as seen:
        program.say()
        until(seen, seen.cuda.libraries.busy)
        program.ask("go 2")
        assert launches(seen)["vectorAdd"] == 2


def test_a_forked_child_has_the_names_of_its_parent(start, trace):
    program = start(flavour("shared"))
    with trace(program) as seen:
        program.ask("go 1")
        program.ask("fork 2")
        assert launches(seen)["vectorAdd"] == 3
        assert {span.resource["process.pid"] for span in seen.spans} > {program.pid}
        until(seen, lambda: len(metrics(seen)["gpu.cuda.kernel.launch.calls"]) == 3)


def test_several_runtimes_by_any_name_at_once(start, trace, tmp_path):
    hashed = tmp_path / "libcudart-6d56b25a.so.13"
    shutil.copy(toolkit.fake_cudart() / "libcudart.so.13", hashed)
    (tmp_path / "libcudart.so.13").symlink_to(hashed)
    programs = [start(flavour("shared"), libraries=folder) for folder in (tmp_path, toolkit.fake_cudart())]
    with trace(*programs) as seen:
        assert [each.provider.mode for each in seen.cuda.libraries.attached.values()].count("runtime") == 2
        for program in programs:
            program.ask("go 1")
        assert launches(seen)["vectorAdd"] == 2


def test_a_library_that_was_replaced_is_the_one_that_is_mapped(start, trace, tmp_path):
    library = tmp_path / "libcudart.so.13"
    shutil.copy(toolkit.fake_cudart() / "libcudart.so.13", library)
    program = start(flavour("shared"), libraries=tmp_path)
    program.ask("go 1")
    library.unlink()
    library.write_bytes(b"something else")
    with trace(program) as seen:
        program.ask("go 3")
        assert launches(seen)["vectorAdd"] == 3


def test_a_library_in_another_mount_namespace_is_found(start, trace, tmp_path):
    script = tmp_path / "inside"
    fake = toolkit.fake_cudart() / "libcudart.so.13"
    script.write_text(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -c '"
        f"mount -t tmpfs none {tmp_path} && cp {fake} {tmp_path} && exec {flavour('shared')}'\n"
    )
    script.chmod(0o755)
    program = start(script, libraries=tmp_path)
    assert program.ask("go 1") == "0"
    with trace(program) as seen:
        program.ask("go 2")
        assert launches(seen)["vectorAdd"] == 2


def test_probes_come_off_with_the_last_user(start, trace):
    programs = [start(flavour("shared")) for _ in range(2)]
    with trace(*programs) as seen:
        assert seen.cuda.libraries.attached
        programs[0].end()
        seen.settle()
        programs[1].ask("go 1")
        assert launches(seen)["vectorAdd"] == 1
        programs[1].end()
        until(seen, lambda: not seen.cuda.libraries.busy())
        assert not seen.cuda.libraries.users


def test_processes_that_end_while_we_attach_do_no_harm(start, trace):
    programs = [start(flavour("shared")) for _ in range(5)]
    for each in programs[:4]:
        each.process.kill()  # not waited for: zombies are selected, too
    with trace(*programs) as seen:
        programs[4].ask("go 1")
        assert launches(seen)["vectorAdd"] == 1


# ---- bad input, and rare calls ------------------------------------------------------------------


def odd(start):
    return start(toolkit.c_program("odd", str(toolkit.fake_cudart() / "libcudart.so.13")))


def test_absurd_arguments_are_reported_as_they_are(start, trace):
    program = odd(start)
    with trace(program) as seen:
        program.ask("bad")
        spans = seen.settle()
        metrics(seen)
    launch = next(span for span in spans if span.name == "cudaLaunchKernel")
    assert launch["cuda.grid.x"] == launch["cuda.block.z"] == 2**32 - 1
    assert launch["cuda.shared_memory.dynamic"] == 2**32 - 1
    assert launch["cuda.kernel.name"] is None
    copies = {(span["cuda.bytes"], span["cuda.memcpy.kind"]) for span in spans if span.name == "cudaMemcpy"}
    assert copies == {(5, None), (2**63 - 1, "HostToDevice")}


def test_rare_calls(start, trace):
    program = odd(start)
    with trace(program) as seen:
        program.ask("rare")
        spans = {span.name + ("*" if span["cuda.graph.captured"] else ""): span for span in seen.settle()}
        found = metrics(seen)
    assert spans["cudaLaunchKernelExC"]["cuda.grid.x"] == 3
    assert spans["cudaLaunchKernelExC"]["cuda.shared_memory.dynamic"] == 9
    assert spans["cudaLaunchKernelExC"]["cuda.stream.id"] == 0x99
    assert spans["cudaLaunchCooperativeKernel"]["cuda.stream.id"] == 0x1234
    assert spans["cudaLaunchCooperativeKernel"]["cuda.device.index"] == 3
    assert spans["cudaMallocPitch"]["cuda.bytes"] == spans["cudaFree"]["cuda.bytes"] == 512 * 7
    assert spans["cudaMemcpy2DAsync"]["cuda.bytes"] == 700
    assert spans["cudaMemcpyPeerAsync"]["cuda.memcpy.kind"] == "DeviceToDevice"
    assert spans["cudaLaunchKernel*"]["cuda.stream.id"] == 0x1234
    assert spans["cudaGraphLaunch"]["cuda.stream.id"] == 0x1234
    assert spans["cudaEventElapsedTime"]["cuda.event.elapsed_time"] == 0.0125
    assert spans["cudaEventElapsedTime"]["cuda.timing.source"] == "event"
    assert found["gpu.cuda.kernel.launch.calls"] == {(): 2}  # what is captured is not carried out
    assert found["gpu.cuda.graph.launch.calls"] == {(): 1}
    assert found["gpu.cuda.memset.bytes"] == {(): 700}
    assert "gpu.cuda.errors" not in found  # not being ready is none


def test_every_launch_of_many_is_counted(start, trace):
    program = start(toolkit.c_program("busy", str(toolkit.fake_cudart() / "libcudart.so.13")))
    with trace(program) as seen, ThreadPoolExecutor(1) as pool:
        said = pool.submit(program.ask, "100 1009 1000")
        while not said.done():
            seen.settle(0.2)
        spans = seen.settle()
        found = metrics(seen)
        omitted = seen.cuda.tally().omitted["rate"]
    n = int(said.result())
    assert found["gpu.cuda.kernel.launch.calls"] == {(): n}
    assert {span.name for span in spans} >= {"cuda.batch"}
    told = sum(span["cuda.batch.calls"] or 1 for span in spans)
    assert told + omitted == n + 100  # and the synchronisations


# ---- cost and coverage --------------------------------------------------------------------------


def test_probes_that_cost_too_much_come_off_and_are_put_on_again(start, trace, caplog, monkeypatch):
    monkeypatch.setattr(limit, "SPAN_NS", 50_000_000)
    program = start(toolkit.c_program("busy", str(toolkit.fake_cudart() / "libcudart.so.13")))
    with trace(program, max_cpu=0.0001) as seen:
        seen.cuda.limiter._pause_ns = 200_000_000
        seen.tick()
        program.ask("20 500 5000")
        until(seen, lambda: seen.cuda.limiter.paused)
        before = metrics(seen)["gpu.cuda.kernel.launch.calls"][()]
        program.ask("1 101 0")
        assert metrics(seen)["gpu.cuda.kernel.launch.calls"] == {(): before}
        until(seen, lambda: not seen.cuda.limiter.paused)
        program.ask("1 7 0")
        assert metrics(seen)["gpu.cuda.kernel.launch.calls"] == {(): before + 7}
    assert "more than probes.cuda.max_cpu allows: off for" in caplog.text
    assert "the probes are on again" in caplog.text


def test_what_cannot_be_covered_is_said(start, trace, caplog):
    programs = [start(flavour("static", "-O2", cudart="static", strip=True)), start(flavour("shared"))]
    with trace(*programs) as seen:
        modes = {
            (resource.attributes["process.pid"], attributes["otelbpf.cuda.mode"])
            for points in seen.cuda.points(1, View())
            if points.name == "otelbpf.cuda.processes"
            for resource, attributes in zip(points.resources, points.attributes, strict=True)
        }
    stripped, shared = (each.pid for each in programs)
    assert modes == {(stripped, "stripped"), (shared, "runtime"), (shared, "kernels")}
    assert f"of process {stripped} has CUDA linked in and no symbols: only launches are seen" in caplog.text


def test_many_calls_of_a_request_become_one_span(start, trace):
    server = start(toolkit.program("server", "-O2"))
    with trace(server, batch_over=5) as seen:
        work(int(server.ask()), [5])
        spans = seen.settle()
    (request,) = [span for span in spans if span.kind == SERVER]
    (batch,) = [span for span in spans if span.name == "cuda.batch" and span["cuda.batch.launches"]]
    assert batch.parent_id == request.span_id
    others = [span for span in spans if span.parent_id == request.span_id and "Launch" in span.name]
    assert batch["cuda.batch.launches"] + len(others) == 7
    assert batch["cuda.batch.bytes"] in {1024 + 512, 1024, 512}  # the slowest call has a span of its own
    assert request.start_ns <= batch.start_ns < batch.end_ns <= request.end_ns
    assert sum(int(each.rpartition("=")[2]) for each in batch["cuda.batch.kernels"]) == batch["cuda.batch.launches"]
