"""The training sweep at the paper's scale, as far as time allows: preact ResNet-56, CIFAR-10, 200-epoch cosine.

Every arm trains with the paper's settings (SGD 0.9, lr 0.1 by a cosine of 200 epochs that changes each epoch, batch
128, weight decay 1e-4 but not on batch norm, crop and flip) and is cut off where the time ends; arms take turns by the
epoch, so that their curves are equally long. The figure draws them over the authors' own curves, epoch by epoch, each
labelled with the form of its zero. Resumable: the same command goes on. No result of it is published here.

    python examples/paper/training_gpu.py --data cifar10:FOLDER --backend native@cuda --hours 8 --out DIR
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import torch
from publishing import without_traceback
from safetensors import safe_open
from training_report import AUTHORS_LOGS

from fqtsim.data import Dataset, load_dataset
from fqtsim.data.batches import steps_per_epoch, training_batch
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.hw.load import load_hardware
from fqtsim.models import build_model
from fqtsim.recipe.load import load_recipe
from fqtsim.train.convert import fully_quantize
from fqtsim.train.loop import evaluate
from fqtsim.train.trainer import Trainer

HARDWARE = "int8_acc32_wrap"
#: Epochs of the paper's cosine.
EPOCHS = 200
#: Recipe -> the authors' run (quantizer, bits) that it is drawn over.
ARMS = {
    "fp32": ("fp32", ""), "qat": ("qat", ""), "ptq4": ("ptq", "4"), "ptq5": ("ptq", "5"), "psq4": ("psq", "4"),
    "bhq4": ("bhq", "4"), "authors_ptq4": ("ptq", "4"), "authors_ptq5": ("ptq", "5"), "psq4_offset": ("psq", "4"),
    "bhq4_offset": ("bhq", "4"),
}  # fmt: skip
#: The arms that the paper's comparison asks for; --arms adds others.
DEFAULT_ARMS = ("fp32", "qat", "ptq4", "ptq5", "psq4", "bhq4")


def zero_of(recipe: str) -> str:
    """Return how a curve's form of zero is called in the figure; empty for a float gradient."""
    if recipe in ("fp32", "qat"):
        return ""
    if recipe.startswith("authors_"):
        return "the authors' alignment"
    return "float_offset" if recipe.endswith("_offset") else "aligned"


