# SPDX-License-Identifier: Apache-2.0
"""Real programs that the tests observe."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

APPS = Path(__file__).resolve().parent
CACHE = APPS.parent.parent / "build" / "go"


def go_program(source):
    """Built once; again when the source or the compiler is another: the build cache knows."""
    program = CACHE / source.stem
    environment = {**os.environ, "GOCACHE": str(CACHE / "cache"), "GOPROXY": "off", "CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", program, source], env=environment, cwd=APPS, check=True)
    return program
