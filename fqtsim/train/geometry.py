"""Where a sliding window lies: sizes, strides, padding and dilation of convolutions and pools, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from fqtsim.errors import InputError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A window that slides over the last two dimensions (h, w); every pair is (vertical, horizontal)."""

    kernel: Pair
    stride: Pair
    #: Zeros before the first row and column, and after the last ones.
    before: Pair
    after: Pair
    dilation: Pair = (1, 1)
    #: Round the number of positions up; the last window may then hang over the end.
    ceil_mode: bool = False

    def extent(self, axis: int) -> int:
        """Return how many input positions one window spans."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def positions(self, size: Pair) -> Pair:
        """Return the output size for an input of this size. Raises InputError where the window does not fit."""
        return self._positions(size, 0), self._positions(size, 1)

    def _positions(self, size: Pair, axis: int) -> int:
        padded = size[axis] + self.before[axis] + self.after[axis]
        room, stride = padded - self.extent(axis), self.stride[axis]
        if room < 0 or size[axis] == 0:
            raise InputError(
                f"input of {size[0]} x {size[1]} positions: a window that spans {self.extent(0)} x {self.extent(1)} "
                "does not fit with its padding; feed larger images or remove a pooling stage"
            )
        count = (room + (stride - 1 if self.ceil_mode else 0)) // stride + 1
        # torch drops a last window that would start beyond the input and its leading padding.
        if self.ceil_mode and (count - 1) * stride >= size[axis] + self.before[axis]:
            count -= 1
        return count
