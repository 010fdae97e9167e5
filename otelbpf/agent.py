# SPDX-License-Identifier: Apache-2.0
"""The hallway: every event walks kernel → ring → columns → map → encode → outputs here."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from selectors import EVENT_READ, DefaultSelector
from threading import Event
from typing import Any

from otelbpf import __version__, health, telemetry
from otelbpf.command import Command
from otelbpf.config import OUTPUTS, Config, adopted, changed, host_and_port, scraped_at
from otelbpf.errors import ConfigError, OtelBpfError
from otelbpf.health import Doors, Questions
from otelbpf.identity import agent_resource
from otelbpf.kernel import Host
from otelbpf.model import NumberPoints, Points, Temporality, View
from otelbpf.native import features, privileges
from otelbpf.native.object import enable_stats, program_times, trim
from otelbpf.otlp.encode import SpanEncoder
from otelbpf.otlp.metrics import encode_metrics
from otelbpf.otlp.output import OtlpOutput, Output, Scraped
from otelbpf.probe import Context, Probe, Running, Sampled, Tally
from otelbpf.probes import PROBES
from otelbpf.record import RecordedHost
from otelbpf.selection import Rules
from otelbpf.service import Notify, RuntimeDirectory
from otelbpf.tape import Tape

log = logging.getLogger(__name__)

DRAIN_S = 5.0
"""After SIGTERM everything seen before it is delivered within this time, or counted as dropped."""
CLOSE_S = 2.0
"""What of it the outputs get to deliver what is encoded."""
MIN_TICK_S = 0.02
"""Between two ticks, however full the rings are: smaller batches cost more than they help."""
FIRST_TICK_S = 0.1
TARGETS = ("export.traces.", "export.metrics.")
COMMAND_GRACE_S = 3.0
"""How long a traced command may take to end after the SIGTERM that we pass on."""


def run(
    config: Config,
    argv: Sequence[str] | None,
    reread: Callable[[], Config] | None = None,
    recording: Tape | None = None,
) -> int:
    """Trace what *config* selects, and *argv*, a command to start, until a signal or the command's end.

    Args:
        reread: Makes the configuration anew, for SIGHUP; None: SIGHUP ends the agent as SIGTERM does.
        recording: Everything that the probes are told goes there, too.

    Returns:
        The command's exit status when it ended by itself, else 0.

    Raises:
        OtelBpfError: Nothing could be traced; nothing stays attached.
    """
    features.require()
    with ExitStack() as stack:
        notify = stack.enter_context(closing(Notify(os.environ)))
        # Before any thread exists: a forked child has only one.
        command = stack.enter_context(closing(Command(argv))) if argv else None
        os.umask(0o077)
        directory = _directory(config, stack)
        stopping = Event()
        signals = stack.enter_context(_signals(stopping, reload=reread is not None))
        if config.status.program_time:
            stack.callback(os.close, enable_stats())
        sockets = _sockets(config, directory, stack)
        early = [each for each in config.outputs if each.startswith(("file:", "prometheus"))]
        opened = {where: open_output(where, config, stack) for where in early}
        rules = Rules(config.select)
        host = stack.enter_context(Host((), config.metrics.max_series, rules))
        host.stopping = stopping.is_set
        host.samplers = rules.samplers(config.sampling)
        host.views = views(config)
        for rule in rules.numbered:
            for pid in rule.pids:
                host.select(pid, rule.number)
        if command:
            host.select(command.pid)
        host.scan()
        host.follow_sockets = any(probe.sockets for probe in enabled(config))
        context: Any = RecordedHost(host, recording) if recording else host
        running = open_probes(enabled(config), config, context, stack)
        outputs = [
            opened.get(where) or privileges.apart(partial(open_output, where, config, stack))
            for where in config.outputs
        ]
        privileges.keep(
            [*privileges.LOOKING, *(each for probe in enabled(config) for each in probe.keeps)],
            lambda: [host.tally(), *(each.tally() for each in running.values())],
        )
        _serve(outputs)
        gc.freeze()  # what is there now stays: no collection needs to look at it again
        trim()
        agent = Agent(config, context, running, outputs)
        if recording:
            recording.answer("agent", (agent.resource, agent.start_ns))
        agent.notify, agent.reread, agent.argv = notify, reread, argv
        if any(sockets):
            stack.callback(privileges.apart(partial(Doors, agent.questions, *sockets)).close)
        to = [_where(config)] if config.outputs else []
        to += [f"the recording {recording.path}"] if recording else []
        said = f"tracing {_what(config, argv)}; to {', '.join(to)}"
        _say(said)
        notify.ready(said)
        if command:
            command.start()
        status = agent.loop(signals, command)
        notify.stopping()
        agent.finish()
        if recording:
            recording.end()
            _say(f"recorded {recording.size} bytes; look at them with: otelbpf replay {recording.path}")
        return status


def enabled(config: Config) -> list[Probe]:
    return [probe for probe in PROBES if getattr(config.probes[probe.name], "enabled", True)]


def open_probes(probes: Iterable[Probe], config: Config, context: Context, stack: ExitStack) -> dict[str, Running]:
    """Load and attach *probes*; they are closed with *stack*."""
    return {
        probe.name: stack.enter_context(closing(probe.open(config.probes[probe.name], context))) for probe in probes
    }


class Agent:
    """Drains, encodes, exports; owns no kernel resource."""

    def __init__(self, config: Config, host: Host, running: Mapping[str, Running], outputs: Sequence[Output]) -> None:
        self.config, self.host, self.running, self.outputs = config, host, running, outputs
        self.encoder = SpanEncoder(config.export.max_request_bytes)
        self.resource = agent_resource()
        self.start_ns = time.time_ns()
        self.deltas = telemetry.Deltas() if config.metrics.temporality == "delta" else None
        self.too_late = 0
        self.argv: Sequence[str] | None = None
        self.questions = Questions()
        self.notify = Notify({})
        self.reread: Callable[[], Config] | None = None

    def loop(self, signals: socket.socket, command: Command | None) -> int:
        """Tick until a signal came or the command ended; return the exit status."""
        stopping_s: float | None = None
        next_metrics_s = time.monotonic()  # the first at once: it shows whether they get through
        for numbers in self._ticks(signals, command):
            self.tick()
            self.answer_scrapes()
            now_s = time.monotonic()
            if now_s >= next_metrics_s:
                next_metrics_s = now_s + self.config.metrics.interval_s
                self.export_metrics()
            self.questions.tick(self.report)
            self.notify.alive(now_s)
            if self.reread and signal.SIGHUP in numbers:
                self.reload(self.reread)
                next_metrics_s = min(next_metrics_s, now_s + self.config.metrics.interval_s)
            number = next((each for each in numbers if not (self.reread and each == signal.SIGHUP)), 0)
            if number and not command:
                return 0
            if command and command.poll() is not None:
                return 0 if stopping_s else command.status or 0
            if command and number:
                stopping_s = stopping_s or now_s + COMMAND_GRACE_S
                # Many programs take a second Ctrl-C for "at once, without cleaning up".
                if number != signal.SIGINT or not command.hears_terminal():
                    command.signal(number)
            if command and stopping_s and now_s >= stopping_s:
                log.warning(
                    "command %r (pid %d) still runs %g s after it was told to stop; leaving it",
                    command.argv[0],
                    command.pid,
                    COMMAND_GRACE_S,
                )
                return 0
        raise AssertionError

    def _ticks(self, signals: socket.socket, command: Command | None) -> Iterator[bytes]:
        """Wait for each tick; yield the numbers of the signals that came meanwhile."""
        with DefaultSelector() as asked, DefaultSelector() as waiting:
            for selector in (asked, waiting):
                selector.register(signals, EVENT_READ)
                if command:
                    selector.register(command.fd, EVENT_READ)
            for ring in (*self.host.rings, *(each for probe in self.running.values() for each in probe.rings)):
                waiting.register(ring, EVENT_READ)  # over half full, or urgent: an early tick
            wait_s = FIRST_TICK_S  # who has just started it is waiting for the first spans
            while True:
                next_s = time.monotonic() + min(wait_s, self.config.tick_s)
                wait_s = self.config.tick_s
                # A ring that woke us once stays readable while it holds anything.
                ready = asked.select(min(MIN_TICK_S, self.config.tick_s))
                ready = ready or waiting.select(max(0.0, next_s - time.monotonic()))
                yield signals.recv(64) if any(key.fileobj is signals for key, _ in ready) else b""

    def tick(self, *, last: bool = False, until_s: float = math.inf) -> None:
        """Drain and export once; spans that are not encoded by *until_s* (monotonic) are counted as dropped."""
        self.host.tick(last=last)
        for probe in self.running.values():
            for batch in probe.tick(last=last):
                if time.monotonic() > until_s:
                    self.too_late += len(batch)
                    continue
                for request, spans in self.encoder.encode(batch):
                    for output in self.outputs:
                        output.traces(request, spans)

    def export_metrics(self) -> None:
        # Asked even if nobody is told: processes that are gone are forgotten then.
        points, own = self._points(self.host.views[0], self.host.begin_export())
        pushed = [output for output in self.outputs if not isinstance(output, Scraped)]
        if not pushed:
            return
        own = self.deltas.of(own) if self.deltas else own
        for request, count in encode_metrics([*points, *own], self.config.export.max_request_bytes):
            for output in pushed:
                output.metrics(request, count)

    def answer_scrapes(self) -> None:
        for output in self.outputs:
            if isinstance(output, Scraped) and output.asked():
                points, own = self._points(self.host.views[-1], time.time_ns())
                output.answer([*points, *own])

    def _points(self, view: View, now_ns: int) -> tuple[list[Points], list[NumberPoints]]:
        """The probes' metrics, and the agent's own."""
        points = [each for probe in self.running.values() for each in probe.points(now_ns, view)]
        return points, telemetry.points(self.resource, self._account(), self.start_ns, now_ns)

    def _account(self) -> telemetry.Account:
        otlp = next((output for output in self.outputs if isinstance(output, OtlpOutput)), None)
        return telemetry.Account(
            self.tallies(),
            otlp.counters if otlp else None,
            self.config.export,
            telemetry.usage(),
            program_times() if self.config.status.program_time else {},
        )

    def report(self) -> dict[str, Any]:
        """What `otelbpf status` and the health endpoint tell."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": (time.time_ns() - self.start_ns) / 1e9,
            "tracing": _what(self.config, self.argv),
            "to": _where(self.config),
            "reasons": [trouble for output in self.outputs for trouble in output.trouble()],
            "capabilities": privileges.names(privileges.effective()),
            **telemetry.report(self._account()),
        }

    def reload(self, reread: Callable[[], Config]) -> None:
        """Take over what changed in the configuration and may change while we run; a bad one changes nothing."""
        self.notify.reloading()
        try:
            new = reread()
            keys = changed(self.config, new)
            self._retarget(keys, new)  # first: it may refuse a file that the new one names
        except OtelBpfError as e:
            _say(f"reload: {e}; going on as before")
        else:
            self._resample(keys, new)
            taken = [key for key in keys if self._take(key, new)]
            left = [key for key in keys if key not in taken]
            self.config = adopted(self.config, new, taken)
            said = [f"now as the file says: {', '.join(taken)}"] if taken else []
            said += [f"only after a restart: {', '.join(left)}"] if left else []
            _say(f"reload: {'; '.join(said) or 'nothing has changed'}")
        self.notify.ready(f"tracing {_what(self.config, self.argv)}; to {_where(self.config)}")

    def _retarget(self, keys: Iterable[str], new: Config) -> None:
        if any(key.startswith(TARGETS) for key in keys):
            for output in self.outputs:
                if isinstance(output, OtlpOutput):
                    privileges.apart(partial(output.retarget, new.export))

    def _resample(self, keys: Iterable[str], new: Config) -> None:
        if any(key.startswith("sampling.") for key in keys):
            self.host.samplers = self.host.rules.samplers(new.sampling)
            for probe in self.running.values():
                if isinstance(probe, Sampled):
                    probe.resample()

    def _take(self, key: str, new: Config) -> bool:
        """Apply one changed key; False if that takes a restart."""
        match key.split("."):
            case ["tick_s"] | ["metrics", "interval_s"]:
                return True  # looked up each time
            case ["sampling", *_] | ["export", "traces" | "metrics", _]:
                return True  # done, all of them at once
            case ["select", name]:
                return self.host.reselect(name, new.select)
            case ["probes", probe, name]:
                take = next(each.live.get(name) for each in PROBES if each.name == probe)
                if take:
                    take(self.running[probe], getattr(new.probes[probe], name))
                return take is not None
        return False

    def tallies(self) -> dict[str, Tally]:
        return {"process": self.host.tally()} | {name: probe.tally() for name, probe in self.running.items()}

    def finish(self) -> None:
        """Deliver everything seen so far, then say what became of it."""
        deadline_s = time.monotonic() + DRAIN_S
        self.tick(last=True, until_s=deadline_s - CLOSE_S)
        self.export_metrics()
        for output in self.outputs:
            output.close(max(0.0, deadline_s - time.monotonic()))
        _say("; ".join(["stopped", *self.account()]))

    def account(self) -> list[str]:
        """What became of every event, and of the spans."""
        said = []
        for name, tally in self.tallies().items():
            losses = {"malformed": tally.malformed} | {f"lost ({reason})": n for reason, n in tally.lost.items()}
            losses |= {f"not covered ({kind})": n for kind, n in tally.uncovered.items()}
            counts = [f"{tally.seen} events seen", *(f"{n} {what}" for what, n in losses.items() if n)]
            said.append(f"{name}: {', '.join(counts)}")
        if self.too_late:
            said.append(f"{self.too_late} spans dropped: not encoded in time")
        return said + [summary for output in self.outputs if (summary := output.summary())]


