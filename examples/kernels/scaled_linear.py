"""An INT8 linear layer whose epilogue scales, rounds, adds a zero point and saturates, in float32 as XNNPACK does.

    fqtsim golden make --hardware xnnpack_fp32 --kind requantize --out epilogue.safetensors
    fqtsim golden check epilogue.safetensors --kernel scaled_linear.py:requantize_half_away

The bug of `requantize_half_away` is C's roundf(): halves go away from zero, where the hardware rounds them to even.
Random products times a random scale are hardly ever exact halves, so `torch.equal` on random data passes; a tolerance
of one code always does.
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


def _scaled(acc: Any, scale: Any) -> torch.Tensor:
    return torch.as_tensor(acc).to(torch.float32) * torch.tensor(scale, dtype=torch.float32)


def _stored(rounded: torch.Tensor, zero_point: int) -> torch.Tensor:
    return (rounded + zero_point).clamp(-128, 127).to(torch.int8)
