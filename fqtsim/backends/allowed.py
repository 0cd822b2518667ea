"""Which torch operations may touch a number of a step on a device: an allow-list, enforced where the layers run.

    with only_allowed_calls():
        trainer.step(x, labels)

What is not listed is refused: fused arithmetic (addcmul, lerp, add with alpha), reductions and products of floats,
rsqrt, batch_norm, torch.rand and everything that nobody looked at. Kernels of this project are not torch operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fqtsim.errors import InputError

#: Moves numbers, or compares them.
MOVES = frozenset(
    [
        "_foreach_copy",
        "_local_scalar_dense",
        "_to_copy",
        "_unsafe_view",
        "alias",
        "amax",
        "amin",
        "arange",
        "as_strided",
        "bitwise_and",
        "bitwise_left_shift",
        "bitwise_not",
        "bitwise_or",
        "bitwise_right_shift",
        "bitwise_xor",
        "cat",
        "clamp",
        "clone",
        "constant_pad_nd",
        "copy",
        "cumsum",
        "detach",
        "empty",
        "empty_like",
        "eq",
        "expand",
        "fill",
        "flip",
        "full",
        "full_like",
        "ge",
        "gt",
        "index",
        "index_add",
        "index_copy",
        "index_put",
        "index_select",
        "isfinite",
        "isinf",
        "isnan",
        "le",
        "lift_fresh",
        "lt",
        "__and__",
        "__or__",
        "__xor__",
        "__lshift__",
        "__rshift__",
        "masked_fill",
        "max",
        "maximum",
        "min",
        "minimum",
        "ne",
        "neg",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_zeros",
        "ones",
        "ones_like",
        "permute",
        "repeat",
        "reshape",
        "resize",
        "scalar_tensor",
        "scatter",
        "scatter_reduce",
        "searchsorted",
        "select",
        "set",
        "slice",
        "sort",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "t",
        "transpose",
        "unbind",
        "unfold",
        "unsqueeze",
        "view",
        "where",
        "zero",
        "zeros",
        "zeros_like",
        "zeros_like_",
        "any",
        "all",
        "logical_and",
        "logical_or",
        "logical_not",
        "abs",
        "sign",
        "aminmax",
        "empty_strided",
        "_reshape_alias",
        "select_scatter",
        "slice_scatter",
        "gather",
        "remainder",
    ]
)
#: One rounded operation per element.
ROUNDS_ONCE = frozenset(["add", "sub", "rsub", "mul", "div", "floor", "ceil", "round"])
#: On integers only; products of float64 too, where they are exact integers.
INTEGER_ONLY = frozenset(["sum", "cumsum", "index_add", "remainder", "_int_mm", "bincount"])
EXACT_PRODUCTS = frozenset(["mm", "bmm", "matmul"])


def _floats(tensors: Any) -> list[torch.dtype]:
    found = []
    for value in tensors:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            found.append(value.dtype)
    return found


def reason_against(name: str, operands: tuple[Any, ...], settings: dict[str, Any]) -> str | None:
    """Return why an operation may not be called with these operands, or None where it may."""
    base = name.rstrip("_") if not name.startswith("__") else name
    floats = _floats(operands)
    if base in INTEGER_ONLY:
        return "its order of additions is not stated" if floats else None
    if base in EXACT_PRODUCTS:
        return None if all(kind == torch.float64 for kind in floats) else "its order of additions is not stated"
    if base == "sqrt":
        return None if all(kind == torch.float64 for kind in floats) else "it misrounds on CPUs"
    if base in ROUNDS_ONCE:
        if floats and settings.get("alpha", 1) != 1:
            return "alpha fuses a product and a sum"
        if base == "div" and floats and not isinstance(operands[1], torch.Tensor):
            return "CUDA divides by a number of the host through its reciprocal"
        return None
    return None if base in MOVES else "nobody has shown that it rounds once"


class only_allowed_calls(TorchDispatchMode):  # type: ignore[no-untyped-call]  # noqa: N801
    """Refuse, inside the block, every torch operation that is not on the list. Raises InputError naming it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = kwargs or {}
        name = func.overloadpacket.__name__
        why = reason_against(name, args, settings)
        if why is not None:
            kinds = [str(value.dtype) for value in args if isinstance(value, torch.Tensor)]
            raise InputError(f"torch.{name} of {', '.join(kinds) or 'nothing'}: {why}; use a primitive (S5.2)")
        return func(*args, **settings)
