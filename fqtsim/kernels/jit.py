"""How kernels are compiled: the ways in, which are kept on disk, and the functions that only kernels call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from threading import RLock
from typing import Any, TypeVar

from numba import njit

from fqtsim.kernels.cache import KernelCache

Function = TypeVar("Function", bound=Callable[..., Any])
_names: set[str] = set()


def kernel(function: Function) -> Function:
    """Compile a function that Python calls; what it depends on beside its arguments is in the sources."""
    if function.__closure__:
        raise TypeError(f"{function.__qualname__}: depends on where it was made; say so by kernel_of")
    return kernel_of("")(function)


def kernel_of(form: str) -> Callable[[Function], Function]:
    """Compile a function made inside another one; `form` says all that it has from there."""

    def compiled(function: Function) -> Function:
        name = f"{function.__module__}.{function.__qualname__} {form}"
        if name in _names:
            raise ValueError(f"{name}: two kernels of one name; give each a form of its own")
        _names.add(name)
        if form:  # Numba names machine code by these, and what came from disk must not share a name with another form
            tag = hashlib.sha256(name.encode()).hexdigest()[:16]
            function.__name__, function.__qualname__ = f"{function.__name__}_{tag}", f"{function.__qualname__}_{tag}"
        dispatcher: Any = njit(nogil=True)(function)
        dispatcher._cache = KernelCache(name)
        result: Function = dispatcher
        return result

    return compiled


def made_once(function: Function) -> Function:
    """Keep what a function returns for its arguments; threads that ask for the same at once get the same."""
    kept, lock = cache(function), RLock()

    def ask(*args: Any) -> Any:
        with lock:
            return kept(*args)

    return ask  # type: ignore[return-value]


def inner(function: Function) -> Function:
    """Compile a function without the ways in for Python and for C, which take about a fifth of the time to compile."""
    compiled: Function = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)  # type: ignore[call-overload]
    return compiled
