# SPDX-License-Identifier: Apache-2.0
"""Real certificates, made by openssl for each test run: an authority, and who it vouches for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

CONFIG = """
[ca]
default_ca = this
[this]
dir = {folder}
database = $dir/index
serial = $dir/serial
new_certs_dir = $dir
certificate = $dir/ca.pem
private_key = $dir/ca.key
default_md = sha256
policy = any
unique_subject = no
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
subjectAltName = IP:127.0.0.1,DNS:localhost
"""
PERIODS = {"now": ("20200101000000Z", "20991231000000Z"), "past": ("20200101000000Z", "20200102000000Z")}


class Pair(NamedTuple):
    key: Path
    certificate: Path


class Authority:
    """Signs certificates for 127.0.0.1; `certificate` is what a client has to trust."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.certificate = self.folder / "ca.pem"
        (self.folder / "index").touch()
        (self.folder / "serial").write_text("01\n")
        (self.folder / "config").write_text(CONFIG.format(folder=self.folder))
        self._openssl("req", "-x509", *self._new_key("ca.key"), "-subj", f"/CN={name}", "-days", "2", "-out", "ca.pem")

    def sign(self, name: str, valid: str = "now") -> Pair:
        """A key and a certificate; *valid* is "now" or "past"."""
        start, end = PERIODS[valid]
        self._openssl("req", "-new", *self._new_key(f"{name}.key"), "-subj", f"/CN={name}", "-out", f"{name}.csr")
        period = ("-startdate", start, "-enddate", end)
        self._openssl(
            "ca", "-batch", "-config", "config", *period, "-in", f"{name}.csr", "-out", f"{name}.pem", "-notext"
        )
        return Pair(self.folder / f"{name}.key", self.folder / f"{name}.pem")

    def _new_key(self, path: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path]

    def _openssl(self, *args: str) -> None:
        done = subprocess.run(["openssl", *args], cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
