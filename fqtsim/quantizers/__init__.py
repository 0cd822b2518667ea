"""The paper's gradient quantizers, and the same for weights and activations: ptq, psq, bhq; beside them luq."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from fqtsim.errors import InputError
from fqtsim.quantizers.base import Quantizer, Range, Scale, Step, Zero
from fqtsim.quantizers.block_householder import BlockHouseholderQuantizer
from fqtsim.quantizers.logarithmic import LogarithmicQuantizer
from fqtsim.quantizers.per_sample import PerSampleQuantizer
from fqtsim.quantizers.per_tensor import PerTensorQuantizer
from fqtsim.quantizers.qtensor import QTensor, checked_format
from fqtsim.words import IntFormat, Rounding

__all__ = ["QUANTIZERS", "QTensor", "Quantizer", "Range", "Scale", "Step", "Zero", "quantizer"]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "ptq": PerTensorQuantizer,
    "psq": PerSampleQuantizer,
    "bhq": BlockHouseholderQuantizer,
    "luq": LogarithmicQuantizer,
}


Word = TypeVar("Word", Rounding, Zero, Step, Range, Scale)


def _word(key: str, value: str, words: type[Word]) -> Word:
    try:
        return words(value)
    except ValueError:
        raise InputError(f"{key} = {value!r}: must be one of {', '.join(words)}") from None


def _is_count(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def quantizer(
    name: str,
    bits: int,
    rounding: Rounding | str,
    random_bits: int | None = None,
    zero: Zero | str = "aligned",
    format: IntFormat | str | None = None,
    step: Step | str = "free",
    range: Range | str = "current",
    scale: Scale | str = "per_row",
) -> Quantizer:
    """Return the quantizer `ptq` (per tensor), `psq` (per sample), `bhq` (block Householder) or `luq` (powers of two).

    bits is 2..16; random_bits, 1..32, belongs to stochastic rounding alone; format is the operand port, by default
    uint{bits}. step "power_of_two" rounds steps up to powers of two; range "mean_of_rows" (ptq only) clamps beyond the
    mean range of the rows; scale "per_group" (bhq only) gives the mixed rows of a group one grid. luq is per tensor,
    of 2..4 bits, stochastic and symmetric; its port is signed, by default int{2**(bits - 1)}. Raises InputError.
    Source: S5.6, S5.7, S5.12, docs/quantizers.md.
    """
    if name not in QUANTIZERS:
        raise InputError(f"quantizer = {name!r}: must be one of {', '.join(QUANTIZERS)}")
    if not _is_count(bits) or not 2 <= bits <= 16:
        raise InputError(f"bits = {bits}: must be 2..16; one bit leaves no code beside zero")
    rule = _word("rounding", rounding, Rounding)
    if rule is Rounding.STOCHASTIC and (not _is_count(random_bits) or not 1 <= (random_bits or 0) <= 32):
        raise InputError(f"random_bits = {random_bits}: stochastic rounding needs 1..32 random bits; say how many")
    if rule is not Rounding.STOCHASTIC and random_bits is not None:
        raise InputError(f"random_bits = {random_bits}: rounding = {rule} draws no random bits; leave random_bits out")
    port = checked_format(format if format is not None else QUANTIZERS[name].port(bits), bits)
    span = _word("range", range, Range)
    if span is not Range.CURRENT and name != "ptq":
        raise InputError(f"range = {span}: is for ptq; {name} takes the range as it is, use range = current")
    shared = _word("scale", scale, Scale)
    if shared is not Scale.PER_ROW and name != "bhq":
        raise InputError(f"scale = {shared}: {name} has no groups; use bhq, or scale = per_row")
    where, steps = _word("zero", zero, Zero), _word("step", step, Step)
    return QUANTIZERS[name](bits, rule, random_bits or 0, where, port, steps, span, shared)
