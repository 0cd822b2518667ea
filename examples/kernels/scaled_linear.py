"""INT8 linear layers with two epilogues: codes as XNNPACK stores them, and float32 with a step per row and column.

    fqtsim golden make --hardware xnnpack_fp32 --kind requantize --out epilogue.safetensors
    fqtsim golden check epilogue.safetensors --kernel scaled_linear.py:requantize_half_away
    fqtsim golden make --hardware xnnpack_fp32 --kind scaled_linear --out scaled.safetensors
    fqtsim golden check scaled.safetensors --kernel scaled_linear.py:scaled_linear_float32

The bug of `requantize_half_away` is C's roundf(): halves go away from zero, where the hardware rounds them to even.
Random products times a random scale are hardly ever exact halves, so `torch.equal` on random data passes; a tolerance
of one code always does. The bug of `scaled_linear_float32` is that it rounds the accumulator and the product of the
steps to float32 before it multiplies them; a tolerance of one unit in the last place hides most of it.
"""

from typing import Any

import torch


def requantize(acc: Any, scale: Any, zero_point: int = 0) -> torch.Tensor:
    """Return int8 codes of int32 accumulators: acc * scale rounded, halves to even, plus the zero point, saturated."""
    return _stored(torch.round(_scaled(acc, scale)), zero_point)


def requantize_half_away(acc: Any, scale: Any, zero_point: int = 0) -> torch.Tensor:
    """Return the same with the bug: halves are rounded away from zero."""
    scaled = _scaled(acc, scale)
    return _stored(torch.sign(scaled) * torch.floor(scaled.abs().double() + 0.5).float(), zero_point)


def linear(x: Any, w: Any, scale: Any, zero_point: int = 0, epilogue: Any = requantize) -> torch.Tensor:
    """Return int8 outputs (M, N) of codes x (M, K) and weights w (N, K), both int8; scale is x's times w's over y's."""
    acc = torch.as_tensor(x).int() @ torch.as_tensor(w).int().T
    return epilogue(acc, scale, zero_point)


def scaled_linear(x: Any, w: Any, row_step: Any, column_step: Any, bias: Any = None) -> torch.Tensor:
    """Return float32 (M, N) of codes x (M, K) and w (N, K): steps multiplied in float64, one rounding, the bias."""
    acc = torch.as_tensor(x).int() @ torch.as_tensor(w).int().T
    scale = torch.as_tensor(row_step).double()[:, None] * torch.as_tensor(column_step).double()
    y = (acc.double() * scale).float()
    return y if bias is None else y + torch.as_tensor(bias)


def scaled_linear_float32(x: Any, w: Any, row_step: Any, column_step: Any, bias: Any = None) -> torch.Tensor:
    """Return the same with the bug: every step of the epilogue is rounded to float32."""
    acc = torch.as_tensor(x).int() @ torch.as_tensor(w).int().T
    y = acc.float() * (torch.as_tensor(row_step)[:, None] * torch.as_tensor(column_step))
    return y if bias is None else y + torch.as_tensor(bias)


def _scaled(acc: Any, scale: Any) -> torch.Tensor:
    return torch.as_tensor(acc).to(torch.float32) * torch.tensor(scale, dtype=torch.float32)


def _stored(rounded: torch.Tensor, zero_point: int) -> torch.Tensor:
    return (rounded + zero_point).clamp(-128, 127).to(torch.int8)
