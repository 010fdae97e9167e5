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


def check() -> list[Feature]:
    """Try each rung on its own: load, attach, detach. Nothing is selected, so nothing is observed."""
    found: dict[str, Feature] = {}
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
            found[rung.name] = Feature(name, ok=True, detail=f"{rung.title}: loads and attaches", needed=False)
    best = next((name for name, feature in found.items() if feature.ok), None)
    lost = "no HTTP spans or metrics: the kernel offers none of these hooks"
    detail = f"by {best}" if best else "no rung works"
    return [*found.values(), Feature("capture", ok=best is not None, detail=detail, advice=lost)]
