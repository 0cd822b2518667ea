"""A program as a kernel: it is run once for each case, and reads and writes files."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fqtsim.errors import InputError
from fqtsim.golden.case import Array, Case
from fqtsim.golden.kernels import (
    MAX_OUTPUT_BYTES,
    MOST_TEXT,
    TIME_LIMIT,
    Kernel,
    KernelFault,
    arguments_of,
    outputs_by_name,
    read_arrays,
    signal_words,
    write_arrays,
)

FORMATS = ("npz", "safetensors")
OPTIONAL = ("c", "bias", "rand_bits")
"""Inputs that only some cases have; in a command they are - elsewhere."""
ABSENT = "-"
_NAME = re.compile(r"\{([A-Za-z_][\w.]*)\}")


class CommandKernel(Kernel):
    """A command that reads files of inputs and writes files of outputs, once for each case. No shell is involved.

    All arrays in two files: {inputs} and {outputs}, npz or safetensors, and {parameters}, a JSON file of what a
    convolution or quantizer needs beside arrays. Or one raw file for each array, little-endian and row by row: {a} and
    {b} to read, {codes} to write, {a.0} and {a.1} the sizes of a; likewise for every input and output of the case's
    kind. {c} has the width of {codes}, and is - where a case has none. Other parameters stand as text, {groups} or
    {stride.0}. {case} is the case's name.
    """

    def __init__(self, command: str, time_limit: float = TIME_LIMIT, form: str = "npz") -> None:
        """form: npz or safetensors, of {inputs} and {outputs}. Raises InputError for a command that names no files."""
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise InputError(f"--command {command}: cannot be split into words ({error}); close the quotes") from None
        self._names = tuple(dict.fromkeys(_NAME.findall(command)))
        if not self._names or ("inputs" in self._names) != ("outputs" in self._names):
            raise InputError(
                f"--command {command}: must name its files; write ./kernel {{inputs}} {{outputs}} for npz, or for raw "
                "files ./kernel {a.0} {a.1} {b.1} {a} {b} {c} {codes}"
            )
        if form not in FORMATS:
            raise InputError(f"format = {form}: must be one of {', '.join(FORMATS)}")
        self.name, self._limit, self._form = command, time_limit, form

    def run(self, case: Case, inputs: Mapping[str, Array] | None = None) -> dict[str, Any]:
        """Write the inputs, run the command, read what it wrote. Raises KernelFault, InputError for unknown names."""
        with tempfile.TemporaryDirectory(prefix="fqtsim-") as folder:
            arguments = arguments_of(case, inputs)
            if "inputs" in self._names:
                return self._by_archive(case, arguments, Path(folder))
            return self._by_raw_files(case, arguments, Path(folder))

    def _by_archive(self, case: Case, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        files = {name: folder / f"{name}.{self._form}" for name in ("inputs", "outputs")}
        files["parameters"] = folder / "parameters.json"
        arrays = {name: np.ascontiguousarray(value) for name, value in arguments.items() if name in case.inputs}
        write_arrays(files["inputs"], arrays)
        rest = {name: value for name, value in arguments.items() if name not in case.inputs}
        files["parameters"].write_text(json.dumps(rest), encoding="utf-8")
        self._execute({"case": case.name, **{name: str(file) for name, file in files.items()}})
        if not files["outputs"].is_file():
            raise KernelFault("wrote no file of outputs")
        return outputs_by_name(read_arrays(files["outputs"]), case)

    def _by_raw_files(self, case: Case, arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        words = {"case": case.name, **dict.fromkeys(OPTIONAL, ABSENT)}
        for name, value in arguments.items():
            sizes = value
            if name in case.inputs:
                sizes = value.shape
                words[name] = str(folder / name)
                if name == "c":  # a C program reads it into the array that it adds to
                    value = value.astype(case.expected["codes"].dtype)
                little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"), copy=False)
                Path(words[name]).write_bytes(little.tobytes())
            elif isinstance(value, str | int | float):
                words[name], sizes = str(value), ()
            words |= {f"{name}.{axis}": str(size) for axis, size in enumerate(sizes or ())}
        written = {name: folder / f"out.{name}" for name in case.expected if name in self._names}
        words |= {name: str(file) for name, file in written.items()}
        unknown = [name for name in self._names if name not in words]
        if unknown or not written:
            wrong = f"{{{unknown[0]}}} is nothing of" if unknown else "names no output of"
            known = ", ".join(f"{{{name}}}" for name in dict.fromkeys((*words, *case.expected)))
            raise InputError(f"--command {self.name}: {wrong} case {case.name}, {case.kind}; it has {known}")
        self._execute(words)
        return {name: _raw(file, name, case.expected[name]) for name, file in written.items()}

    def _execute(self, names: Mapping[str, str]) -> None:
        # In one pass: what is put in is not searched for names again.
        words = [_NAME.sub(lambda found: names.get(found[1], found[0]), word) for word in self._words]
        try:
            done = subprocess.run(
                words, capture_output=True, timeout=self._limit, stdin=subprocess.DEVNULL, check=False
            )
        except subprocess.TimeoutExpired:
            raise KernelFault(f"gave no answer within {self._limit:g} s; the command was ended") from None
        except OSError as error:
            raise InputError(f"--command {self.name}: {words[0]}: {error.strerror}; check the path") from None
        if done.returncode:
            said = " ".join(done.stderr.decode(errors="replace").split())[-MOST_TEXT:]
            raise KernelFault(f"ended{signal_words(done.returncode)}{f': {said}' if said else ''}")


def _raw(path: Path, name: str, right: Array) -> Array:
    """Return a raw output; integers may be of any width. Raises KernelFault for a file of another size."""
    if not path.is_file():
        raise KernelFault(f"wrote no file {{{name}}}")
    length, count = path.stat().st_size, math.prod(right.shape)
    widths = (1, 2, 4, 8) if right.dtype.kind in "iu" else (right.itemsize,)
    width = next((width for width in widths if count and length == width * count), right.itemsize)
    if length != width * count or length > MAX_OUTPUT_BYTES:
        shape = " x ".join(map(str, right.shape)) or "one"
        raise KernelFault(
            f"wrote {length} bytes to {{{name}}}, which are not {shape} numbers of {right.dtype}: "
            f"{right.itemsize * count} bytes"
        )
    return np.frombuffer(path.read_bytes(), f"<{right.dtype.kind}{width}").reshape(right.shape)
