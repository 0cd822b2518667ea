"""fqtsim: train real networks, bit for bit, on integer hardware that a YAML file describes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import fqtsim.started  # first of all: it takes the time

if TYPE_CHECKING:
    from fqtsim.analysis.measure import analyze
    from fqtsim.api.compare import Comparison, assert_bitexact, compare
    from fqtsim.api.explain import Explanation, explain
    from fqtsim.api.multiply import GemmOutput, gemm
    from fqtsim.api.requantize import RequantizeOutput, random_bits, requantize, round_shift
    from fqtsim.errors import BackendRefused, FileError, FqtsimError, InputError, TrainingStopped
    from fqtsim.hw.load import hardware_names, load_hardware
    from fqtsim.hw.spec import Hardware
    from fqtsim.quantizers import QTensor, quantizer
    from fqtsim.recipe.load import load_recipe
    from fqtsim.train.convert import fully_quantize
    from fqtsim.train.trainer import Trainer

__version__ = "0.1.0"

# Public name -> module. Imported on first use, so that `import fqtsim` waits for neither Numba nor torch.
_HOMES = {
    "BackendRefused": "fqtsim.errors",
    "Comparison": "fqtsim.api.compare",
    "Explanation": "fqtsim.api.explain",
    "FileError": "fqtsim.errors",
    "FqtsimError": "fqtsim.errors",
    "GemmOutput": "fqtsim.api.multiply",
    "Hardware": "fqtsim.hw.spec",
    "InputError": "fqtsim.errors",
    "QTensor": "fqtsim.quantizers",
    "RequantizeOutput": "fqtsim.api.requantize",
    "Trainer": "fqtsim.train.trainer",
    "TrainingStopped": "fqtsim.errors",
    "analyze": "fqtsim.analysis.measure",
    "assert_bitexact": "fqtsim.api.compare",
    "compare": "fqtsim.api.compare",
    "explain": "fqtsim.api.explain",
    "fully_quantize": "fqtsim.train.convert",
    "gemm": "fqtsim.api.multiply",
    "hardware_names": "fqtsim.hw.load",
    "load_hardware": "fqtsim.hw.load",
    "load_recipe": "fqtsim.recipe.load",
    "quantizer": "fqtsim.quantizers",
    "random_bits": "fqtsim.api.requantize",
    "requantize": "fqtsim.api.requantize",
    "round_shift": "fqtsim.api.requantize",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fqtsim' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
