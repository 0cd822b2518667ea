"""A short training run whose checkpoint tests evaluate and start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from fqtsim.evaluate.accuracy import Evaluation, evaluate_checkpoint
from fqtsim.train.config import TrainConfig
from fqtsim.train.loop import run
from fqtsim.train.ranges import activation_layers

Float32 = npt.NDArray[np.float32]
CONFIG = TrainConfig(
    model="cnn", data="digits", recipe="ptq8", hardware=("int8_acc20_tree4",), seed=3, steps=6, batch=64,
    set_recipe={"optimizer.lr": "0.05"},
)  # fmt: skip

ARGUMENTS = ["--recipe", "ptq8", "--hardware", "int8_acc20_tree4", "--batch", "64"]


def trained_in(out: Path) -> Path:
    """Train in a folder and return it."""
    run(CONFIG, out)
    return out


def evaluated(trained: Path, ranges: str, images: int | None = None, **changes: Any) -> Evaluation:
    config = replace(CONFIG, start=str(trained / "checkpoint.safetensors"), **changes)
    return evaluate_checkpoint(config, ranges, images)


def saved(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def activations(net: Any, images: Float32, batch: int) -> dict[str, list[Float32]]:
    """Return each GEMM layer's input, batch by batch, by a way of its own."""
    inputs: dict[str, list[Float32]] = {name: [] for name in activation_layers(net)}
    hooks = [
        layer.register_forward_pre_hook(lambda module, x: inputs[module.name].append(x[0].numpy().copy()))
        for layer in activation_layers(net).values()
    ]
    net.eval()
    with torch.no_grad():
        for first in range(0, len(images), batch):
            net(torch.from_numpy(images[first : first + batch]))
    for hook in hooks:
        hook.remove()
    return inputs
