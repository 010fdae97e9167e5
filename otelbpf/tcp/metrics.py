# SPDX-License-Identifier: Apache-2.0
"""TCP metrics, by the names of an open proposal (open-telemetry/semantic-conventions #3682).

No address is an attribute unless that is asked for; what a Resource may have of
series is limited.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from otelbpf import __version__
from otelbpf.aggregate import Histogram, SeriesTable, Sum
from otelbpf.buckets import Spans
from otelbpf.model import Points, Scope, Value, View
from otelbpf.native.layout import dtype
from otelbpf.probe import Context
from otelbpf.protocols.http1 import address

SCOPE = Scope("otelbpf.tcp", __version__)
CONNECTION = dtype("tcp_connection")
CONNECTED, SAMPLED, CLOSED = 1, 2, 3
SERVER, CLIENT = 1, 2
RESETS = {"transmit": 1, "receive": 2}
RTT_BOUNDS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
LOST_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
LIFE_BOUNDS_S = (0.01, 0.1, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 14400)

Attribute = tuple[str, Value]


class Total:
    """A sum and its series."""

    def __init__(self, context: Context, name: str, unit: str, description: str) -> None:
        self.table = SeriesTable(context.max_series, context.now_ns)
        self.sum = Sum(SCOPE, name, unit, description)

    def record(self, series: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        self.sum.record(series, values, len(self.table))

    def move(self, moved: NDArray[np.int64]) -> None:
        self.sum.move(moved)

    def points(self, time_ns: int, _view: View) -> Points:
        return self.sum.points(self.table, time_ns)


class Distribution:
    """A histogram in seconds and its series."""

    def __init__(self, context: Context, name: str, description: str, bounds: Sequence[float]) -> None:
        self.table = SeriesTable(context.max_series, context.now_ns)
        self.histogram = Histogram(SCOPE, name, "s", description, bounds, views=context.views)

    def record(self, series: NDArray[np.int64], values: NDArray[np.float64], spans: Spans | None = None) -> None:
        self.histogram.record(series, values, len(self.table), spans)

    def move(self, moved: NDArray[np.int64]) -> None:
        self.histogram.move(moved)

    def points(self, time_ns: int, view: View) -> Points:
        return self.histogram.points(self.table, time_ns, view)


class TcpMeters:
    """Counts connections and loss episodes.

    Args:
        peers: Tell `network.peer.address`, too.
    """

    def __init__(self, context: Context, *, peers: bool) -> None:
        self.context, self.peers = context, peers

        prefix = "system.network.tcp"
        self.rtt = Distribution(
            context, f"{prefix}.rtt.duration", "Smoothed round-trip times of live connections.", RTT_BOUNDS_S
        )
        self.handshake = Distribution(
            context, f"{prefix}.handshake.duration", "From connect() to the end of the handshake.", RTT_BOUNDS_S
        )
        self.life = Distribution(
            context, f"{prefix}.connection.duration", "How long closed connections lived.", LIFE_BOUNDS_S
        )
        self.successes = Total(
            context, f"{prefix}.connection.successes", "{connection}", "Connections that were established."
        )
        self.failures = Total(
            context, f"{prefix}.connection.failures", "{connection}", "Connections that were not, or broke."
        )
        self.resets = Total(context, f"{prefix}.resets", "{connection}", "Connections that were reset.")
        self.io = Total(
            context, f"{prefix}.io", "By", "Payload sent, not counting what was sent again, and received in order."
        )
        self.retransmits = Total(context, f"{prefix}.retransmits", "{segment}", "Segments that were sent again.")
        self.limited = Total(
            context, "otelbpf.tcp.limited.duration", "s", "Time in which something other than the path limited."
        )
        self.time_lost = Distribution(
            context, "network.tcp.time_lost", "By which loss delayed the bytes it hit.", LOST_BOUNDS_S
        )

    @property
    def instruments(self) -> tuple[Total | Distribution, ...]:
        return (
            *(self.rtt, self.handshake, self.life, self.successes, self.failures),
            *(self.resets, self.io, self.retransmits, self.limited, self.time_lost),
        )

    def connections(self, rows: NDArray[Any]) -> None:
        """Count (n,) `CONNECTION`."""
        moment = rows["moment"]
        alive = rows[(rows["srtt_us"] > 0) & (moment != CONNECTED)]
        self._record(self.rtt, alive, alive["srtt_us"] * 1e-6)
        connected = rows[moment == CONNECTED]
        took_s = (connected["connected_ns"] - connected["begin_ns"]) * 1e-9
        self._record(self.handshake, connected, took_s, ("network.tcp.handshake.role", "client"))
        closed = rows[moment == CLOSED]
        accepted = closed[(closed["role"] == SERVER) & (closed["begin_ns"] > 0)]
        for each in (connected, accepted):
            self._record(self.successes, each, np.ones(len(each)))
        known = closed[(closed["begin_ns"] > 0) & (closed["opening"] == 0)]
        self._record(self.life, known, (known["time_ns"] - known["begin_ns"]) * 1e-9)
        failed = closed[(closed["opening"] == 1) | (closed["error"] > 0)]
        for error in np.unique(failed["error"]).tolist():
            name = errno.errorcode.get(error, f"errno_{error}") if error else "_OTHER"
            these = failed[failed["error"] == error]
            self._record(self.failures, these, np.ones(len(these)), ("error.type", name))
        for direction, bit in RESETS.items():
            reset = closed[(closed["resets"] & bit) > 0]
            self._record(self.resets, reset, np.ones(len(reset)), ("network.io.direction", direction))
        for direction, field in (("transmit", "sent_bytes"), ("receive", "received_bytes")):
            moved = rows[rows[field] > 0]
            self._record(self.io, moved, moved[field], ("network.io.direction", direction))
        for limit in ("receive_window", "send_buffer"):
            slow = rows[rows[f"{limit}_us"] > 0]
            self._record(self.limited, slow, slow[f"{limit}_us"] * 1e-6, ("otelbpf.tcp.limit", limit))

    def episodes(
        self,
        rows: NDArray[Any],
        kinds: NDArray[np.uint8],
        names: Sequence[str],
        lost_s: NDArray[np.float64],
        spans: Spans,
    ) -> None:
        """Count (n,) `EPISODE`.

        Args:
            kinds: Shape (n, TCP_ATTEMPTS), index into *names*; 0: none.
        """
        counts = np.stack([np.count_nonzero(kinds == i, axis=1) for i in range(len(names))], axis=1)
        last = kinds[np.arange(len(rows)), np.maximum(rows["n_attempts"].astype(np.intp) - 1, 0)]
        # Those beyond what is told one by one were of the last one's kind, most likely.
        counts[np.arange(len(rows)), last] += rows["count"] - np.minimum(rows["count"], rows["n_attempts"])
        for i in range(1, len(names)):
            there = counts[:, i] > 0
            series = self._series(self.retransmits.table, rows[there], ("network.tcp.retransmit.type", names[i]))
            self.retransmits.record(series, counts[there, i].astype(np.float64))
        self.time_lost.record(self._series(self.time_lost.table, rows), lost_s, spans)

    def _record(
        self, instrument: Total | Distribution, rows: NDArray[Any], values: NDArray[Any], *more: Attribute
    ) -> None:
        instrument.record(self._series(instrument.table, rows, *more), values.astype(np.float64))

    def _series(self, table: SeriesTable, rows: NDArray[Any], *more: Attribute) -> NDArray[np.int64]:
        """The series of each row: Python's work is per distinct process, port and peer."""
        names = ["pid", "process_start_ns", "local_port", "peer_port"]
        key = np.empty(len(rows), [("peer", "V16"), ("client", np.uint8), *((n, rows.dtype[n]) for n in names)])
        client = _is_client(rows)
        key["peer"] = rows["peer_addr"] if self.peers else np.zeros(1, "V16")
        key["client"] = client
        for name in names:
            key[name] = rows[name]
        key["local_port"][client] = 0  # a server's port names what is spoken to
        key["peer_port"][~client] = 0
        distinct, inverse = np.unique(key.view(f"V{key.itemsize}"), return_inverse=True)
        numbers = []
        for each in distinct.view(key.dtype):
            attributes: dict[str, Value] = {"server.port": int(each["local_port"] or each["peer_port"]), **dict(more)}
            if self.peers:
                attributes["network.peer.address"] = address(each["peer"].tobytes())
            resource = self.context.resource(int(each["pid"]), int(each["process_start_ns"]))
            numbers.append(table.index(resource, attributes))
        return np.array(numbers, np.int64)[inverse.reshape(-1)] if numbers else np.zeros(0, np.int64)

    def points(self, time_ns: int, view: View) -> list[Points]:
        """Every metric that has counted something; then forget the processes that are gone."""
        found = [each.points(time_ns, view) for each in self.instruments]
        if view == self.context.views[0]:
            living = self.context.living()
            for each in self.instruments:
                moved = each.table.keep(living)
                if moved is not None:
                    each.move(moved)
        return [each for each in found if len(each.resources)]


def _is_client(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Of `CONNECTION` or `EPISODE`. Whose role is not known is taken for a server: its own port is told."""
    names = rows.dtype.names or ()
    client: NDArray[np.bool_] = rows["role"] == CLIENT if "role" in names else (rows["flags"] & 1) > 0
    return client
