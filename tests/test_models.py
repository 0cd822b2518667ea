"""The project's models: shapes, the paper's layer counts, and an initialisation that is a function of the seed."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn

from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
from fqtsim.data import DataInfo
from fqtsim.errors import InputError
from fqtsim.models import PreActBlock, build_model, model_names, standard_normal
from fqtsim.streams import INIT, stream_id

CIFAR = DataInfo((3, 32, 32), 10)
DIGITS = DataInfo((1, 8, 8), 10)
FASHION = DataInfo((1, 28, 28), 10)


def quantized_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]


@pytest.mark.parametrize("info", [DIGITS, FASHION, CIFAR], ids=["digits", "fashion", "cifar"])
@pytest.mark.parametrize("name", model_names())
def test_every_model_maps_every_data_shape_to_logits(name: str, info: DataInfo) -> None:
    model = build_model(name, info, seed=0)
    assert model(torch.zeros(2, *info.shape)).shape == (2, info.classes)


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 10), ("resnet20", 22), ("resnet56", 58)])
def test_resnets_have_the_papers_layers(name: str, layers: int) -> None:
    # facts: 3 stages x n blocks x 2 convolutions, first convolution, two 1x1 shortcuts, fc; 58 for n = 9.
    assert len(quantized_layers(build_model(name, CIFAR, seed=0))) == layers


def test_resnet56_has_the_papers_weights_and_multiplications() -> None:
    model = build_model("resnet56", CIFAR, seed=0)
    layers = quantized_layers(model)
    assert round(sum(layer.weight.numel() for layer in layers) / 1e6, 3) == 0.852
    positions: dict[nn.Module, int] = {}
    for layer in layers:
        layer.register_forward_hook(lambda module, _, out: positions.update({module: out[0, 0].numel()}))
    model(torch.zeros(1, 3, 32, 32))
    macs = sum(layer.weight.numel() * positions[layer] for layer in layers)
    assert round(macs / 1e6, 1) == 125.7


def test_preactivation_block_is_what_it_says() -> None:
    block = PreActBlock(2, 4, stride=2).eval()
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    active = torch.relu(block.bn1(x))
    expected = block.conv2(torch.relu(block.bn2(block.conv1(active)))) + block.shortcut(active)
    assert torch.equal(block(x), expected)
    assert PreActBlock(4, 4, stride=1).shortcut is None


def test_initialisation_is_kaiming_normal_fan_in() -> None:
    model = build_model("resnet20", CIFAR, seed=3)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            scaled = module.weight.detach().double() / math.sqrt(2 / fan_in)
            count = scaled.numel()
            # Five standard errors of the mean and of the variance of `count` normal numbers.
            assert abs(float(scaled.mean())) < 5 / math.sqrt(count)
            assert abs(float(scaled.var(correction=0)) - 1) < 5 * math.sqrt(2 / count)
            assert module.bias is None or not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert not module.bias.any()


def test_weights_are_box_muller_of_the_layers_own_words() -> None:
    model = build_model("mlp", DIGITS, seed=7)
    index, layer = [(i, m) for i, m in enumerate(model.modules()) if isinstance(m, nn.Linear)][1]
    count = layer.weight.numel()
    words = DEFAULT_PRIMITIVES.random_words(7, stream_id(index, INIT), 0, 2 * count).astype(np.int64) >> 8
    u, v = (words[:count] + 1) / 2**24, words[count:] / 2**24
    expected = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v) * math.sqrt(2 / layer.weight.shape[1])
    # In float64 here and in float32 there: equal up to rounding, not bit for bit.
    np.testing.assert_allclose(layer.weight.detach().numpy().ravel(), expected, rtol=2e-5, atol=3e-7)


def test_initialisation_depends_on_seed_and_layer_only() -> None:
    first, again, other = (build_model("cnn", DIGITS, seed) for seed in (0, 0, 1))
    for ours, same, different in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, same)
        assert ours.dim() == 1 or not torch.equal(ours, different)


def test_initialisation_has_not_moved() -> None:
    """A frozen value: a change of any bit of any weight is a change of meaning (S5.5)."""
    model = build_model("cnn", DIGITS, seed=0)
    content = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    assert hashlib.sha256(content).hexdigest()[:16] == "71fc76acd3d2a8ea"


def test_normal_numbers_stay_finite_at_the_corners_of_the_words() -> None:
    class Corners(type(DEFAULT_PRIMITIVES)):  # type: ignore[misc]
        def random_words(self, seed: int, stream: int, step: int, count: int) -> np.ndarray:
            return np.resize(np.array([0, 0xFFFFFFFF, 255, 256], dtype=np.uint32), count)

    values = standard_normal(Corners(), 0, 0, 4)
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 6  # sqrt(-2 log 2**-24) = 5.77


def test_unknown_model_names_the_choices() -> None:
    with pytest.raises(
        InputError, match="model = vgg: must be one of mlp, cnn, resnet8, resnet20, resnet56, resnet18, m"
    ):
        build_model("vgg", DIGITS, seed=0)


def test_cnn_refuses_images_too_small_to_pool_twice() -> None:
    with pytest.raises(InputError, match="images of 3x8: must be at least 4x4"):
        build_model("cnn", DataInfo((1, 3, 8), 2), seed=0)
