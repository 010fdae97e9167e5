# SPDX-License-Identifier: Apache-2.0
from otelbpf.cli import main

raise SystemExit(main())
