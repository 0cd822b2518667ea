"""Patterns: in words, where a kernel's outputs are wrong, by how much, on what condition, and which terms matter.

A pattern is stated only where it tells wrong outputs from right ones: "only negative outputs" needs a right output
that is not negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fqtsim.errors import InputError
from fqtsim.golden.case import Array, Case
from fqtsim.golden.coverage import run, unlimited_datapath
from fqtsim.golden.kernels import Kernel, KernelFault
from fqtsim.hw.spec import Hardware

if TYPE_CHECKING:
    from fqtsim.golden.check import CaseResult

AXES = {
    "gemm": ("rows", "columns"),
    "conv_fprop": ("images", "output channels", "output rows", "output columns"),
    "conv_dgrad": ("images", "input channels", "input rows", "input columns"),
    "conv_wgrad": ("output channels", "input channels", "kernel rows", "kernel columns"),
    "requantize": ("positions",),
    "scaled_linear": ("rows", "columns"),
}
TILES = (256, 128, 64, 32, 16, 8, 4)
MOST_PRODUCTS = 1 << 22
MOST_RUNS = 64
"""Times that a kernel is run again to find out which terms matter one by one."""
MOST_CONDITIONS = 3
CHANCE = 0.02
"""Probability below which wrong outputs that share a condition are no accident."""


def case_patterns(result: CaseResult, hardware: Hardware, kernel: Kernel | None = None) -> tuple[str, ...]:
    """Return what is true of the wrong elements of one case's first wrong output, in sentences.

    kernel: run again, on the same inputs and on inputs with terms set to zero. Empty for a case without outputs.
    """
    if result.mismatch is None:
        return ()
    case, output = result.case, result.mismatch.output
    expected, observed = case.expected[output], result.observed[output]
    if expected.dtype.kind not in "iu":
        return tuple(_places(case.kind, expected != observed))
    right, found = expected.astype(np.int64), observed.astype(np.int64)
    wrong = right != found
    sentences = list(_whole(case, right, found))
    if not sentences:
        sentences = [*_places(case.kind, wrong), *_codes(right, found, wrong)]
        sentences += _conditions(case, hardware, right, wrong)
    if case.kind == "gemm":
        sentences += _marked_terms(case, wrong)
        sentences += [] if kernel is None else _by_running(case, hardware, found, kernel, result.mismatch.index)
    return tuple(sentences)


# The whole output.


def _whole(case: Case, right: Array, found: Array) -> Iterator[str]:
    c = case.inputs.get("c")
    if not found.any():
        yield "every output is 0"
    elif found.size > 1 and (found == found.flat[0]).all():
        yield f"every output is {int(found.flat[0])}"
    elif right.ndim == 2 and _moved(right, found):
        yield _moved(right, found)
    elif (found == -right).all():
        yield "every output has the other sign"
    elif case.kind == "gemm" and c is not None and (found == c).all():
        yield "every output is its start value"


def _moved(right: Array, found: Array) -> str:
    if min(right.shape) > 1 and (found == right.T.reshape(right.shape)).all():
        return "the outputs are right, but transposed"
    for axis, name in ((0, "row"), (1, "column")):
        for step in (-1, 1):
            if right.shape[axis] > 1 and (found == np.roll(right, step, axis)).all():
                return f"the outputs are right, but one {name} {'further' if step > 0 else 'early'}"
    return ""


# Where.


def _places(kind: str, wrong: Array) -> Iterator[str]:
    """Yield what the places of wrong outputs have in common, axis by axis."""
    if wrong.all():
        yield "every output is wrong"
        return
    names = AXES.get(kind, ())
    for axis in range(wrong.ndim):
        name = names[axis] if len(names) == wrong.ndim else f"places along axis {axis}"
        others = tuple(other for other in range(wrong.ndim) if other != axis)
        indices = np.flatnonzero(wrong.any(axis=others))
        sentence = _along(name, indices, wrong.shape[axis])
        if sentence:
            yield sentence


def _along(name: str, indices: Array, size: int) -> str:
    """Return what is special about these indices of an axis; nothing where all of them are meant."""
    count, first, last = len(indices), int(indices[0]), int(indices[-1])
    if count == size:
        return ""
    one = "term k =" if name == "terms k =" else name.removesuffix("s")
    if count == 1:
        which = ", the last" if first == size - 1 else ", the first" if first == 0 else ""
        return f"only {one} {first}{which}{_tail(first, size)}"
    if count == last - first + 1:
        block = f"only {name} {first}..{last}"
        if last == size - 1:
            return f"{block}, the last {count} of {size}{_tail(first, size)}"
        aligned = next((tile for tile in TILES if count == tile and first % tile == 0), None)
        return f"{block}, one tile of {aligned}" if aligned else f"{block} of {size}"
    step = next((step for step in (*TILES, 2) if (indices % step == first % step).all() and step < size), None)
    if step is not None and step ** (count - 1) >= 1 / CHANCE:
        return f"only {name} {first % step} modulo {step} ({count} of {size})"
    return f"wrong in {count} of {size} {name}, the first {first}, the last {last}"


def _tail(first: int, size: int) -> str:
    tile = next((tile for tile in TILES if first and first % tile == 0 and size - first < tile), None)
    return f", past the last full tile of {tile}" if tile else ""


# By how much.


def _codes(right: Array, found: Array, wrong: Array) -> Iterator[str]:
    off = (found - right)[wrong]
    sizes = np.abs(off)
    if (sizes == 1).all():
        way = "too high" if (off > 0).all() else "too low" if (off < 0).all() else "off, either way"
        yield f"every wrong code is one {way}"
        return
    if off.size > 1 and (off == off[0]).all():
        yield f"every wrong code is {int(abs(off[0]))} too {'high' if off[0] > 0 else 'low'}"
    elif off.size > 2 and ((off > 0).all() or (off < 0).all()):
        yield f"every wrong code is too {'high' if off[0] > 0 else 'low'}, by {int(sizes.min())}..{int(sizes.max())}"
    if off.size > 2 and found[wrong].any() and (found[wrong] == found[wrong][0]).all():
        yield f"every wrong code is {int(found[wrong][0])}"
    elif off.size > 2 and not found[wrong].any():
        yield "every wrong code is 0"
    bits = _common_zeros(sizes)
    if bits >= 8 or (bits >= 3 and off.size >= 8):
        yield f"every difference is a multiple of 2^{bits}"


def _common_zeros(sizes: Array) -> int:
    """Return how many low bits are 0 in all of them."""
    bits = int(np.bitwise_or.reduce(sizes))
    return (bits & -bits).bit_length() - 1


# On what condition.


def _conditions(case: Case, hardware: Hardware, right: Array, wrong: Array) -> list[str]:
    """Return the narrowest conditions that hold for all wrong outputs, and not for all right ones."""
    masks = {"negative outputs": right < 0, "positive outputs": right > 0, "outputs that are 0": right == 0}
    if case.kind == "gemm":
        masks |= _gemm_conditions(case, hardware, right)
    if case.kind == "requantize":
        masks |= _requantize_conditions(case, hardware, right)
    fitting = [
        (int(mask.sum()), name, bool((mask == wrong).all()))
        for name, mask in masks.items()
        if not (wrong & ~mask).any() and mask.mean() ** wrong.sum() < CHANCE
    ]
    found = [f"only {name}{', and all of those' if exact else ''}" for _, name, exact in sorted(fitting)]
    return [*found[:MOST_CONDITIONS], *_magnitude(right, wrong)]


def _magnitude(right: Array, wrong: Array) -> Iterator[str]:
    if wrong.all() or wrong.size * CHANCE < 1:
        return
    least, most = int(np.abs(right[wrong]).min()), int(np.abs(right[~wrong]).max())
    if least > most >= 8:
        yield f"only outputs beyond {most} in magnitude (2^{most.bit_length() - 1} and more)"


def _gemm_conditions(case: Case, hardware: Hardware, right: Array) -> dict[str, Array]:
    datapath = hardware.datapath_for(case.parameters["gemm"])
    a, b = case.inputs["a"], case.inputs["b"]
    masks: dict[str, Array] = {}
    form = datapath.accumulator.register_format
    if form is not None:
        low, high = form.rails(datapath.accumulator.overflow)
        masks |= {"outputs at the upper rail": right == high, "outputs at the lower rail": right == low,
                  "outputs at a rail": (right == low) | (right == high)}  # fmt: skip
    if a.shape[0] * b.shape[1] * a.shape[1] > MOST_PRODUCTS:
        return masks
    try:
        unlimited = run(dict(case.inputs), unlimited_datapath(datapath)).codes
        masks["outputs that a register changed on the way"] = unlimited != right
        if form is not None:
            masks["outputs whose exact sum lies beyond a rail"] = (unlimited < low) | (unlimited > high)
    except InputError:  # an exact sum of more than 63 bits
        pass
    ends = (("lowest", a.min(), b.min()), ("highest", a.max(), b.max())) if a.size and b.size else ()
    for name, x, y in ends:  # K = 0 has no codes to meet
        meet = (a == x).astype(np.float32) @ (b == y).astype(np.float32) > 0
        masks[f"outputs in which {int(x)} of a meets {int(y)} of b, their {name} codes"] = meet
    if "c" in case.inputs:
        masks["outputs whose start value is not 0"] = case.inputs["c"] != 0
        masks["outputs whose start value is negative"] = case.inputs["c"] < 0
    rows, cols = (a == 0).all(axis=1), (b == 0).all(axis=0)
    masks["outputs of rows of a, or columns of b, that are all 0"] = rows[:, None] | cols[None, :]
    masks |= _tie_conditions(case, hardware)
    return masks


def _tie_conditions(case: Case, hardware: Hardware) -> dict[str, Array]:
    """Ties of what the first level drops, of both signs."""
    level = hardware.datapath_for(case.parameters["gemm"]).levels[0]
    bits = level.dropped_bits
    if not bits:
        return {}
    a, b = case.inputs["a"].astype(np.int64), case.inputs["b"].astype(np.int64)
    product = a[:, :, None] * b[None]
    tie = product & ((1 << bits) - 1) == 1 << (bits - 1)
    return {"outputs with a product at a tie": tie.any(axis=1),
            "outputs with a negative product at a tie": (tie & (product < 0)).any(axis=1)}  # fmt: skip


def _requantize_conditions(case: Case, hardware: Hardware, right: Array) -> dict[str, Array]:
    from fractions import Fraction

    from fqtsim.ref.requantize import requantize

    stages, acc = hardware.output or (), case.inputs["acc"]
    masks: dict[str, Array] = {
        "negative accumulators": acc < 0, "positive accumulators": acc > 0,
        "saturated outputs": (right == right.min()) | (right == right.max()),
    }  # fmt: skip
    names = ("multiplier", "shift", "scale", "zero_point")
    arguments = {name: case.parameters[name] for name in names if name in case.parameters}
    if "scale" in arguments:
        arguments["scale"] = Fraction(float(np.float32(arguments["scale"])))
    for index, stage in enumerate(stages):
        shift = int(arguments["shift"]) if stage.shift == "call" else int(stage.shift or 0)
        if stage.round is None and shift <= 0:
            continue
        entering = [Fraction(requantize(code, stages[:index], limited=False, **arguments)) for code in acc.tolist()]
        tie = np.array([value / (1 << max(shift, 0)) % 1 == Fraction(1, 2) for value in entering])
        masks[f"ties of stage {index}"] = tie
        masks[f"negative ties of stage {index}"] = tie & np.array([value < 0 for value in entering])
    return masks


# Which terms.


def _marked_terms(case: Case, wrong: Array) -> Iterator[str]:
    """Yield which k are wrong, where each row of a has one code that is not 0."""
    taken = case.inputs["a"] != 0
    if taken.shape[1] < 2 or not (taken.sum(axis=1) == 1).all():
        return
    terms = np.unique(taken.argmax(axis=1)[wrong.any(axis=1)])
    sentence = _along("terms k =", terms, taken.shape[1])
    if sentence:
        yield sentence


def _by_running(
    case: Case, hardware: Hardware, found: Array, kernel: Kernel, first_wrong: tuple[int, ...]
) -> list[str]:
    """Return what further runs tell: whether the fault repeats, and which terms bring it about."""
    datapath = hardware.datapath_for(case.parameters["gemm"])
    a, b = case.inputs["a"], case.inputs["b"]
    if not 0 < a.size * b.shape[1] <= MOST_PRODUCTS:
        return []

    def outputs(inputs: Mapping[str, Array]) -> Array | None:
        try:
            codes = kernel.run(case, inputs).get("codes")
        except KernelFault:
            return None
        return None if codes is None or codes.shape != found.shape or codes.dtype.kind not in "iu" else codes

    second = outputs(case.inputs)
    if second is None or not np.array_equal(second, found):
        return ["two runs on the same inputs differ: a race, or memory that is read before it is written"]

    def fails(first: int, end: int) -> bool:
        """Tell whether the outputs are wrong with every term outside first..end-1 set to zero."""
        kept = np.zeros_like(a)
        kept[:, first:end] = a[:, first:end]
        inputs = {**case.inputs, "a": kept}
        codes = outputs(inputs)
        return codes is not None and not np.array_equal(codes, run(inputs, datapath).codes)

    row, col = first_wrong

    def product(term: int) -> str:
        """Return a term of the first wrong output."""
        codes = int(a[row, term]), int(b[term, col])
        x, y = (f"{code} (0x{code & (1 << 8 * array.itemsize) - 1:0{2 * array.itemsize}x})"
                for code, array in zip(codes, (a, b), strict=True))  # fmt: skip
        return f"in the first wrong output it is {x} * {y}"

    return _terms(fails, a.shape[1], product)


def _terms(fails: Callable[[int, int], bool], k: int, product: Callable[[int], str]) -> list[str]:
    """Return the shortest stretch of terms that a search by halves finds to be wrong by itself."""
    if k < 2:
        return []
    if fails(0, 0):
        return ["wrong even where every code of a is 0"]
    right, end = 0, k  # terms 0..right-1 are right, 0..end-1 are wrong
    while end - right > 1:
        middle = (right + end) // 2
        right, end = (right, middle) if fails(0, middle) else (middle, end)
    first, right = 0, end  # terms first..end-1 are wrong, right..end-1 are right
    while right - first > 1:
        middle = (first + right) // 2
        first, right = (middle, right) if fails(middle, end) else (first, middle)
    if end - first > 1:
        return [f"needs several terms: k = {first}..{end - 1} of {k} are enough, with zeros elsewhere"]
    if k > MOST_RUNS:
        which = f"term k = {first}{', the last,' if end == k else ''} of {k}"
        return [f"{which} is enough, with zeros elsewhere; {product(first)}"]
    alone = np.array([term for term in range(k) if fails(term, term + 1)])
    if len(alone) == k:
        return ["each term is enough, with zeros elsewhere"]
    which = _along("terms k =", alone, k).replace("only ", "enough with zeros elsewhere: ")
    return [f"{which}; of k = {first}, {product(first)}" if len(alone) > 1 else f"{which}; {product(first)}"]


# The whole set.


def set_patterns(results: Sequence[CaseResult]) -> tuple[str, ...]:
    """Return what the cases that differ have in common, against those that are equal."""
    from fqtsim.golden.check import LAYOUT, shapes_of

    gemms = [result for result in results if result.case.kind == "gemm"]
    failing = [result for result in gemms if not result.equal]
    equal = [result for result in gemms if result.equal]
    if not failing or not equal:
        return ()
    found = []
    if all(result.name.endswith(LAYOUT) for result in failing):
        found.append("only operands that lie in memory column by column: strides are not followed")

    def sizes(results: Sequence[CaseResult], key: str, axis: int) -> list[int]:
        return [shapes_of(result.case)[key][axis] for result in results]

    remainders = []
    for name, key, axis in (("M", "a", 0), ("N", "b", 1), ("K", "a", 1)):
        wrong, right = sizes(failing, key, axis), sizes(equal, key, axis)
        if min(wrong) > max(right):
            found.append(f"only {name} from {min(wrong)}; {name} up to {max(right)} is right{_power(min(wrong))}")
        elif max(wrong) < min(right):
            found.append(f"only {name} up to {max(wrong)}; {name} from {min(right)} is right")
        elif len(set(wrong)) == 1 and wrong[0] not in right:
            found.append(f"only {name} = {wrong[0]}")
        else:
            remainders += _remainder(name, wrong, right)
    # Where all cases past a tile of K are wrong and not all past one of M, the one of M is chance.
    exact = [sentence for sentence, of_all in remainders if of_all]
    found += exact or [sentence for sentence, _ in remainders]
    started = ["c" in shapes_of(result.case) for result in failing]
    if all(started) and not all("c" in shapes_of(result.case) for result in equal):
        found.append("only cases with start values c")
    return tuple(found)


def _power(least: int) -> str:
    bits = (least - 1).bit_length() - 1
    return f" (past 2^{bits})" if bits >= 5 else ""


def _remainder(name: str, wrong: Sequence[int], right: Sequence[int]) -> list[tuple[str, bool]]:
    """State that only sizes that are no multiple of a tile are wrong, where most of those are; and whether all are."""
    for tile in (2, *reversed(TILES)):
        multiples = [size for size in right if size % tile == 0]
        others = [size for size in right if size % tile]
        if all(size % tile for size in wrong) and len(set(multiples)) > 1 and len(wrong) > 3 * len(others):
            return [(f"only {name} that is no multiple of {tile}", not others)]
    return []
