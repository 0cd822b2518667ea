"""Repeat a sample of a case with the definition: a golden vector must not rest on one implementation."""

from __future__ import annotations

from fqtsim.backends import GemmResult
from fqtsim.golden.inputs import Inputs
from fqtsim.hw.spec import Datapath
from fqtsim.ref.gemm import run_chain

CHECKED_STEPS = 2000
"""Additions that the definition repeats for one case; one output at least, however long."""


def fault(name: str, what: str) -> AssertionError:
    """Return the error for a code on which fqtsim and its own definition differ."""
    return AssertionError(f"case {name}: {what}: the definition differs: a fault of fqtsim; please report it")


def check_sample(name: str, inputs: Inputs, datapath: Datapath, result: GemmResult) -> None:
    """Repeat some outputs of a GEMM with the definition. Raises AssertionError where the two differ.

    The first and the last output, those with extreme codes, and then evenly spaced ones.
    """
    a, b, c = inputs["a"], inputs["b"], inputs.get("c")
    (m, k), n = a.shape, b.shape[1]
    wanted = max(1, CHECKED_STEPS // max(1, k))
    codes = result.codes.ravel()
    telling = [m * n - 1, 0, int(codes.argmax()), int(codes.argmin())]
    spaced = range(0, m * n, max(1, m * n // wanted))
    for index in list(dict.fromkeys([*telling, *spaced]))[:wanted]:
        row, col = divmod(index, n)
        start = 0 if c is None else int(c[row, col])
        products = [int(x) * int(y) for x, y in zip(a[row], b[:, col], strict=True)]
        code, _ = run_chain(products, datapath.levels, start, limited=True)
        if code != codes[index]:
            raise fault(name, f"output [{row}, {col}], {codes[index]} by the emulator, not {code}")
