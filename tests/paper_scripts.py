"""The scripts of examples/paper as modules: they import each other from their own folder, as a script does."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples" / "paper"
# Worker processes start with the same path.
if str(FOLDER) not in sys.path:
    sys.path.append(str(FOLDER))

harness = import_module("harness")
accumulators, accumulators_report = import_module("accumulators"), import_module("accumulators_report")
random_bits, random_bits_report = import_module("random_bits"), import_module("random_bits_report")
