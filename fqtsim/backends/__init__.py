"""Who executes a datapath. One small interface, four backends, each on a device."""

from __future__ import annotations

from functools import cache

from fqtsim.backends.base import Backend, Events, GemmResult, LevelTrace
from fqtsim.backends.emulator import Emulator
from fqtsim.backends.native import Native
from fqtsim.backends.reference import Reference
from fqtsim.backends.stepwise import Stepwise
from fqtsim.errors import BackendRefused, InputError

BACKENDS = ("reference", "stepwise", "emulator", "native")
__all__ = ["BACKENDS", "Backend", "Events", "GemmResult", "LevelTrace", "get_backend"]


def get_backend(name: str | Backend) -> Backend:
    """Return a backend by name, "emulator" or "native@cuda"; a Backend passes through.

    Raises InputError for an unknown name, BackendRefused for a device that this backend cannot use.
    """
    return name if isinstance(name, Backend) else _named(name)


def _on_cuda(name: str, kind: str) -> Backend:
    if kind not in ("native", "emulator"):
        raise BackendRefused(f"backend = {name!r}: {kind} runs on the CPU only; use {kind}@cpu or native@cuda")
    from fqtsim.backends.device import DeviceEmulator, DeviceNative

    return DeviceNative() if kind == "native" else DeviceEmulator()


@cache
def _named(name: str) -> Backend:
    kind, _, device = name.partition("@")
    device = device or "cpu"
    if kind not in BACKENDS:
        raise InputError(f"backend = {name!r}: must be one of {', '.join(BACKENDS)}, optionally @cpu or @cuda")
    if device not in ("cpu", "cuda"):
        raise InputError(f"backend = {name!r}: device must be cpu or cuda; use {kind}@cpu")
    if device == "cuda":
        return _on_cuda(name, kind)
    simple: dict[str, type[Backend]] = {
        "reference": Reference, "stepwise": Stepwise, "emulator": Emulator, "native": Native,
    }  # fmt: skip
    return simple[kind]()
