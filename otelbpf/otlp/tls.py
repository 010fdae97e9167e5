# SPDX-License-Identifier: Apache-2.0
"""PEM files: read, checked before they are used, and read again when they change."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from otelbpf.config import ExportTarget
from otelbpf.errors import ConfigError
from otelbpf.otlp.quiet import grpc


class Pem:
    """The files with which we know a Collector, and it knows us.

    Raises:
        ConfigError: One cannot be read, or is not what it should be.
    """

    def __init__(self, target: ExportTarget) -> None:
        self._target = target
        if bool(target.client_key) != bool(target.client_certificate):
            raise ConfigError("client_key, client_certificate: only one is set; set both, or none")
        self._seen = self._stamps()

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files as they are now.

        Raises:
            ConfigError: As for the class.
        """
        self._seen = self._stamps()
        target = self._target
        roots = _read("certificate", target.certificate)
        key = _read("client_key", target.client_key)
        chain = _read("client_certificate", target.client_certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if roots is not None:
            try:
                context.load_verify_locations(cadata=roots.decode("ascii", "replace"))
            except (ssl.SSLError, ValueError):
                raise ConfigError(f"certificate: no certificate in '{target.certificate}'; name a PEM file") from None
        if target.client_key and target.client_certificate:
            try:
                # A wrong password, as there is nobody to ask: OpenSSL would, on the terminal.
                context.load_cert_chain(target.client_certificate, target.client_key, password=lambda: "-")
            except (ssl.SSLError, ValueError):
                raise ConfigError(
                    f"client_certificate, client_key: '{target.client_certificate}' and '{target.client_key}' are not"
                    " a certificate and its key, unencrypted; name PEM files that belong together"
                ) from None
        return grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)

    def changed(self) -> bool:
        """Whether a file is another one than when it was last read."""
        return self._stamps() != self._seen

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        target = self._target
        return [_stamp(path) for path in (target.certificate, target.client_key, target.client_certificate)]


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    if not path:
        return None
    try:
        status = os.stat(path)  # noqa: PTH116 - follows the links by which Kubernetes replaces files
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _read(key: str, path: Path | None) -> bytes | None:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise ConfigError(f"{key}: cannot read '{path}': {e.strerror}; name a PEM file") from None
