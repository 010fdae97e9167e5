# SPDX-License-Identifier: Apache-2.0
"""The capture ladder: which hooks bring the bytes of sockets, found by trying.

Every rung is another door to the same body (bpf/exchange.bpf.c).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from otelbpf.errors import LoadError, NotSupported
from otelbpf.native.features import Feature
from otelbpf.native.object import Object, kernel_params

log = logging.getLogger(__name__)

OLD = "exchange-old"
"""exchange.bpf.c as kernels before 5.14 take it; bpf/compat.bpf.h says what is different."""


class Rung(NamedTuple):
    name: str
    needs: str
    stem: str
    hooks: tuple[str, ...]
    sendpage: tuple[str, ...] = ()
    """Hooks of tcp_sendpage(), through which sendfile() went before 6.5."""
    cookies: bool = True
    """Programs of this kind may ask for a socket's cookie."""

    @property
    def title(self) -> str:
        return f"{self.name}{' (old kernel)' if self.stem == OLD else ''}"


def _pair(before: str, after: str) -> tuple[str, ...]:
    return tuple(f"exchange_{each}_{what}" for what in ("send", "recv") for each in (before, after))


def _kernel_rungs(stem: str, *, cookies: bool) -> Iterator[Rung]:
    yield Rung("fentry", "BPF trampolines", stem, _pair("fentry", "fexit"), ("exchange_fexit_sendpage",), cookies)
    sendpage = ("exchange_kprobe_sendpage", "exchange_kretprobe_sendpage")
    yield Rung("kprobe", "CONFIG_KPROBES", stem, _pair("kprobe", "kretprobe"), sendpage, cookies=False)


LADDER = (
    Rung("tracepoint", "Linux 6.3", "exchange", ("exchange_send", "exchange_recv")),
    *_kernel_rungs("exchange", cookies=True),
    *_kernel_rungs(OLD, cookies=False),
)
Make = Callable[[str], Object]
NAMES = tuple(dict.fromkeys(rung.name for rung in LADDER))


class Capture:
    """The exchange object, loaded and attached by the first rung that works.

    Args:
        wanted: A rung's name, or "auto".
        make: Opens an object by its stem.
        prepare: Sizes and shares the object's maps, before it is loaded.

    Raises:
        NotSupported: No rung works; says why of each.
    """

    def __init__(
        self, wanted: str, make: Make, constants: Mapping[str, int], prepare: Callable[[Object], None]
    ) -> None:
        refusals = []
        for rung in LADDER:
            if wanted not in ("auto", rung.name):
                continue
            try:
                self.object = self._open(rung, make, constants, prepare)
            except LoadError as e:
                refusals.append(f"{rung.title}: {e}")
                log.info("capture by %s: %s", rung.title, e)
            else:
                self.rung = rung
                log.info("capture by %s", rung.title)
                return
        raise NotSupported(f"exchange: no way to capture works here: {'; '.join(refusals)}; see `otelbpf check`")

    @staticmethod
    def _open(rung: Rung, make: Make, constants: Mapping[str, int], prepare: Callable[[Object], None]) -> Object:
        obj = make(rung.stem)
        try:
            hooks = [
                *rung.hooks,
                *(rung.sendpage if kernel_params("tcp_sendpage") else ()),
                "exchange_state",
                "exchange_destroy",
            ]
            run = ["exchange_sweep"] if rung.stem == OLD else ["exchange_sweep", "exchange_ignore"]
            obj.only([*hooks, *run])
            obj.set_constants({**constants, "cookies": rung.cookies})
            if rung.sendpage:
                obj.set_constants({"recv_args": kernel_params("tcp_recvmsg")})
            prepare(obj)
            obj.load()
            for hook in hooks:
                obj.attach(hook)
        except BaseException:
            obj.close()
            raise
        return obj


INSTEAD = {
    "socket cookies": "connections get numbers of our own; nothing is lost",
    "task storage": "a thread's exchange is in a hash by thread id; of more than 16,384 threads some have none",
    "compare-and-swap": "a plain flag; two CPUs within a few instructions on one connection are not told apart",
    "sweep from user space": "an iterator in the kernel looks for the ends of responses; nothing is lost",
    "connections to ignore": "those that do not speak HTTP go on costing what a capture costs",
    "counts in the kernel": "what is not sampled is sent to the agent all the same; it costs more, nothing is lost",
}
"""Without what the exchange probe does what."""


def _parts(rung: Rung) -> Iterator[Feature]:
    """What the rung in use has, beside its hooks."""
    for name, instead in INSTEAD.items():
        ok = rung.cookies if name == "socket cookies" else rung.stem != OLD
        detail = "in use" if ok else f"not for {'kernels before 5.14' if rung.stem == OLD else f'a {rung.name}'}"
        yield Feature(f"capture: {name}", ok=ok, detail=detail, advice=f"instead: {instead}", needed=False)


def check() -> list[Feature]:
    """Try each rung on its own: load, attach, detach. Nothing is selected, so nothing is observed."""
    found: dict[str, Feature] = {}
    used: dict[str, Rung] = {}
    for rung in LADDER:
        if rung.name in found and found[rung.name].ok:
            continue  # as an old kernel takes it, too
        name = f"capture: {rung.name}"
        try:
            Capture._open(rung, Object, {}, lambda _: None).close()  # noqa: SLF001
        except LoadError as e:
            advice = f"it needs {rung.needs}; nothing is lost while another rung works"
            found.setdefault(rung.name, Feature(name, ok=False, detail=str(e), advice=advice, needed=False))
        else:
            used[rung.name] = rung
            found[rung.name] = Feature(name, ok=True, detail=f"{rung.title}: loads and attaches", needed=False)
    best = next((name for name, feature in found.items() if feature.ok), None)
    parts = _parts(used[best]) if best else ()
    lost = "no HTTP spans or metrics: the kernel offers none of these hooks"
    detail = f"by {best}" if best else "no rung works"
    return [*found.values(), *parts, Feature("capture", ok=best is not None, detail=detail, advice=lost)]
