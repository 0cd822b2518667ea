"""The options that describe a run, shared by `train`, `crosscheck` and `eval`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fqtsim.cli.overrides import split_overrides
from fqtsim.errors import InputError

if TYPE_CHECKING:
    from fqtsim.train.config import TrainConfig

_FORWARD = (
    click.option(
        "--model",
        default="cnn",
        show_default=True,
        help="mlp, cnn, resnet8, resnet20, resnet56, resnet18 or mobilenet_v2; or your own: FILE.py:FUNCTION or "
        "package.module:FUNCTION, called as FUNCTION(info), info.shape (channels, height, width), info.classes.",
    ),
    click.option("--data", default="digits", show_default=True, help="digits, fashion-mnist[:FOLDER] or cifar10:PATH."),
    click.option("--recipe", help="A shipped recipe (fqtsim recipe list) or a file."),
    click.option(
        "--hardware",
        multiple=True,
        help="A shipped description (fqtsim hardware list) or a file; or several PATTERN=NAME, matched "
        "against layer names, first match wins.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**64 - 1),
        default=0,
        show_default=True,
        help="Of initialisation, order of data and stochastic rounding.",
    ),
    click.option("--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Images at a time."),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="hardware.KEY=V | recipe.KEY=V",
        help="Change one key of the hardware or the recipe, for example hardware.datapath.levels.-1.register=int20.",
    ),
)

_LENGTH = (
    click.option("--steps", type=click.IntRange(min=1), help="Training steps; or give --epochs."),
    click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training set; or give --steps."),
)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a run to a command."""
    return _add(_FORWARD + _LENGTH, function)


def forward_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a run that takes no training step."""
    return _add(_FORWARD, function)


def _add(options: tuple[Callable[..., Any], ...], function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        function = option(function)
    return function


def config_of(options: dict[str, Any]) -> TrainConfig:
    """Return the configuration that the options of a run ask for. Raises InputError for what is missing."""
    from fqtsim.train.config import TrainConfig

    for name, listing in (("recipe", "fqtsim recipe list"), ("hardware", "fqtsim hardware list")):
        if not options.get(name):
            raise InputError(f"--{name}: is required, there is no default; choose one of {listing}")
    overrides = split_overrides(options.pop("overrides"))
    return TrainConfig(**options, set_hardware=overrides["hardware"], set_recipe=overrides["recipe"])


def given_options(ctx: click.Context) -> set[str]:
    """Return the names of the options that stand on the command line, as against defaults."""
    return {name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
