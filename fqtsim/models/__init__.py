"""The networks that a run can train: those that ship, and functions of the user's own (`FILE.py:FUNCTION`)."""

from __future__ import annotations

from fqtsim.models.initialization import initialize, standard_normal
from fqtsim.models.preact_resnet import PreActBlock, PreActResNet
from fqtsim.models.registry import build_model, model_names, model_sha256
from fqtsim.models.small import SmallCNN

__all__ = [
    "PreActBlock",
    "PreActResNet",
    "SmallCNN",
    "build_model",
    "initialize",
    "model_names",
    "model_sha256",
    "standard_normal",
]
