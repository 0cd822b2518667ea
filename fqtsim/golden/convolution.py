"""A convolution case as the GEMM it is: which code of which tensor stands at every k, and what becomes of the outputs.

It is written from the indices of a convolution (S4.7), with a switch for every usual way to get it wrong, so that a
wrong kernel can be run beside the right one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fqtsim.golden.case import Array, Case

Pair = tuple[int, int]

SIDES = {"conv_fprop": ("x", "w"), "conv_dgrad": ("dh", "w"), "conv_wgrad": ("x", "dh")}
#: What the three parts of k count, the last one fastest.
ORDER_OF_K = {
    "conv_fprop": ("kh", "kw", "channel"),
    "conv_dgrad": ("kh", "kw", "output channel"),
    "conv_wgrad": ("image", "oh", "ow"),
}
PADDING, HOLE = -1, -2


@dataclass(frozen=True, eq=False)
class Convolution:
    """One of the three convolutions of a layer; pairs are (vertical, horizontal), codes are those of the multiplier."""

    kind: str
    #: The tensor that the window slides over, (N, C, H, W), and the other one.
    first: Array
    second: Array
    outputs: tuple[int, ...]
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    #: What padding, and the holes of a stride in dgrad, hold.
    padding_code: int
    hole_code: int
    #: Order of the three parts of k.
    order: tuple[int, int, int] = (0, 1, 2)
    #: Ways to be wrong: taps read backwards, no holes between the codes of dH, channels of group 0 for every group.
    flipped: bool = False
    filled_holes: bool = False
    one_group: bool = False

    @staticmethod
    def of(case: Case) -> Convolution:
        """Return the convolution that a case asks for."""
        known, (one, other) = case.parameters, SIDES[case.kind]
        kernel = known["kernel"] if case.kind == "conv_wgrad" else case.inputs["w"].shape[2:]

        def pair(values: tuple[int, ...]) -> Pair:
            return int(values[0]), int(values[1])

        return Convolution(
            case.kind, case.inputs[one], case.inputs[other], case.expected["codes"].shape, pair(kernel),
            pair(known["stride"]), pair(known["padding"]), pair(known["dilation"]), int(known["groups"]),
            int(known["fill"]), int(known["fill"]),
        )  # fmt: skip

    def sources(self, axis: int) -> Array:
        """Return the index of `first` that each tap reads along h (0) or w (1), PADDING or HOLE; (positions, taps)."""
        taps = np.arange(self.kernel[axis])[None, :]
        stride, padding, dilation = self.stride[axis], self.padding[axis], self.dilation[axis]
        if self.kind == "conv_dgrad":
            reached = np.arange(self.outputs[2 + axis])[:, None] + padding - taps * dilation
            places, hole = reached // stride, reached % stride != 0
            if self.filled_holes:
                places, hole = reached, np.zeros_like(hole)
        else:
            count = (self.outputs if self.kind == "conv_fprop" else self.second.shape)[2 + axis]
            places = np.arange(count)[:, None] * stride + taps * dilation - padding
            hole = np.zeros(places.shape, bool)
        inside = (places >= 0) & (places < self.first.shape[2 + axis])
        found = np.where(hole, HOLE, np.where(inside, places, PADDING))
        return found[:, ::-1] if self.flipped else found

    def matrices(self, group: int) -> tuple[Array, Array]:
        """Return the operands (M, K) and (K, N) of one group's GEMM."""
        a, b = self._gathered(group), self._others(group)
        if self.order != (0, 1, 2):
            parts = self._parts_of_k()
            a = a.reshape(-1, *parts).transpose(0, *(1 + part for part in self.order)).reshape(a.shape)
            b = b.reshape(*parts, -1).transpose(*self.order, 3).reshape(b.shape)
        return np.ascontiguousarray(a), np.ascontiguousarray(b)

    def _gathered(self, group: int) -> Array:
        channels = self.first.shape[1] // self.groups
        start = 0 if self.one_group else group * channels
        part = self.first[:, start : start + channels]
        down, across = self.sources(0)[:, :, None, None], self.sources(1)[None, None]
        codes = part[:, :, np.maximum(down, 0), np.maximum(across, 0)]  # (N, C, OH, KH, OW, KW)
        codes = np.where((down == PADDING) | (across == PADDING), self.padding_code, codes)
        codes = np.where((down == HOLE) | (across == HOLE), self.hole_code, codes).astype(part.dtype)
        if self.kind == "conv_wgrad":
            count = self.kernel[0] * self.kernel[1] * channels
            return codes.transpose(3, 5, 1, 0, 2, 4).reshape(count, -1)
        rows = codes.shape[0] * codes.shape[2] * codes.shape[4]
        return codes.transpose(0, 2, 4, 3, 5, 1).reshape(rows, -1)

    def _others(self, group: int) -> Array:
        axis = 1 if self.kind == "conv_wgrad" else 0
        each = self.second.shape[axis] // self.groups
        part = np.take(self.second, np.arange(group * each, (group + 1) * each), axis)
        if self.kind == "conv_fprop":
            return part.transpose(2, 3, 1, 0).reshape(-1, each)
        if self.kind == "conv_dgrad":
            return part.transpose(2, 3, 0, 1).reshape(-1, part.shape[1])
        return part.transpose(0, 2, 3, 1).reshape(-1, each)

    def _parts_of_k(self) -> tuple[int, int, int]:
        if self.kind == "conv_wgrad":
            return self.second.shape[0], self.second.shape[2], self.second.shape[3]
        return self.kernel[0], self.kernel[1], self.first.shape[1] // self.groups

    def as_matrix(self, codes: Array, group: int) -> Array:
        """Return the outputs of one group as its GEMM has them, (M, N)."""
        axis = 0 if self.kind == "conv_wgrad" else 1
        each = codes.shape[axis] // self.groups
        part = np.take(codes, np.arange(group * each, (group + 1) * each), axis)
        turned = part.transpose(2, 3, 1, 0) if self.kind == "conv_wgrad" else part.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(turned.reshape(-1, each))

    def place(self, index: tuple[int, ...]) -> tuple[int, int, int]:
        """Return group, row and column of an output."""
        channels = self.outputs[0 if self.kind == "conv_wgrad" else 1]
        each = channels // self.groups
        if self.kind == "conv_wgrad":
            group, col = divmod(index[0], each)
            sizes: tuple[int, ...] = (*self.outputs[2:], self.outputs[1])
            return group, int(np.ravel_multi_index((index[2], index[3], index[1]), sizes)), col
        group, col = divmod(index[1], each)
        sizes = (self.outputs[0], *self.outputs[2:])
        return group, int(np.ravel_multi_index((index[0], index[2], index[3]), sizes)), col

    def terms(self, index: tuple[int, ...]) -> tuple[str, ...]:
        """Return what every k of an output is: its three parts, and whether padding or a hole stands there."""
        down, across = self.sources(0), self.sources(1)
        found = []
        for parts in np.ndindex(*self._parts_of_k()):
            if self.kind == "conv_wgrad":
                read = {down[parts[1], index[2]], across[parts[2], index[3]]}
            else:
                read = {down[index[2], parts[0]], across[index[3], parts[1]]}
            note = " hole" if HOLE in read else " padding" if PADDING in read else ""
            found.append(", ".join(map(str, parts)) + note)
        return tuple(found)
