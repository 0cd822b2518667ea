"""`python -m fqtsim` is the command `fqtsim`."""

from __future__ import annotations

import sys

from fqtsim.cli import main

sys.exit(main())
