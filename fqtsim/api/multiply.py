"""gemm: one matrix product on a datapath."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fqtsim.api.arrays import Array, checked_operands, checked_start, like
from fqtsim.backends import Backend, Events, LevelTrace, get_backend
from fqtsim.errors import BackendRefused, InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.words import GEMMS


@dataclass(frozen=True)
class GemmOutput:
    """Codes of the accumulator and what the hardware changed."""

    #: (M, N), in the caller's library and device; int32 where the accumulator fits it, else int64.
    codes: Any
    events: Events
    #: Per level, from the multipliers outwards; only with trace=True.
    trace: tuple[LevelTrace, ...] | None = None


def chosen_datapath(hw: Hardware | str, gemm: str) -> Datapath:
    """Return the datapath of one of the three GEMMs. Raises InputError for an unknown GEMM or file."""
    if gemm not in GEMMS:
        raise InputError(f"gemm = {gemm!r}: must be one of {', '.join(GEMMS)}")
    return load_hardware(hw).datapath_for(gemm)


def gemm(
    a: Any,
    b: Any,
    hw: Hardware | str,
    gemm: str = "fprop",
    backend: str | Backend = "emulator",
    c: Any = None,
    trace: bool = False,
) -> GemmOutput:
    """Multiply codes a (M, K) by b (K, N) on a datapath, without the `output` stages (S4).

    a, b: numpy or torch integers, any layout, codes of the datapath's operand formats (differences from the zero
    point, one bit wider and signed, where zero points are subtracted before the multiplier). c: integers that
    broadcast to (M, N), in accumulator units. Bits dropped on the way are not restored: a code means
    code * 2**dropped.

    Raises InputError for codes outside their format, shapes that do not fit and exact registers beyond 63 bits;
    BackendRefused where the backend cannot guarantee the result.
    """
    datapath = chosen_datapath(hw, gemm)
    left, right = checked_operands(a, b, datapath)
    executor = get_backend(backend)
    reason = executor.refusal(datapath, left.shape[1])
    if reason is not None:
        raise BackendRefused(f"{executor.name}@{executor.device}: {reason}; use backend emulator")
    start = checked_start(c, datapath, (left.shape[0], right.shape[1]))
    result = executor.gemm(left, right, datapath, start, trace)
    return GemmOutput(like(result.codes, a), result.events, result.trace)


def plain_codes(a: Array, b: Array, datapath: Datapath, c: Array | None) -> Array:
    """Return the codes that every addition performed gives, for checked operands."""
    return get_backend("stepwise").gemm(a, b, datapath, c).codes
