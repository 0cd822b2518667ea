"""Ways to run somebody's kernel on a case: a function, a function in a process of its own, a file; see command.py too.

Whatever a kernel does (raise, hang, crash, write nonsense) becomes a KernelFault with one line of text. Input arrays
are copies, so that a kernel cannot change the set that judges it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import multiprocessing
import os
import sys
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from fqtsim.errors import InputError
from fqtsim.golden.case import Array, Case, kernel_arguments

TIME_LIMIT = 120.0
"""Seconds that a kernel has for one case."""
MAX_OUTPUT_BYTES = 1 << 30
"""Largest file of outputs, and most bytes of all its arrays together."""
START_LIMIT = 120.0
"""Seconds that importing a kernel's module may take."""
MOST_TEXT = 400
"""Characters of what a kernel said that are passed on."""


class KernelFault(Exception):
    """A kernel gave no outputs to compare; the text says what it did instead."""


class Kernel(ABC):
    """A kernel under test. A context manager: leaving it ends its process, where it has one."""

    #: What reports call it.
    name: str
    #: Whether it can be run on inputs that are not in the set, to find out more about a mismatch.
    can_run_again = True

    @abstractmethod
    def run(self, case: Case, inputs: Mapping[str, Array] | None = None) -> dict[str, Any]:
        """Return the outputs of a case by name, from `inputs` in place of its own where given. Raises KernelFault."""

    def close(self) -> None:  # noqa: B027 - most kernels hold nothing
        """End what the kernel needs to run."""

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def as_kernel(kernel: Kernel | Callable[..., Any], time_limit: float = TIME_LIMIT) -> Kernel:
    """Return a Kernel; a plain function is called in this process. Raises InputError for anything else."""
    if isinstance(kernel, Kernel):
        return kernel
    if callable(kernel):
        return FunctionKernel(kernel, time_limit=time_limit)
    raise InputError(f"kernel = {kernel!r}: must be a function of a case's arguments, or one of fqtsim.golden.kernels")


