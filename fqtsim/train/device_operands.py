"""What a port is fed on a device: the twin of operands.encoded (S4.6)."""

from __future__ import annotations

from typing import Any

import torch

from fqtsim.errors import InputError
from fqtsim.kernels.gpu.launch import Fault, note
from fqtsim.train.operands import Operand
from fqtsim.words import IntFormat, ZeroPoint


def operand(tensor: Any, port: IntFormat, zero_point: ZeroPoint) -> Operand:
    """Return a QTensor of this port's format, on a device, as the datapath takes it.

    Raises InputError for a float offset: the sums over valid terms have no device form.
    """
    if tensor.offset is not None:
        raise InputError(
            "zero = 'float_offset': its sums over valid terms have no form on a device; "
            "use zero: aligned, or a backend on the CPU"
        )
    codes, zeros = tensor.codes, tensor.zero_point.to(torch.int64)
    p = tensor._primitives
    if zero_point is ZeroPoint.NONE:
        note(p.faults.site(), zeros != 0, Fault.OUT_OF_RANGE)
    if zero_point is ZeroPoint.BEFORE_MULTIPLY:
        # The difference enters the multiplier: one bit wider, signed, and real zero is 0.
        wide = p.types[IntFormat(port.bits + 1, True).storage]
        along = zeros.reshape(-1, *(1,) * (codes.ndim - 1)) if zeros.ndim else zeros
        codes, zeros = codes.to(wide) - along.to(wide), torch.zeros_like(zeros)
    return Operand(codes, tensor.step, zeros)
