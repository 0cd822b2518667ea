"""What stops a step, noted on the device and read once (S5.9).

Every operation that can meet NaN, infinity or a number out of range has a site: one element of an int32 tensor on the
device, which the operation raises, and a text on the host. The first site in the order of the program is the one that
would have stopped the step on a CPU; results after it are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fqtsim.errors import InputError, TrainingStopped
from fqtsim.kernels.gpu.launch import Fault

CAPACITY = 1 << 14
"""Sites between two readings; more than any network's step has."""

_TEXTS = {
    Fault.NOT_FINITE: "NaN or infinity; the step cannot go on",
    Fault.BEYOND_FLOAT32: "a sum is beyond float32; the step cannot go on",
    Fault.OUT_OF_RANGE: "an argument is out of range; the step cannot go on",
}


class FaultLog:
    """The sites of one device since the last reading."""

    def __init__(self, device: torch.device) -> None:
        self.flags = torch.zeros(CAPACITY, dtype=torch.int32, device=device)
        self.sites: list[str] = []
        #: What is being computed, and in which training step.
        self.place, self.step = "", 0
        #: Whether somebody reads the log once at the end, so that nothing before it waits for the device.
        self.deferred = False

    def site(self) -> torch.Tensor:
        """Return the int32 (1,) that an operation of this place raises where it meets a fault."""
        if len(self.sites) == CAPACITY:
            self.read()
        self.sites.append(self.place)
        return self.flags[len(self.sites) - 1 : len(self.sites)]

    def forget(self) -> None:
        """Drop everything noted."""
        self.flags.zero_()  # also what a program noted that did not come to its end
        self.sites.clear()

    def read(self) -> None:
        """Wait for the device. Raises TrainingStopped, or InputError for a negative value, at the first site noted."""
        if not self.sites:
            return
        flags, sites = self.flags[: len(self.sites)].tolist(), list(self.sites)
        first = next(((Fault(flag), site) for flag, site in zip(flags, sites, strict=True) if flag), None)
        self.forget()
        if first is None:
            return
        fault, place = first
        site = f"step {self.step}: {place}" if place else ""
        if fault is Fault.NEGATIVE:
            raise InputError(
                f"{site}: holds a negative value, and zero = symmetric in an unsigned format has no code below 0; "
                'use a signed format or zero = "aligned"'
            )
        raise TrainingStopped(f"{site}: {_TEXTS[fault]}" if site else _TEXTS[fault])

    def enter(self, text: str, step: int | None = None) -> str:
        """Say what is computed from now on, and in which step unless it is the same; return what was said before."""
        before, self.place = self.place, text
        self.step = self.step if step is None else step
        return before

    def settle(self) -> None:
        """Raise what was noted, unless somebody reads it later."""
        if not self.deferred:
            self.read()

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        """Give the sites of what the block computes, and zero their flags on the device as its first operation.

        A program that is replayed notes its faults in the same flags: `expect` its sites before a reading.
        """
        before = self.sites, self.deferred
        self.sites, self.deferred = [], True
        self.flags.zero_()
        try:
            yield self.sites
        finally:
            self.sites, self.deferred = before

    def expect(self, sites: Sequence[str], step: int) -> None:
        """Say what sites the flags now belong to."""
        self.sites, self.step = list(sites), step

    @contextmanager
    def reading_once(self) -> Iterator[None]:
        """Let what is noted in the block wait for its end, if it gets there; a block inside another changes nothing."""
        if self.deferred:
            yield
            return
        self.forget()
        self.deferred = True
        try:
            yield
            self.read()
        finally:
            self.deferred = False
            self.forget()
