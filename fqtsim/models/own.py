"""Networks of the user's own: `FILE.py:FUNCTION` or `package.module:FUNCTION`, called as FUNCTION(info).

Their weights are what the function gives them, after torch.manual_seed(seed).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import nn

from fqtsim.data import DataInfo
from fqtsim.errors import InputError

_TORCH = os.path.dirname(torch.__file__) + os.sep


def names_function(name: str) -> bool:
    """Tell whether a model's name is that of a function of the user's own."""
    return ":" in name


def build_own(name: str, info: DataInfo, seed: int) -> nn.Module:
    """Return what the function `name` returns for `info`, after torch.manual_seed(seed).

    torch's generator is afterwards what it was. Raises InputError that names the line of the user's file where it is
    missing, raises, or returns no module.
    """
    function = _function(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _search_path(_folder(name)):
            model = _call(name, function, info)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{_definition(function, name)}: model = {name}: returned {type(model).__name__}: "
            "must be a torch.nn.Module; return the network"
        )
    return model


def own_sha256(name: str) -> str:
    """Return the SHA-256 of the file that holds the function `name`, not of what it imports. Raises InputError."""
    source, _ = _split(name)
    path = Path(source) if _is_file(source) else Path(str(_load(name).__file__))
    return hashlib.sha256(_readable(path, name).read_bytes()).hexdigest()


def _split(name: str) -> tuple[str, str]:
    source, _, function = name.rpartition(":")
    if not source or not function.isidentifier():
        raise InputError(
            f"model = {name}: must be FILE.py:FUNCTION or package.module:FUNCTION; for example my_net.py:make"
        )
    return source, function


def _is_file(source: str) -> bool:
    return source.endswith(".py") or os.sep in source or "/" in source


def _folder(name: str) -> str:
    """Return where the user's file looks for its neighbours, as Python does for a script."""
    source, _ = _split(name)
    return str(Path(source).expanduser().resolve().parent if _is_file(source) else Path.cwd())


def _readable(path: Path, name: str) -> Path:
    path = path.expanduser()
    if not path.is_file():
        raise InputError(f"model = {name}: {path}: no such file; check the path, which starts at {Path.cwd()}")
    return path


@contextmanager
def _search_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _function(name: str) -> Any:
    """Return the function itself."""
    _, wanted = _split(name)
    module = _load(name)
    found = getattr(module, wanted, None)
    if found is None:
        own = [
            key for key, value in vars(module).items()
            if callable(value) and not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]  # fmt: skip
        near = difflib.get_close_matches(wanted, own, 1)
        remedy = f"did you mean {near[0]}?" if near else f"define it, or choose one of {', '.join(own) or 'none'}"
        raise InputError(f"model = {name}: {module.__file__} has no function {wanted}; {remedy}")
    if not callable(found):
        raise InputError(
            f"model = {name}: {wanted} is {type(found).__name__}: must be a function of one argument, the shape of the "
            "data; write def make(info): return ..."
        )
    return found


def _load(name: str) -> ModuleType:
    """Import the user's file or module."""
    source, _ = _split(name)
    with _search_path(_folder(name)):
        try:
            return _load_file(_readable(Path(source), name)) if _is_file(source) else importlib.import_module(source)
        except InputError:
            raise
        except ModuleNotFoundError as error:
            if error.name is not None and (source == error.name or source.startswith(f"{error.name}.")):
                raise InputError(
                    f"model = {name}: no module {error.name}; check the name, or write the path FILE.py:FUNCTION"
                ) from error
            _explain(name, error)
        except (Exception, SystemExit) as error:
            _explain(name, error)


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    # A name of its own: a file called torch.py must not stand in for the package.
    key = f"fqtsim_user_model_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise InputError(f"model = {path}: is no Python file; name a file that ends with .py")
    module = importlib.util.module_from_spec(spec)
    # Classes find their module by its name here (dataclasses and inspect ask).
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module


def _call(name: str, function: Any, info: DataInfo) -> Any:
    try:
        inspect.signature(function).bind(info)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{_definition(function, name)}: model = {name}: cannot be called with one argument ({error}); "
            "write def make(info), where info.shape is (channels, height, width) and info.classes a number"
        ) from None
    try:
        return function(info)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        _explain(name, error)


def _definition(function: Any, name: str) -> str:
    """Return "file:line" where the function is defined."""
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return name.rpartition(":")[0]


def _explain(name: str, error: BaseException) -> NoReturn:
    """Raise the user's exception as an InputError with the innermost line of the user's code."""
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f"{error.filename}:{error.lineno}"
    else:
        trace = error.__traceback__
        while trace is not None:
            file = trace.tb_frame.f_code.co_filename
            if not file.startswith((_TORCH, "<")) and file not in (__file__, importlib.__file__):
                place = f"{file}:{trace.tb_lineno}"
            trace = trace.tb_next
    what = f"{type(error).__name__}: {error}".rstrip(": ")
    raise InputError(f"{place + ': ' if place else ''}model = {name}: {what}; correct that line") from error