@contextmanager
def _signals(stopping: Event, *, reload: bool) -> Iterator[socket.socket]:
    """SIGTERM, SIGINT and SIGHUP as bytes that can be read from a socket; *stopping* is set by those that end us."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    wakeup = signal.set_wakeup_fd(writer.fileno())
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    if reload:
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: None)
    elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup has it
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: stopping.set())
    try:
        yield reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        reader.close()
        writer.close()


def _say(text: str) -> None:
    """To the person who runs us, whatever the log level."""
    sys.stderr.write(f"otelbpf: {text}\n")
    sys.stderr.flush()


def _directory(config: Config, stack: ExitStack) -> RuntimeDirectory | None:
    """Make sure that we are the only agent, if that is asked for; None: there is no directory to know it from."""
    path = config.status.directory
    try:
        directory = RuntimeDirectory(path)
        stack.callback(directory.close)
        if not config.allow_second:
            directory.lock()
    except OSError as e:
        log.warning("no status socket, and a second agent would not be noticed: '%s': %s", path, e.strerror)
        return None
    return directory


def _sockets(
    config: Config, directory: RuntimeDirectory | None, stack: ExitStack
) -> tuple[socket.socket | None, socket.socket | None]:
    """Where we may be asked: the status socket and that of the health endpoint, both listening."""
    at, status = config.status.health, None
    health_socket = stack.enter_context(health.listen(*host_and_port(at))) if at else None
    if directory:
        try:
            status = stack.enter_context(directory.listen())
        except OSError as e:
            log.warning("no status socket: '%s': %s", directory.own_socket, e.strerror or e)
    return status, health_socket


def views(config: Config) -> Sequence[View]:
    """What outputs that are pushed to want, and then what those that are scraped want; one of them at least."""
    metrics = config.metrics
    pushed = View(
        exponential=metrics.histogram_aggregation == "base2_exponential_bucket_histogram",
        temporality=Temporality.CUMULATIVE if metrics.temporality == "cumulative" else Temporality.DELTA,
        exemplars=metrics.exemplars,
    )
    scraped = View(exemplars=metrics.exemplars, keeps_exemplars=True)
    kinds = {where.startswith("prometheus") for where in config.outputs} or {False}
    return [view for is_scraped, view in ((False, pushed), (True, scraped)) if is_scraped in kinds]


def _serve(outputs: Sequence[Output]) -> None:
    """Begin to hear those who scrape."""
    for output in outputs:
        if isinstance(output, Scraped):
            privileges.apart(output.start)


def open_output(where: str, config: Config, stack: ExitStack) -> Output:
    """Open an output that is closed with *stack*."""
    output = _output(where, config)
    stack.callback(output.close, 0.0)  # whatever happens: its thread would keep us alive
    return output


def _output(where: str, config: Config) -> Output:
    kind, _, argument = where.partition(":")
    if kind == "otlp":
        return OtlpOutput(config.export)
    if kind == "console":
        from otelbpf.otlp.console import ConsoleOutput  # noqa: PLC0415 - rich costs 100 ms that others need not pay

        return ConsoleOutput()
    if kind == "file":
        from otelbpf.otlp.jsonl import FileOutput  # noqa: PLC0415

        return FileOutput(argument)
    if kind == "prometheus":
        from otelbpf.otlp.prometheus import PrometheusOutput  # noqa: PLC0415

        return PrometheusOutput(*scraped_at(where))
    raise ConfigError(f"outputs: {where!r}: unknown; there are {', '.join(OUTPUTS)}")


def _what(config: Config, argv: Sequence[str] | None) -> str:
    chosen = config.select
    selected = [f"pid {pid}" for pid in chosen.pids] + [f"port {port}" for port in chosen.ports]
    for what in ("exe", "cmd", "cgroup", "container"):
        selected += [f"{what} {each!r}" for each in getattr(chosen, what)]
    selected += [f"{len(chosen.rules)} rules"] if chosen.rules else []
    selected += ["everything"] if chosen.all else []
    return ", ".join([*selected, *([f"command {os.path.basename(argv[0])!r}"] if argv else [])])  # noqa: PTH119


def _where(config: Config) -> str:
    return ", ".join(f"otlp ({config.export.traces.endpoint})" if each == "otlp" else each for each in config.outputs)