def arguments_of(case: Case, inputs: Mapping[str, Array] | None) -> dict[str, Any]:
    """Return what the kernel is called with: copies, row-major unless `inputs` are laid out otherwise."""
    arguments = {**kernel_arguments(case), **(inputs or {})}
    return {name: value.copy("K") if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def outputs_by_name(answer: Any, case: Case) -> dict[str, Any]:
    """Return a kernel's answer as outputs by name: an array is "codes", a tuple follows the order of the set."""
    names = list(case.expected)
    if isinstance(answer, Mapping):
        return {str(name): _plain(value, str(name)) for name, value in answer.items()}
    if isinstance(answer, tuple):
        return {name: _plain(value, name) for name, value in zip(names, answer, strict=False)}
    first = "codes" if "codes" in names else names[0]
    return {first: _plain(answer, first)}


def _plain(value: Any, name: str) -> Array:
    """Return any library's array as NumPy's. Raises KernelFault for what is none."""
    if value is None:
        raise KernelFault(f"returned None for {name}; return the array of codes")
    if hasattr(value, "detach"):  # torch, on any device
        value = value.detach().cpu()
    try:
        found: Array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise KernelFault(
            f"returned {type(value).__name__} for {name}, which is no array ({_one_line(error)})"
        ) from None
    if found.dtype.kind not in "biuf":
        raise KernelFault(f"returned {type(value).__name__} for {name}, which is no array of numbers")
    return found


def not_called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str | None:
    """Return why a function cannot be called with these arguments by keyword; None where it can, or cannot be told."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions in C nothing is known
        return None
    try:
        signature.bind(**arguments)
    except TypeError as error:
        return f"cannot be called ({error}): the arguments, by keyword, are {', '.join(sorted(arguments))}"
    return None


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."


def _raised(error: BaseException) -> str:
    """Return what a kernel raised, and on which of its lines."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename != __file__:
            place = f" at {Path(code.co_filename).name}:{trace.tb_lineno}"
            break
        trace = trace.tb_next
    return f"raised {_one_line(error)}{place}"


class FunctionKernel(Kernel):
    """A function, called in this process: for tests. One that hangs is left behind, and not called again."""

    def __init__(self, function: Callable[..., Any], name: str | None = None, time_limit: float = TIME_LIMIT) -> None:
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self._function, self._limit, self._stuck = function, time_limit, False

    def run(self, case: Case, inputs: Mapping[str, Array] | None = None) -> dict[str, Any]:
        """Call it in a thread, so that a hang has an end. Raises KernelFault for what it raises."""
        if self._stuck:
            raise KernelFault("not run: it still hangs in an earlier case")
        arguments, answers, errors = arguments_of(case, inputs), [], []
        unfit = not_called(self._function, arguments)
        if unfit is not None:
            raise KernelFault(unfit)

        def call() -> None:
            try:
                answers.append(self._function(**arguments))
            except BaseException as error:  # SystemExit and KeyboardInterrupt of a kernel are answers like others
                errors.append(error)

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        thread.join(self._limit)
        if thread.is_alive():
            self._stuck = True
            raise KernelFault(f"gave no answer within {self._limit:g} s")
        if errors:
            raise KernelFault(_raised(errors[0]))
        return outputs_by_name(answers[0], case)


class ImportedKernel(Kernel):
    """`module:function` or `FILE.py:function`, in a process of its own: hangs are killed, crashes survived."""

    def __init__(self, spec: str, time_limit: float = TIME_LIMIT) -> None:
        """Start the process and import the function. Raises InputError where there is no such function."""
        self.name, self._limit = spec, time_limit
        split_spec(spec)
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.name, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            ready = self._pipe.recv() if self._pipe.poll(START_LIMIT) else ("refused", "importing it takes too long")
        except (EOFError, OSError):
            ready = ("refused", "its process ended while importing it")
        if ready[0] != "ready":
            self.close()
            raise InputError(f"kernel = {self.name}: {ready[1]}; check the name, and that it can be imported")

    def run(self, case: Case, inputs: Mapping[str, Array] | None = None) -> dict[str, Any]:
        """Call it in its process, a new one where the last was killed. Raises KernelFault."""
        if not self._process.is_alive():
            self._start()
        try:
            self._pipe.send(arguments_of(case, inputs))
            if not self._pipe.poll(self._limit):
                self.close()
                raise KernelFault(f"gave no answer within {self._limit:g} s; its process was ended")
            state, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(10)
            raise KernelFault(f"ended its process{signal_words(self._process.exitcode)}") from None
        if state != "answer":
            raise KernelFault(str(answer))
        return outputs_by_name(answer, case)

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def signal_words(code: int | None) -> str:
    """Return how a process ended, as the end of a sentence."""
    if code is None or code >= 0:
        return "" if code is None else f" with exit code {code}"
    import signal

    try:
        return f" by signal {signal.Signals(-code).name}"
    except ValueError:
        return f" by signal {-code}"


def _serve(spec: str, pipe: Any) -> None:
    """Answer calls until the pipe closes; what the kernel prints goes to stderr."""
    os.dup2(2, 1)
    try:
        function = load_function(spec)
    except BaseException as error:
        pipe.send(("refused", str(error) if isinstance(error, InputError) else _raised(error)))
        return
    pipe.send(("ready", ""))
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            unfit = not_called(function, arguments)
            if unfit is not None:
                raise KernelFault(unfit)
            answer = function(**arguments)
            if isinstance(answer, Mapping):
                plain: Any = {str(name): _plain(value, str(name)) for name, value in answer.items()}
            elif isinstance(answer, tuple):
                plain = tuple(_plain(value, f"output {number}") for number, value in enumerate(answer))
            else:
                plain = _plain(answer, "codes")
            pipe.send(("answer", plain))
        except KernelFault as fault:
            pipe.send(("fault", str(fault)))
        except BaseException as error:
            pipe.send(("fault", _raised(error)))


def split_spec(spec: str) -> tuple[str, str]:
    """Return source and function of `module:function`. Raises InputError for any other form, and a missing file."""
    source, _, function = spec.rpartition(":")
    if not source or not function.isidentifier():
        raise InputError(f"kernel = {spec}: must be FILE.py:FUNCTION or package.module:FUNCTION; name its function")
    if _is_file(source) and not Path(source).expanduser().is_file():
        raise InputError(f"kernel = {spec}: {source}: no such file; check the path")
    return source, function


def _is_file(source: str) -> bool:
    return source.endswith(".py") or os.sep in source or "/" in source


def load_function(spec: str) -> Callable[..., Any]:
    """Import the function of `module:function` or `FILE.py:function`. Raises InputError where it cannot be found."""
    source, name = split_spec(spec)
    path = Path(source).expanduser().resolve()
    folder = str(path.parent if _is_file(source) else Path.cwd())
    sys.path.insert(0, folder)
    try:
        module = _load_file(path) if _is_file(source) else importlib.import_module(source)
    except Exception as error:
        raise InputError(f"importing it {_raised(error)}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{source} has no function {name}")
    found: Callable[..., Any] = function
    return found


def _load_file(path: Path) -> ModuleType:
    # A name of its own: a file called torch.py must not stand in for the package.
    key = f"fqtsim_user_kernel_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    spec.loader.exec_module(module)
    return module


class OutputsFile(Kernel):
    """A file of outputs that were computed elsewhere: npz or safetensors, arrays named CASE, or CASE/OUTPUT.

    CASE is the name of a case, or its number of four digits as in the set's own file.
    """

    can_run_again = False

    def __init__(self, path: str | os.PathLike[str], names: tuple[str, ...] = ()) -> None:
        """names: of the cases, in order. Raises InputError for a file that holds no arrays."""
        self.name = str(path)
        try:
            self._arrays = read_arrays(Path(path))
        except KernelFault as fault:
            raise InputError(f"{path}: {fault}; write npz or safetensors, arrays named by case") from None
        self._numbers = {name: f"{number:04d}" for number, name in enumerate(names)}

    def run(self, case: Case, inputs: Mapping[str, Array] | None = None) -> dict[str, Any]:
        """Return the arrays of a case. Raises KernelFault where there are none."""
        found = {}
        for key in (case.name, self._numbers.get(case.name, case.name)):
            if key in self._arrays:
                found["codes"] = self._arrays[key]
            for output in case.expected:
                for name in (f"{key}/{output}", f"{key}/expected/{output}", f"{key}/outputs/{output}"):
                    if name in self._arrays:
                        found[output] = self._arrays[name]
        if not found:
            raise KernelFault(f"the file has no array {case.name} or {case.name}/codes")
        return found


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name, in the format that the name ends in: .npz or .safetensors."""
    if path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(dict(arrays), path)
    else:
        np.savez(path, **dict(arrays))  # type: ignore[arg-type]


def read_arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of an npz or safetensors file, or the one of an npy file as "codes"; nothing is unpickled.

    Raises KernelFault for a damaged file, and for more than 1 GiB.
    """
    try:
        if not path.is_file():
            raise KernelFault("no such file")
        if path.stat().st_size > MAX_OUTPUT_BYTES:
            raise KernelFault(f"has more than {MAX_OUTPUT_BYTES} bytes")
        with path.open("rb") as file:
            start = file.read(8)
        if start[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > MAX_OUTPUT_BYTES:
                    raise KernelFault(f"unpacks to more than {MAX_OUTPUT_BYTES} bytes")
            with np.load(path, allow_pickle=False) as opened:
                return {name: opened[name] for name in opened.files}
        if start[:6] == b"\x93NUMPY":
            return {"codes": np.load(path, allow_pickle=False)}
        from safetensors.numpy import load_file

        return dict(load_file(path))
    except KernelFault:
        raise
    except Exception as error:  # zip, zlib, NumPy and safetensors have a score of ways to say that bytes are damaged
        raise KernelFault(f"cannot be read as npz, npy or safetensors ({_one_line(error)})") from None
