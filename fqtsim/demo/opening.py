"""The first minute of the demo: one dot product on a register too small for it, addition by addition."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from fqtsim.api.explain import Explanation, explain

HARDWARE = "int8_acc12_saturate"
#: Chosen to pass the rail of 2047 on the way to a sum that would have fitted.
ACTIVATIONS = (120, 90, 75, 110, 60, 80, 100, 40)
WEIGHTS = (7, 9, 8, -6, 5, -11, -3, 2)


def saturating_dot() -> Explanation:
    """Return the dot product of the demo, which a 12-bit saturating accumulator gets wrong."""
    a, b = np.array([ACTIVATIONS], np.uint8), np.array([WEIGHTS], np.int8).T
    return explain(a, b, HARDWARE)


def show(console: Console) -> None:
    """Print the dot product; the addition that saturates is in colour."""
    explanation = saturating_dot()
    console.print(f"[bold]One dot product[/bold] of uint8 activations and int8 weights on {HARDWARE}:")
    console.print(explanation.table())
    console.print(f"{explanation.summary()}: the sum fits 12 bits, a partial sum did not.\n", soft_wrap=True)
