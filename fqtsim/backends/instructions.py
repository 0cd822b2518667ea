"""Which datapaths are an instruction sequence of this CPU, so that `native` may run them on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from fqtsim.backends import silicon
from fqtsim.backends.base import Array
from fqtsim.hw.spec import Datapath


@dataclass(frozen=True)
class Instruction:
    """An instruction sequence that performs a whole GEMM."""

    #: As silicon.available() calls it.
    name: str
    #: run(a uint8 (M, K), b int8 (K, N), c (M, N) or None) -> int32 codes.
    run: Callable[[Array, Array, Array | None], Array]


_CHAINS: dict[tuple[Any, ...], Instruction] = {
    (("terms", 2, "exact", None), ("terms", 1, "int16", "saturate"), ("terms", 2, "exact", None),
     ("all", None, "int32", "wrap")): Instruction("x86_avx2_pmaddubsw", silicon.pmaddubsw_gemm),
    (("terms", 4, "exact", None), ("all", None, "int32", "saturate")):
        Instruction("x86_vnni_saturate", silicon.vnni_saturate_gemm),
}  # fmt: skip


@cache
def matching_instruction(datapath: Datapath) -> Instruction | None:
    """Return the instruction sequence that is this datapath on this CPU, or None."""
    formats = datapath.multiplier_format("a").name, datapath.multiplier_format("b").name
    if formats != ("uint8", "int8") or datapath.dropped_bits:
        return None
    chain = tuple((level.grouping, level.count, level.register, level.overflow) for level in datapath.levels)
    found = _CHAINS.get(chain)
    return found if found is not None and silicon.available(found.name) is None else None
