"""requantize, round_shift and random_bits: integer arithmetic around a GEMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fqtsim.api.arrays import Array, is_torch, like, to_numpy
from fqtsim.backends import Events
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.hw.stages import Stage
from fqtsim.kernels import fixed
from fqtsim.words import Rounding

MAX_SHIFT = 62


@dataclass(frozen=True)
class RequantizeOutput:
    """Output codes (float32 where the stages end in one) and what the registers on the way changed."""

    codes: Any
    events: Events


@dataclass(frozen=True)
class _Arguments:
    """The call's arguments, one for each accumulator in row-major order."""

    multiplier: Array
    shift: Array
    scale: Array
    zero_point: Array


def requantize(
    acc: Any,
    hw: Hardware | str,
    multiplier: Any = None,
    shift: Any = None,
    scale: Any = None,
    zero_point: Any = 0,
) -> RequantizeOutput:
    """Apply the hardware's `output` stages to accumulator codes, exactly (S4, requantization).

    multiplier, shift, scale (float32) and zero_point broadcast to acc. Events compare with the same stages without
    registers. Raises InputError where a stage lacks its argument, an argument has no stage, or there is no `output`.
    """
    hardware = load_hardware(hw)
    if hardware.output is None:
        raise InputError(f"{hardware.name}: has no output stages; add `output`, or use another hardware file")
    codes = to_numpy(acc, "acc")
    arguments = _arguments(hardware.output, codes.shape, multiplier, shift, scale, zero_point)
    limited = _run(codes.ravel(), hardware.output, arguments, limited=True)
    unlimited = _run(codes.ravel(), hardware.output, arguments, limited=False)
    last = hardware.output[-1]
    register = last.register_format
    altered = limited != unlimited
    if register is None:
        changed = int(altered.sum())
        narrow = _narrowed(limited, "output: the result", "end the stages with a register")
        return RequantizeOutput(like(narrow.reshape(codes.shape), acc), Events(changed, 0, changed))
    low, high = register.rails(last.overflow)
    outside = (unlimited < low) | (unlimited > high)
    events = Events(int(altered.sum()), int(outside.sum()), int((altered & ~outside).sum()))
    return RequantizeOutput(like(limited.astype(register.storage).reshape(codes.shape), acc), events)


def _arguments(
    stages: tuple[Stage, ...],
    shape: tuple[int, ...],
    multiplier: Any,
    shift: Any,
    scale: Any,
    zero_point: Any,
) -> _Arguments:
    wants = {
        "multiplier": any(s.kind == "multiply" and s.multiply == "integer" for s in stages),
        "shift": any(s.kind == "shift" and s.shift == "call" for s in stages),
        "scale": any(s.kind == "multiply" and s.multiply == "float32" for s in stages),
    }
    for name, value in (("multiplier", multiplier), ("shift", shift), ("scale", scale)):
        if wants[name] and value is None:
            raise InputError(f"{name}: is required by an output stage; pass {name}=")
        if not wants[name] and value is not None:
            raise InputError(f"{name}: no output stage uses it; remove it, or choose another hardware file")
    integers = {
        "multiplier": _integers(multiplier, "multiplier", shape, -(1 << 31), (1 << 31) - 1),
        "shift": _integers(shift, "shift", shape, -MAX_SHIFT, MAX_SHIFT),
        "zero_point": _integers(zero_point, "zero_point", shape, -(1 << 31), (1 << 31) - 1),
    }
    if integers["zero_point"].any() and not any(s.kind == "add" for s in stages):
        raise InputError("zero_point: no output stage adds it; remove it, or add {add: zero_point}")
    return _Arguments(scale=_scales(scale, shape), **integers)


def _integers(value: Any, name: str, shape: tuple[int, ...], low: int, high: int) -> Array:
    array = to_numpy(0 if value is None else value, name)
    if array.size and not (low <= int(array.min()) and int(array.max()) <= high):
        raise InputError(f"{name} = {array.min()}..{array.max()}: must be {low}..{high}")
    # Unsigned integers have no negative, and with int64 they make float64.
    return _broadcast(array.astype(np.int64), name, shape)


