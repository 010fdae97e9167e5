# SPDX-License-Identifier: Apache-2.0
"""Everything otelbpf raises on purpose.

OtelBpfError          catch this one
├── UsageError        a flag or a combination of flags is wrong; exit 2
├── ConfigError       the file, a variable or a value is wrong; starts with the key's path
├── NotSupported      this kernel, these privileges or this library cannot do it
├── LoadError         libbpf or the verifier refused a program
├── LayoutError       a probe's Python and its C header disagree
├── TargetError       a process that was asked for is not there
├── RecordingError    a recording cannot be written or read
└── ExportError       the batch was not delivered

A message says what failed, on what, why, and what to do next: lower case, no
full stop, offending values in quotes.
"""

from __future__ import annotations


class OtelBpfError(Exception):
    status = 1
    """Exit status of the command that could not go on."""


class UsageError(OtelBpfError):
    status = 2


class ConfigError(OtelBpfError):
    pass


class NotSupported(OtelBpfError):
    pass


class LoadError(OtelBpfError):
    """libbpf or the verifier refused a program.

    The message ends with the log's last telling line; `log` keeps all of it.
    """

    def __init__(self, program: str, reason: str, log: str = "") -> None:
        self.log = log
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        # The verifier's own words, without its statistics; else the first thing that libbpf says.
        telling = [
            line
            for line in lines
            if not line.startswith(("libbpf: ", "processed ", "verification time", "stack depth", "-- "))
        ]
        last = f": {telling[-1]}" if telling else f": {lines[0]}" if lines else ""
        more = f" ({len(lines) - 1} more lines with --debug)" if lines[1:] else ""
        super().__init__(f"{program}: {reason}{last}{more}")


class LayoutError(OtelBpfError):
    pass


class TargetError(OtelBpfError):
    pass


class RecordingError(OtelBpfError):
    pass


class ExportError(OtelBpfError):
    """The batch was not delivered.

    `retry` tells whether the same batch may succeed later, `after_s` how long
    the server asked us to wait, `unsure` that no answer came to a request that
    may have arrived, `too_large` that a part of the batch may succeed.
    """

    def __init__(
        self,
        message: str,
        *,
        retry: bool,
        after_s: float | None = None,
        unsure: bool = False,
        too_large: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry = retry
        self.after_s = after_s
        self.unsure = unsure
        self.too_large = too_large
