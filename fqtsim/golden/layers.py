"""Golden cases of a convolution's three GEMMs and of a whole linear layer step (S4.7, S5 "The three GEMMs").

Operands go through the lowering and the GEMMs of training; a sample of the outputs is repeated from the definition of
a convolution, index by index, and the definition of a datapath.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fqtsim import streams
from fqtsim.api.requantize import random_bits
from fqtsim.backends import Events, GemmResult, get_backend
from fqtsim.golden.case import Array, Case
from fqtsim.golden.codes import check_codes, random_values, zero_word
from fqtsim.golden.coverage import gemm_coverage, is_counted_by_level, run
from fqtsim.golden.inputs import Draw, Inputs, extent
from fqtsim.golden.recheck import check_sample, fault
from fqtsim.hw.spec import Datapath, Hardware
from fqtsim.quantizers import quantizer
from fqtsim.ref.gemm import dot
from fqtsim.train import functional, lowering
from fqtsim.train.gemm import Gemm
from fqtsim.train.geometry import Window
from fqtsim.train.operands import Operand, encoded
from fqtsim.train.run import Run
from fqtsim.words import GEMMS, Rounding, ZeroPoint

CHECKED_OUTPUTS, CHECKED_TERMS = 12, 100_000
"""Outputs of a convolution that the definition repeats, fewer where each has many terms."""


@dataclass(frozen=True)
class Geometry:
    """One convolution; pairs are (vertical, horizontal)."""

    samples: int
    channels: int
    size: tuple[int, int]
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def window(self) -> Window:
        return Window(self.kernel, self.stride, self.padding, self.padding, self.dilation)

    @property
    def positions(self) -> tuple[int, int]:
        return self.window.positions(self.size)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of x, w or dh."""
        return {
            "x": (self.samples, self.channels, *self.size),
            "w": (self.outputs, self.channels // self.groups, *self.kernel),
            "dh": (self.samples, self.outputs, *self.positions),
        }[tensor]


GEOMETRIES = {
    "plain": Geometry(2, 3, (7, 5), 4, (3, 3), padding=(1, 1)),
    "strided": Geometry(1, 4, (8, 9), 6, (3, 3), stride=(2, 2), padding=(1, 1)),
    "uneven": Geometry(2, 3, (9, 8), 5, (2, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "grouped": Geometry(1, 6, (6, 5), 4, (3, 2), padding=(1, 0), groups=2),
    "depthwise": Geometry(2, 5, (5, 7), 5, (3, 3), stride=(1, 2), padding=(1, 1), groups=5),
    "pointwise": Geometry(2, 19, (3, 4), 7, (1, 1)),
    "pointwise_strided": Geometry(1, 5, (5, 4), 3, (1, 1), stride=(2, 2)),
    "whole": Geometry(3, 2, (4, 5), 3, (4, 5)),
    "long": Geometry(1, 70, (6, 6), 3, (3, 3), padding=(2, 2)),
}
SIDES = {"fprop": ("x", "w"), "dgrad": ("dh", "w"), "wgrad": ("x", "dh")}


def conv_cases(hardware: Hardware, seed: int) -> list[Case]:
    """Return the convolution cases of all three GEMMs: random codes, and codes at their ends for long sums."""
    cases = []
    for gemm in GEMMS:
        for name, geometry in GEOMETRIES.items():
            for pattern in ("random", "ends") if name in ("plain", "long", "grouped") else ("random",):
                cases.append(_conv_case(f"conv_{gemm}_{name}_{pattern}", gemm, geometry, pattern, hardware, seed))
    return cases


def _conv_case(name: str, gemm: str, geometry: Geometry, pattern: str, hardware: Hardware, seed: int) -> Case:
    datapath, draw = hardware.datapath_for(gemm), Draw(seed, name)
    sides = SIDES[gemm]
    inputs: Inputs = {}
    for side, tensor in zip(("a", "b"), sides, strict=True):
        low, high = extent(datapath, side)
        shape, storage = geometry.shape(tensor), datapath.multiplier_format(side).storage  # type: ignore[arg-type]
        if pattern == "random":
            inputs[tensor] = draw.integers(low, high, shape, storage)
        else:  # mostly one end, so that sums go far
            inputs[tensor] = draw.choices([high, high, high, low, high - 1], shape).astype(storage)
    fill = 0 if datapath.zero_point is not ZeroPoint.AFTER_ACCUMULATE else _fill(datapath, draw, pattern)
    return conv_case(name, gemm, geometry, inputs, fill, hardware)


def conv_case(name: str, gemm: str, geometry: Geometry, inputs: Inputs, fill: int, hardware: Hardware) -> Case:
    """Return a case of codes in the layout of the layer: two of x, w and dh; fill is the code of real zero."""
    datapath = hardware.datapath_for(gemm)
    parameters: dict[str, Any] = {
        "stride": list(geometry.stride), "padding": list(geometry.padding), "dilation": list(geometry.dilation),
        "groups": geometry.groups, "fill": fill,
    }  # fmt: skip
    if gemm != "fprop":
        parameters |= {"size": list(geometry.size)} if gemm == "dgrad" else {"kernel": list(geometry.kernel)}
    codes, events, coverage = _convolve(gemm, geometry, inputs, fill, datapath)
    _check_conv(name, gemm, geometry, inputs, fill, datapath, codes)
    counted = {key: getattr(events, key) for key in ("altered", "out_of_range", "transient")}
    return Case(name, f"conv_{gemm}", parameters, inputs, {"codes": codes}, counted, coverage, {})


def _fill(datapath: Datapath, draw: Draw, pattern: str) -> int:
    """Return the code of real zero: an end of the format, or any code."""
    low, high = extent(datapath, "a")
    return high if pattern == "ends" else int(draw.integers(low, high, (1,))[0])


def _convolve(
    gemm: str, geometry: Geometry, inputs: Inputs, fill: int, datapath: Datapath
) -> tuple[Array, Events, dict[str, int]]:
    """Return the accumulators in the layout of the layer, and what was counted, one GEMM a group."""
    parts, events, counts = [], Events(), Counter[str]()
    for group in range(geometry.groups):
        operands = matrices(gemm, geometry, inputs, fill, group)
        result = run(operands, datapath, trace=is_counted_by_level(operands))
        counts.update(gemm_coverage(operands, datapath, result))
        events = events + result.events
        parts.append(_laid_out(gemm, geometry, result))
    return np.ascontiguousarray(np.concatenate(parts, axis=0 if gemm == "wgrad" else 1)), events, dict(counts)


def matrices(gemm: str, geometry: Geometry, inputs: Inputs, fill: int, group: int) -> Inputs:
    """Return a (M, K) and b (K, N) of one group's GEMM; fill stands where padding and the holes of a stride are."""
    each_in, each_out = geometry.channels // geometry.groups, geometry.outputs // geometry.groups
    cuts = {"x": (1, each_in), "w": (0, each_out), "dh": (1, each_out)}

    def part(tensor: str) -> Operand:
        axis, each = cuts[tensor]
        whole = Operand(inputs[tensor], np.ones((), np.float32), np.array(fill, np.int64))
        return whole.channels(axis, group * each, (group + 1) * each)

    first, second = (part(tensor) for tensor in SIDES[gemm])
    if gemm == "fprop":
        return {"a": lowering.fprop_rows(first, geometry.window), "b": lowering.fprop_weight(second.codes)}
    if gemm == "dgrad":
        rows = lowering.dgrad_rows(first, geometry.window, geometry.size)
        return {"a": rows, "b": lowering.dgrad_weight(second.codes)}
    return {"a": lowering.wgrad_rows(first, geometry.window), "b": lowering.wgrad_columns(second.codes)}


def _laid_out(gemm: str, geometry: Geometry, result: GemmResult) -> Array:
    columns = result.codes.shape[1]
    if gemm == "wgrad":
        return result.codes.reshape(*geometry.kernel, -1, columns).transpose(3, 2, 0, 1)
    place = geometry.positions if gemm == "fprop" else geometry.size
    return result.codes.reshape(geometry.samples, *place, columns).transpose(0, 3, 1, 2)


def _check_conv(
    name: str, gemm: str, geometry: Geometry, inputs: Inputs, fill: int, datapath: Datapath, codes: Array
) -> None:
    """Repeat some outputs from the definition of a convolution. Raises AssertionError where they differ."""
    terms_of_each = geometry.samples * int(np.prod(geometry.positions)) if gemm == "wgrad" else 1
    checked = max(1, min(CHECKED_OUTPUTS, CHECKED_TERMS // terms_of_each))
    for flat in range(0, codes.size, max(1, codes.size // checked)):
        index = tuple(int(part) for part in np.unravel_index(flat, codes.shape))
        terms = list(_TERMS[gemm](geometry, inputs, fill, index))
        output = dot([a for a, _ in terms], [b for _, b in terms], datapath.levels)
        if output.code != codes[index]:
            raise fault(name, f"output {index}")


def _at(tensor: Array, n: int, channel: int, h: int, w: int, fill: int) -> int:
    inside = 0 <= h < tensor.shape[2] and 0 <= w < tensor.shape[3]
    return int(tensor[n, channel, h, w]) if inside else fill


def _fprop_terms(geo: Geometry, inputs: Inputs, fill: int, index: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    n, co, oh, ow = index
    first = co // (geo.outputs // geo.groups) * (geo.channels // geo.groups)
    for kh in range(geo.kernel[0]):
        for kw in range(geo.kernel[1]):
            h = oh * geo.stride[0] + kh * geo.dilation[0] - geo.padding[0]
            w = ow * geo.stride[1] + kw * geo.dilation[1] - geo.padding[1]
            for ci in range(geo.channels // geo.groups):
                yield _at(inputs["x"], n, first + ci, h, w, fill), int(inputs["w"][co, ci, kh, kw])


def _dgrad_terms(geo: Geometry, inputs: Inputs, fill: int, index: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    n, c, h, w = index
    each = geo.channels // geo.groups
    first = c // each * (geo.outputs // geo.groups)
    for kh in range(geo.kernel[0]):
        for kw in range(geo.kernel[1]):
            down, down_left = divmod(h + geo.padding[0] - kh * geo.dilation[0], geo.stride[0])
            right, right_left = divmod(w + geo.padding[1] - kw * geo.dilation[1], geo.stride[1])
            hole = down_left or right_left
            for co in range(first, first + geo.outputs // geo.groups):
                code = fill if hole else _at(inputs["dh"], n, co, down, right, fill)
                yield code, int(inputs["w"][co, c % each, kh, kw])


def _wgrad_terms(geo: Geometry, inputs: Inputs, fill: int, index: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    co, ci, kh, kw = index
    channel = co // (geo.outputs // geo.groups) * (geo.channels // geo.groups) + ci
    for n in range(geo.samples):
        for oh in range(geo.positions[0]):
            for ow in range(geo.positions[1]):
                h = oh * geo.stride[0] + kh * geo.dilation[0] - geo.padding[0]
                w = ow * geo.stride[1] + kw * geo.dilation[1] - geo.padding[1]
                yield _at(inputs["x"], n, channel, h, w, fill), int(inputs["dh"][n, co, oh, ow])


_TERMS = {"fprop": _fprop_terms, "dgrad": _dgrad_terms, "wgrad": _wgrad_terms}

# A linear layer step: four ports, three GEMMs, their epilogues.

_PORTS = {
    "x": ("x", streams.ACTIVATION, (("fprop", "a"), ("wgrad", "a"))),
    "w": ("w", streams.WEIGHT, (("fprop", "b"), ("dgrad", "b"))),
    "dh_for_wgrad": ("dh", streams.GRAD_FOR_WGRAD, (("wgrad", "b"),)),
    "dh_for_dgrad": ("dh", streams.GRAD_FOR_DGRAD, (("dgrad", "a"),)),
}
"""Port: its tensor, its random stream, and the GEMMs and operands that read it; codes are of the first one's format."""
SHAPES = {"linear_small": (5, 7, 3), "linear_odd": (17, 33, 9), "linear_long": (4, 257, 6), "linear_batch": (130, 6, 5),
          "linear_one_sign": (3, 4000, 4)}  # fmt: skip
"""Samples, input features, output features; values of one sign push every product the same way."""


def linear_cases(hardware: Hardware, seed: int) -> list[Case]:
    """Return whole steps of a linear layer: quantize x, w and dh per tensor, three GEMMs, y, dx and dw in float32."""
    return [_linear_case(name, shape, hardware, seed) for name, shape in SHAPES.items()]


def _linear_case(name: str, shape: tuple[int, int, int], hardware: Hardware, seed: int) -> Case:
    samples, features, outputs = shape
    draw = Draw(seed, name)
    inputs = {
        "x": random_values(draw, (samples, features)),
        "w": random_values(draw, (outputs, features), 0.25),
        "dh": random_values(draw, (samples, outputs), 1e-3),
    }
    if name == "linear_one_sign" or linear_zero(hardware) == "symmetric":
        inputs = {key: np.abs(value) for key, value in inputs.items()}  # unsigned symmetric codes hold no negative
    return linear_case(name, inputs, hardware, seed)


def linear_zero(hardware: Hardware) -> str:
    """Return "aligned", or "symmetric" where one of the three datapaths has no zero points."""
    return "symmetric" if any(zero_word(hardware, gemm) == "symmetric" for gemm in GEMMS) else "aligned"


def linear_case(name: str, inputs: Inputs, hardware: Hardware, seed: int) -> Case:
    """Return a whole step of a linear layer on float32 x (samples, features), w (outputs, features) and dh."""
    zero = linear_zero(hardware)
    ports, parameters, expected, drawn = {}, {}, {}, {}
    for port, (tensor, stream, readers) in _PORTS.items():
        forms = [getattr(hardware.datapath_for(gemm), f"{operand}_format") for gemm, operand in readers]
        random = hardware.random if tensor == "dh" else None
        settings: dict[str, Any] = {
            "quantizer": "ptq", "bits": min(form.bits for form in forms),
            "rounding": (Rounding.TIES_TO_EVEN if random is None else Rounding.STOCHASTIC).value,
            "random_bits": None if random is None else random.bits, "zero": zero, "format": forms[0].name,
        }  # fmt: skip
        made = quantizer(settings["quantizer"], *(settings[key] for key in ("bits", "rounding", "random_bits", "zero",
                                                                            "format")))  # fmt: skip
        ports[port] = made.quantize(inputs[tensor], seed, stream, 0)
        if random is not None:
            words = random_bits(seed, stream, 0, inputs[tensor].size, random.bits).reshape(inputs[tensor].shape)
            drawn[f"rand_bits_{port}"] = words
        check_codes(f"{name}, {port}", inputs[tensor], ports[port], settings, drawn.get(f"rand_bits_{port}"))
        parameters[port] = settings
        for key in ("codes", "step", "zero_point"):
            expected[f"{port}.{key}"] = np.asarray(getattr(ports[port], key))
    events, coverage = _multiply(name, ports, hardware, seed, expected)
    return Case(name, "linear_step", parameters, {**inputs, **drawn}, expected, events, coverage, {})


def _multiply(
    name: str, ports: Mapping[str, Any], hardware: Hardware, seed: int, expected: dict[str, Array]
) -> tuple[dict[str, int], dict[str, int]]:
    """Add accumulators and float32 results of the three GEMMs to `expected`; return events and coverage."""
    seen: dict[str, tuple[Array, Array, GemmResult]] = {}

    def observe(layer: str, gemm: str, a: Array, b: Array, path: Datapath, c: Any, result: GemmResult) -> None:
        seen[gemm] = (a, b, result)

    shared = Run(get_backend("emulator"), seed, trace=True, observers=[observe])
    products = {"fprop": ("y", "x", "w", functional.linear_fprop),
                "dgrad": ("dx", "dh_for_dgrad", "w", functional.linear_dgrad),
                "wgrad": ("dw", "x", "dh_for_wgrad", functional.linear_wgrad)}  # fmt: skip
    total, counts = Events(), Counter[str]()
    for gemm, (output, a_port, b_port, function) in products.items():
        path = hardware.datapath_for(gemm)
        left = encoded(ports[a_port], path.a_format, path.zero_point)
        right = encoded(ports[b_port], path.b_format, path.zero_point)
        found = function(left, right, Gemm(name, gemm, path, shared))
        a, b, result = seen[gemm]
        check_sample(f"{name}, {gemm}", {"a": a, "b": b}, path, result)
        values = _epilogue(left, right, a, b, result.codes.astype(np.int64) << path.dropped_bits)
        if not np.array_equal(found, values.T if gemm == "wgrad" else values):
            raise fault(name, f"epilogue of {gemm}")
        expected |= {output: np.ascontiguousarray(found), f"{gemm}.codes": result.codes}
        total = total + result.events
        counts.update({f"{gemm}.{key}": count for key, count in
                       gemm_coverage({"a": a, "b": b}, path, result).items()})  # fmt: skip
    return {key: getattr(total, key) for key in ("altered", "out_of_range", "transient")}, dict(counts)


def _epilogue(left: Operand, right: Operand, a: Array, b: Array, acc: Array) -> Array:
    """Return what the accumulators mean in float32, written out from S4.6 and S5.8 for scalar steps."""
    za, zb = int(left.zero_point), int(right.zero_point)
    sums_a, sums_b = a.sum(axis=1, dtype=np.int64), b.sum(axis=0, dtype=np.int64)
    integers = acc - za * sums_b[None, :] - zb * sums_a[:, None] + a.shape[1] * za * zb
    scale = np.float64(np.asarray(left.step)) * np.float64(np.asarray(right.step))
    values: Array = (integers.astype(np.float64) * scale).astype(np.float32)
    return values