def notes_in(path: Path, setting: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a run wrote beside its state, None where there is no file. Ends where it is of another setting."""
    if not path.is_file():
        return None
    with safe_open(path, framework="np") as file:
        notes: dict[str, Any] = json.loads((file.metadata() or {})["notes"])
    if notes["setting"] != dict(setting):
        raise SystemExit(f"{path}: is of {notes['setting']}; give the same options, or another --out")
    return notes


@dataclass
class Arm:
    """One recipe's run, an epoch at a time; its state and its curve are one file."""

    recipe: str
    trainer: Trainer
    file: Path
    #: One entry an epoch: epoch, train_loss, accuracy, seconds, digest.
    curve: list[dict[str, Any]]
    stopped: str = ""

    @classmethod
    def open(cls, recipe: str, setting: Mapping[str, Any], data: Dataset, out: Path) -> Arm:
        """Build the run and go on from its file, where there is one. Raises InputError for what cannot run here."""
        model = build_model(setting["model"], data.info, setting["seed"])
        net = fully_quantize(
            model,
            load_recipe(recipe, {}),
            load_hardware(HARDWARE, {}),
            backend=setting["backend"],
            seed=setting["seed"],
        )
        per_epoch = steps_per_epoch(len(data.train_y), setting["batch"])
        trainer = Trainer(net, total_steps=setting["epochs_of_the_cosine"] * per_epoch, steps_per_epoch=per_epoch)
        arm = cls(recipe, trainer, out / f"{recipe}.safetensors", [])
        notes = notes_in(arm.file, setting)
        if notes is not None:
            trainer.load(arm.file)
            arm.curve, arm.stopped = notes["curve"], notes["stopped"]
        return arm

    def epoch(self, setting: Mapping[str, Any], data: Dataset, say: Callable[[str], None]) -> None:
        """Train and evaluate one epoch, and save; a step without a number ends the arm and is kept as its end."""
        start, losses = time.perf_counter(), []
        per_epoch = steps_per_epoch(len(data.train_y), setting["batch"])
        try:
            for _ in range(per_epoch):
                step = self.trainer.step_index
                images, labels = training_batch(data, setting["seed"], step, setting["batch"])
                losses.append(self.trainer.step(torch.from_numpy(images), torch.from_numpy(labels)))
            entry = {
                "epoch": len(self.curve) + 1, "train_loss": sum(losses) / len(losses),
                "accuracy": evaluate(self.trainer, data, setting["batch"]),
                "seconds": time.perf_counter() - start, "digest": self.trainer.digest().hex,
            }  # fmt: skip
            self.curve.append(entry)
            say(f"{self.recipe} {json.dumps(entry)}")
        except InputError as error:
            # The backend may refuse a quantizer at its first GEMM only; another backend may take it later.
            self.stopped = f"not run: {error}"
            say(f"{self.recipe} {self.stopped}")
            return
        except TrainingStopped as error:
            self.stopped = str(error)
            say(f"{self.recipe} stopped: {error}")
        notes = {"setting": dict(setting), "curve": self.curve, "stopped": self.stopped}
        self.trainer.save(self.file, {"notes": json.dumps(notes)})


def take_turns(arms: Sequence[Arm], setting: Mapping[str, Any], data: Dataset, epochs: int, end: float) -> None:
    """Give every arm its next epoch, the one that is furthest behind first, until all have `epochs` or time is up."""
    longest = 0.0
    while time.perf_counter() + longest < end:
        waiting = [arm for arm in arms if not arm.stopped and len(arm.curve) < epochs]
        if not waiting:
            return
        start = time.perf_counter()
        min(waiting, key=lambda arm: len(arm.curve)).epoch(setting, data, lambda line: print(line, flush=True))
        # An epoch that would not end in time is not begun.
        longest = max(longest, time.perf_counter() - start)


def authors() -> dict[tuple[str, str], list[tuple[int, float, float]]]:
    """Return (quantizer, bits) -> (epoch, training loss, top-1 in percent) of the authors' runs, NaN left out."""
    found: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    with AUTHORS_LOGS.open(encoding="utf-8") as stream:
        for row in csv.DictReader(line for line in stream if not line.startswith("#")):
            if row["train_loss"] != "nan":
                point = int(row["epoch"]), float(row["train_loss"]), float(row["val_top1"])
                found.setdefault((row["quantizer"], row["bits"]), []).append(point)
    return found


def figure(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw training loss and accuracy by epoch, ours thick over the authors' thin."""
    theirs, last = authors(), max((len(curve) for curve in curves.values()), default=0)
    with harness.figure(path, 1, 2, (11, 4.6)) as grid:
        _draw(grid[0], curves, theirs, last)


def _draw(both: Any, curves: Mapping[str, Sequence[Mapping[str, Any]]], theirs: Mapping[Any, Any], last: int) -> None:
    runs = dict.fromkeys(ARMS[recipe] for recipe in curves)
    colour = {run: f"C{number}" for number, run in enumerate(runs)}
    # Every recipe over the same authors' run has its colour; the line tells their forms apart.
    lines = {"": "-", "aligned": "-", "float_offset": "--", "the authors' alignment": ":"}
    for run in runs:
        form = {"ptq": ", the authors' alignment", "psq": ", float_offset", "bhq": ", float_offset"}.get(run[0], "")
        points = [point for point in theirs[run] if point[0] <= max(last, 1)]
        for axes, column in zip(both, (1, 2), strict=True):
            label = f"authors: {run[0].upper()}{run[1]}{form}"
            axes.plot(
                [p[0] for p in points], [p[column] for p in points], color=colour[run], linewidth=0.8, label=label
            )
    for recipe, curve in curves.items():
        if not curve:
            continue
        form = zero_of(recipe)
        epochs = [entry["epoch"] for entry in curve]
        label = f"here: {recipe}{', ' + form if form else ''}"
        for axes, key, factor in zip(both, ("train_loss", "accuracy"), (1, 100), strict=True):
            values = [factor * entry[key] for entry in curve]
            axes.plot(epochs, values, lines[form], color=colour[ARMS[recipe]], linewidth=2.2, label=label)
    both[0].set_yscale("log")
    for axes, title in zip(both, ("training loss", "test accuracy, %"), strict=True):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    both[0].legend(fontsize=6)


def summary(arms: Sequence[Arm], setting: Mapping[str, Any]) -> str:
    """Return a page: the last epoch of every arm beside the authors' run at the same epoch."""
    theirs = authors()
    lines = ["# Training at the paper's scale", "", f"`{json.dumps(dict(setting))}`", ""]
    lines += ["| recipe | zero of Q_b2 | epochs | training loss | accuracy, % | authors, same epoch | end |"]
    lines.append("|---|---|---|---|---|---|---|")
    for arm in arms:
        if not arm.curve:
            lines.append(f"| {arm.recipe} | {zero_of(arm.recipe)} | 0 |  |  |  | {arm.stopped} |")
            continue
        entry = arm.curve[-1]
        same = next((point for point in theirs[ARMS[arm.recipe]] if point[0] == entry["epoch"]), None)
        text = "" if same is None else f"{same[1]:.3f} / {same[2]:.1f}"
        cells = [arm.recipe, zero_of(arm.recipe), str(entry["epoch"]), f"{entry['train_loss']:.4f}"]
        cells += [f"{100 * entry['accuracy']:.2f}", text, arm.stopped]
        lines.append(f"| {' | '.join(cells)} |")
    note = "The authors trained on the original CIFAR-10, one run each; a folder of JPEG copies has other pixels."
    return "\n".join([*lines, "", note, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train until the time is up, and draw what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the arms and of the page")
    parser.add_argument("--data", required=True, help="cifar10:PATH, an archive or a folder of train/ and test/")
    parser.add_argument("--backend", default="native@cuda")
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--arms", nargs="+", default=list(DEFAULT_ARMS), choices=list(ARMS))
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="at most so many of the cosine's [%(default)s]")
    parser.add_argument("--cosine", type=int, default=EPOCHS, help="epochs of the whole cosine [%(default)s]")
    parser.add_argument("--hours", type=float, default=8.0, help="begin no epoch that would end later [%(default)s]")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    end = time.perf_counter() + 3600 * options.hours
    data = load_dataset(options.data)
    setting = {
        "model": options.model, "data": data.name, "data_sha256": data.hash, "backend": options.backend,
        "batch": options.batch, "seed": options.seed, "epochs_of_the_cosine": options.cosine,
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    arms = []
    for recipe in options.arms:
        try:
            arms.append(Arm.open(recipe, setting, data, options.out))
        except InputError as error:
            print(f"{recipe}: left out: {error}", file=sys.stderr)
    take_turns(arms, setting, data, min(options.epochs, options.cosine), end)
    figure({arm.recipe: arm.curve for arm in arms}, options.out / "paper_training_gpu.svg")
    (options.out / "paper_training_gpu.md").write_text(summary(arms, setting), encoding="utf-8")
    plain = {"setting": setting, "arms": {arm.recipe: {"curve": arm.curve, "stopped": arm.stopped} for arm in arms}}
    (options.out / "paper_training_gpu.json").write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    print(options.out / "paper_training_gpu.md")
    return 0


if __name__ == "__main__":
    sys.exit(without_traceback(main))
