"""Names of models on the command line: those that ship, and functions of the user's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fqtsim.data import DataInfo
from fqtsim.errors import InputError
from fqtsim.models.initialization import initialize
from fqtsim.models.mobilenet_v2 import MobileNetV2
from fqtsim.models.own import build_own, names_function, own_sha256
from fqtsim.models.preact_resnet import RESNET_BLOCKS, preact_resnet
from fqtsim.models.resnet18 import ResNet18
from fqtsim.models.small import SmallCNN, mlp

_MODELS: dict[str, Callable[[DataInfo], nn.Module]] = {
    "mlp": mlp,
    "cnn": SmallCNN,
    **{name: preact_resnet(blocks) for name, blocks in RESNET_BLOCKS.items()},
    "resnet18": ResNet18,
    "mobilenet_v2": MobileNetV2,
}


def model_names() -> list[str]:
    """Return the names of the models that ship; build_model() takes FILE.py:FUNCTION as well."""
    return list(_MODELS)


def build_model(name: str, info: DataInfo, seed: int) -> nn.Module:
    """Return a model, on the CPU, with its parameters initialised from the seed.

    A model that ships is a pure function of name, info and seed (S5.5); a function of the user's own is called with
    `info` after torch.manual_seed(seed), and keeps the weights that it made. Raises InputError for an unknown name and
    for a function that cannot be had, with the line of the user's file.
    """
    if names_function(name):
        return build_own(name, info, seed)
    if name not in _MODELS:
        raise InputError(
            f"model = {name}: must be one of {', '.join(_MODELS)}, or FILE.py:FUNCTION for your own; for example cnn"
        )
    model = _MODELS[name](info)
    initialize(model, seed)
    return model


def model_sha256(name: str) -> str | None:
    """Return the SHA-256 of the file of a model of the user's own; None for one that ships. Raises InputError."""
    return own_sha256(name) if names_function(name) else None
