"""What a run is asked to do, and what that resolves to; shared by the training loop and the cross-check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import BaseModel

from fqtsim.backends.base import Backend
from fqtsim.data import Dataset, load_dataset
from fqtsim.data.batches import steps_per_epoch
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.models import build_model, model_sha256
from fqtsim.recipe.load import load_recipe
from fqtsim.recipe.spec import Recipe
from fqtsim.train.check_report import parse_checks
from fqtsim.train.convert import fully_quantize
from fqtsim.train.trainer import Trainer
from fqtsim.train.weights import Weights, read_weights


@dataclass(frozen=True)
class TrainConfig:
    """A run, in the words of the command line."""

    #: A name of fqtsim.models.
    model: str
    #: NAME or NAME:PATH, see fqtsim.data.
    data: str
    #: A shipped recipe or a file.
    recipe: str
    #: Shipped descriptions or files; one NAME, or PATTERN=NAME each, first match wins.
    hardware: tuple[str, ...]
    #: Who executes; the state does not depend on it.
    backend: str = "emulator"
    seed: int = 0
    #: Exactly one of steps and epochs.
    steps: int | None = None
    epochs: int | None = None
    #: Images per step.
    batch: int = 128
    #: Steps between evaluations; 0 means at each end of an epoch. The last step is always evaluated.
    eval_every: int = 0
    #: Steps between checkpoints; the last step is always saved.
    save_every: int = 50
    #: Dotted key of every hardware file -> new value, as YAML text.
    set_hardware: Mapping[str, str] = field(default_factory=dict)
    #: Dotted key of the recipe -> new value, as YAML text.
    set_recipe: Mapping[str, str] = field(default_factory=dict)
    #: A file of weights to start from, see fqtsim.train.weights; None: the model's own initialisation.
    start: str | None = None
    #: Checks of every step, `sample:0.01,freivalds`, see fqtsim.train.check_report; the state does not depend on them.
    check: str | None = None

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TrainConfig:
        """Return the configuration that as_plain() wrote."""
        known = {key: value for key, value in plain.items() if key in cls.__dataclass_fields__}
        return cls(**known | {"hardware": tuple(plain["hardware"]), "seed": int(plain["seed"])})

    def as_plain(self) -> dict[str, Any]:
        """Return the fields as YAML writes them."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.check is None:
            del plain["check"]
        # Strict YAML keeps integers of up to 18 digits; a seed may have 20.
        return plain | {"seed": self.seed if self.seed < 10**18 else str(self.seed)}


@dataclass(frozen=True)
class Resolved:
    """The files and data that a TrainConfig names, read and checked."""

    config: TrainConfig
    #: One description, or one per pattern of layer names.
    hardware: Hardware | dict[str, Hardware]
    recipe: Recipe
    data: Dataset
    per_epoch: int
    #: Steps of the whole run.
    steps: int
    #: The content of `config.start`.
    weights: Weights | None = None

    def as_plain(self) -> dict[str, Any]:
        """Return everything that decides the result, for run.yaml and for comparing a resumed run with it."""
        by_pattern = self.hardware if isinstance(self.hardware, dict) else {"*": self.hardware}
        model = model_sha256(self.config.model)
        files = {} if model is None else {"model_sha256": model}
        files |= {} if self.weights is None else {"start_sha256": self.weights.sha256}
        return {
            "config": self.config.as_plain() | files,
            "hardware": {name: _plain(hw) for name, hw in by_pattern.items()},
            "recipe": _plain(self.recipe),
            "data": dict(self.data.describe()),
        }


def _plain(model: BaseModel) -> dict[str, Any]:
    """Return a description as its file would say it."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _hardware(names: tuple[str, ...], overrides: Mapping[str, str]) -> Hardware | dict[str, Hardware]:
    if len(names) == 1 and "=" not in names[0]:
        return load_hardware(names[0], overrides)
    by_pattern: dict[str, Hardware] = {}
    for text in names:
        pattern, equals, name = text.partition("=")
        if not (pattern and equals and name):
            raise InputError(f"--hardware {text}: must be PATTERN=NAME where several are given; for example 'conv*=x'")
        if pattern in by_pattern:
            raise InputError(f"--hardware {text}: pattern {pattern} is given twice; keep one")
        by_pattern[pattern] = load_hardware(name, overrides)
    if not by_pattern:
        raise InputError("hardware: none given; name one with --hardware NAME (fqtsim hardware list)")
    return by_pattern


def _total_steps(config: TrainConfig, per_epoch: int) -> int:
    if (config.steps is None) == (config.epochs is None):
        raise InputError(
            f"steps = {config.steps}, epochs = {config.epochs}: exactly one must be given; use --steps N or --epochs N"
        )
    steps = config.steps if config.steps is not None else (config.epochs or 0) * per_epoch
    if steps < 1:
        raise InputError(f"steps = {steps}: must be at least 1; ask for more")
    return steps


def resolve(config: TrainConfig) -> Resolved:
    """Read and check everything that `config` names. Raises InputError."""
    for key, least in (("eval_every", 0), ("save_every", 1), ("batch", 1), ("seed", 0)):
        if getattr(config, key) < least:
            raise InputError(f"{key} = {getattr(config, key)}: must be at least {least}; use a larger number")
    if config.check is not None:
        parse_checks(config.check)
    hardware = _hardware(config.hardware, config.set_hardware)
    recipe = load_recipe(config.recipe, config.set_recipe)
    data = load_dataset(config.data)
    per_epoch = steps_per_epoch(len(data.train_y), config.batch)
    weights = None if config.start is None else read_weights(config.start)
    return Resolved(config, hardware, recipe, data, per_epoch, _total_steps(config, per_epoch), weights)


def build_trainer(resolved: Resolved, backend: str | Backend | None = None) -> Trainer:
    """Return a trainer at step 0, on the run's backend or on the one given. Raises InputError."""
    config = resolved.config
    model = build_model(config.model, resolved.data.info, config.seed)
    if resolved.weights is not None:
        resolved.weights.copy_into(model)
    net = fully_quantize(model, resolved.recipe, resolved.hardware, backend=backend or config.backend, seed=config.seed)
    if resolved.weights is not None:
        resolved.weights.copy_ranges_into(net)
    return Trainer(net, total_steps=resolved.steps)
