"""What a published run is: its exact configuration and the digests that every machine must reach (S5.10)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fqtsim.errors import InputError
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.rundir import CHECKPOINT, METRICS, RUN, RunDir

FOLDER = Path(__file__).with_name("files")
FORMAT = "fqtsim-published-run-1"
EVERY = 100
"""Steps between published digests; beside them, a few near the start."""
EARLY = (1, 2, 5, 10, 20, 50)

#: The schedule has a length of its own, so that a longer run begins with the same states.
RUNS: Mapping[str, TrainConfig] = {
    "mlp-digits": TrainConfig(
        "mlp", "digits", "bhq5", ("int8_acc32_wrap",), steps=1000, set_recipe={"schedule.steps": "1000"}
    ),
    "resnet8-digits": TrainConfig(
        "resnet8", "digits", "bhq5", ("int8_acc32_wrap",), steps=500, set_recipe={"schedule.steps": "500"}
    ),
    "resnet20-fashion-mnist": TrainConfig(
        "resnet20", "fashion-mnist", "bhq5", ("int8_acc32_wrap",), steps=5000, set_recipe={"schedule.steps": "5000"}
    ),
}
#: Sections of run.yaml that decide the result, beside the configuration.
_SECTIONS = ("hardware", "recipe", "data")


@dataclass(frozen=True)
class PublishedRun:
    """One file of fqtsim/verify/files."""

    name: str
    config: TrainConfig
    #: Step -> digest of the state after it.
    digests: Mapping[int, str]
    #: SHA-256 of each tensor after the last step.
    tensors: Mapping[str, str]
    #: What made the run: backend and versions.
    made_by: Mapping[str, str]
    #: Hardware, recipe and data as they were read then.
    sections: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """The last step with a digest."""
        return max(self.digests)

    def save(self, folder: Path = FOLDER) -> Path:
        """Write the file, in one move."""
        path = folder / f"{self.name}.json"
        plain = {
            "format": FORMAT, "name": self.name, "config": self.config.as_plain(), "made_by": dict(self.made_by),
            **self.sections, "digests": {str(step): digest for step, digest in self.digests.items()},
            "tensors": dict(self.tensors),
        }  # fmt: skip
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path


def published_names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the published runs."""
    return sorted(path.stem for path in folder.glob("*.json"))


def load_published(name: str, folder: Path = FOLDER) -> PublishedRun:
    """Return a published run by name. Raises InputError for a name that there is not, or a damaged file."""
    names = published_names(folder)
    if name not in names:
        raise InputError(f"NAME = {name}: must be one of {', '.join(names)}; fqtsim verify-run --list shows them")
    try:
        plain = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            raise ValueError(f"format = {plain['format']}")
        digests = {int(step): str(digest) for step, digest in plain["digests"].items()}
        sections = {key: plain[key] for key in _SECTIONS}
        config = TrainConfig.from_plain(plain["config"])
        found = PublishedRun(plain["name"], config, digests, plain["tensors"], plain["made_by"], sections)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / name}.json: damaged ({error}); install fqtsim again") from None
    return found


def from_folder(name: str, run: Path) -> PublishedRun:
    """Return what `fqtsim train` left in a folder as a published run. Raises InputError for an unfinished run."""
    described = RunDir(run).read_run().data
    lines = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    by_step = {line["step"]: line["digest"] for line in lines}
    last = max(by_step)
    config = TrainConfig.from_plain(described["config"])
    if config.steps != last:
        raise InputError(f"{run / RUN}: {last} of {config.steps} steps done; finish it with --resume")
    trainer = build_trainer(resolve(config))
    trainer.load(run / CHECKPOINT)
    digest = trainer.digest()
    if digest.hex != by_step[last]:
        raise InputError(f"{run / CHECKPOINT}: its digest is not that of step {last}; run it again")
    wanted = [step for step in by_step if step % EVERY == 0 or step in EARLY or step == last]
    config = replace(config, data=config.data.partition(":")[0], backend="emulator")
    made_by = {"backend": str(described["config"]["backend"]), **described["versions"]}
    return PublishedRun(
        name, config, {step: by_step[step] for step in wanted}, digest.tensors, made_by,
        {key: described[key] for key in _SECTIONS},
    )  # fmt: skip
