# SPDX-License-Identifier: Apache-2.0
"""What every resource says of the machine, and the resource of the agent's own metrics."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from uuid import uuid4

from otelbpf import __version__
from otelbpf.model import Resource

DISTRO = {"telemetry.distro.name": "otelbpf", "telemetry.distro.version": __version__}

# uname's words to host.arch's; what is not here is said as uname says it
_ARCH = {
    "x86_64": "amd64",
    "i386": "x86",
    "i686": "x86",
    "aarch64": "arm64",
    "armv6l": "arm32",
    "armv7l": "arm32",
    "armv8l": "arm32",
    "ppc": "ppc32",
    "ppc64le": "ppc64",
}


def host_attributes() -> dict[str, str]:
    """host.* and os.*; what the machine does not say is left out."""
    uname = os.uname()
    attributes = {
        "host.name": uname.nodename,
        "host.arch": _ARCH.get(uname.machine, uname.machine),
        "os.type": "linux",
    }
    if host := _machine_id():
        attributes["host.id"] = host
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return attributes
    attributes["os.description"] = release["PRETTY_NAME"]
    if "VERSION_ID" in release:  # rolling distributions have none
        attributes["os.version"] = release["VERSION_ID"]
    return attributes


def _machine_id() -> str:
    """Return /etc/machine-id, or "": images and first boots have an empty or "uninitialized" one."""
    try:
        text = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.fullmatch("[0-9a-f]{32}", text) else ""


def agent_resource() -> Resource:
    """Who the agent's own metrics come from.

    OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are not asked: with
    `run -- COMMAND` they are meant for the command.
    """
    return Resource(
        {
            **host_attributes(),
            **DISTRO,
            "service.name": "otelbpf",
            "service.version": __version__,
            "service.instance.id": str(uuid4()),
            "process.pid": os.getpid(),
        }
    )
