"""The demo's cross-checks: a whole run on this CPU's INT8 instructions, and saturation as silicon does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fqtsim.backends import get_backend
from fqtsim.crosscheck import Report, crosscheck
from fqtsim.errors import BackendRefused
from fqtsim.train.config import TrainConfig

#: One layer on the instruction that saturates pairs of products, the others on wrapping accumulators.
SATURATING_LAYER = "conv2"
SATURATING = "x86_avx2_pmaddubsw"
PAIR = ("stepwise", "native")
#: Steps of the second check: the saturation it is about happens in every one.
STEPS = 11


def whole_run(base: TrainConfig, on_step: Callable[[], None]) -> Report:
    """Compare every GEMM and every state of the run on a wrapping 32-bit accumulator."""
    return crosscheck(base, PAIR, on_step=lambda *_: on_step())


def saturating_layer(base: TrainConfig, on_step: Callable[[], None]) -> Report | str:
    """Compare a few steps with one layer on a saturating instruction; or say why this CPU cannot."""
    hardware = (f"{SATURATING_LAYER}={SATURATING}", f"*={base.hardware[0]}")
    config = replace(base, hardware=hardware, steps=STEPS, epochs=None)
    try:
        return crosscheck(config, PAIR, on_step=lambda *_: on_step())
    except BackendRefused as error:
        return f"not checked on this CPU: {error}"


def native_executor() -> str:
    """Return who multiplies for `native` here: INT8 silicon or, without it, exact fp32 chunks."""
    return get_backend("native").executor