def _scales(value: Any, shape: tuple[int, ...]) -> Array:
    array = np.asarray(value.detach().cpu() if is_torch(value) else 1.0 if value is None else value)
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32) if array.dtype.kind in "fiu" else np.zeros((), np.float32)
    if not (np.isfinite(narrow) & (narrow > 0)).all():
        raise InputError("scale: must be positive and finite as float32")
    if array.dtype != np.float32 and not np.array_equal(narrow.astype(array.dtype), array):
        raise InputError("scale: is no float32; round it first, with numpy.float32(scale)")
    return _broadcast(narrow, "scale", shape)


def _broadcast(array: Array, name: str, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(array, shape).ravel()
    except ValueError:
        raise InputError(f"{name}.shape = {array.shape}: must broadcast to {shape}; reshape it") from None


def _run(codes: Array, stages: tuple[Stage, ...], arguments: _Arguments, *, limited: bool) -> Array:
    value = fixed.widened(codes, fixed.magnitude(codes))
    for stage in stages:
        if stage.multiply == "integer":
            bound = fixed.magnitude(value) << 31
            value = fixed.widened(value, bound) * arguments.multiplier.astype(object if bound >= 1 << 62 else np.int64)
        elif stage.multiply == "float32":
            value = _float_product(value, arguments.scale)
        elif stage.shift is not None and stage.rounding is not None:
            shift = arguments.shift if stage.shift == "call" else np.full(value.shape, stage.shift)
            value = fixed.round_shift(value, shift, stage.rounding, None, 0)
        elif stage.round is not None:
            value = fixed.round_float(value, stage.round)
        elif stage.add is not None:
            value = fixed.widened(value, fixed.magnitude(value) + (1 << 32)) + arguments.zero_point
        elif limited and stage.register_format is not None:
            value = fixed.into_register(value, stage.register_format, stage.overflow)
    return value


def _float_product(codes: Array, scale: Array) -> Array:
    with np.errstate(over="ignore"):
        product: Array = fixed.to_float32(codes) * scale
    if not np.isfinite(product).all():
        raise InputError("scale: code * scale is beyond the largest float32; use a smaller scale")
    return product


def _narrowed(values: Array, what: str, remedy: str) -> Array:
    """Return integers as int64; raises InputError where they need more bits."""
    if values.dtype.kind == "f":
        return values
    if fixed.magnitude(values) >= 1 << 63:
        raise InputError(f"{what} needs more than 64 bits; {remedy}")
    return values.astype(np.int64)


def round_shift(
    codes: Any, shift: Any, rounding: Rounding | str, rand_bits: Any = None, n_bits: int | None = None
) -> Any:
    """Return codes / 2**shift rounded to integers, int64 (S4 items, S5.6).

    codes: integers of any shape; shift: integers that broadcast to it, a negative one shifts left, exactly.
    `stochastic` needs rand_bits, integers in 0..2**n_bits - 1 that broadcast to codes, n_bits in 1..32.
    Raises InputError for other arguments, and where a result needs more than 64 bits.
    """
    try:
        word = Rounding(rounding)
    except ValueError:
        raise InputError(f"rounding = {rounding!r}: must be one of {', '.join(Rounding)}") from None
    values = to_numpy(codes, "codes")
    shifts = _integers(shift, "shift", values.shape, -MAX_SHIFT, MAX_SHIFT)
    words, bits = None, 0
    if word is Rounding.STOCHASTIC:
        if rand_bits is None or n_bits is None or not 1 <= n_bits <= 32:
            raise InputError(
                "rounding = stochastic: needs rand_bits and n_bits in 1..32; fqtsim.random_bits draws them"
            )
        words, bits = _integers(rand_bits, "rand_bits", values.shape, 0, (1 << n_bits) - 1), n_bits
    elif rand_bits is not None or n_bits is not None:
        raise InputError(f"rand_bits: rounding {word} draws none; remove it, or use stochastic")
    rounded = fixed.round_shift(values.ravel(), shifts, word, words, bits)
    narrow = _narrowed(rounded, "codes: codes / 2**shift", "shift left by fewer bits")
    return like(narrow.reshape(values.shape), codes)


def random_bits(seed: int, stream: int, step: int, count: int, bits: int) -> Array:
    """Return `count` random integers of `bits` bits, uint32: Philox4x32-10 of (seed, stream, step) (S5.5)."""
    from fqtsim.backends.primitives import DEFAULT_PRIMITIVES

    if not 1 <= bits <= 32:
        raise InputError(f"bits = {bits}: must be 1..32")
    words = DEFAULT_PRIMITIVES.random_words(seed, stream, step, count)
    return words >> np.uint32(32 - bits)
