"""ResNet-18 or -50 on a folder of ImageNet, with the paper's settings. A recipe to run; no result of it is claimed.

90 epochs of batch 400, SGD with momentum 0.875, lr 0.4 by a cosine that changes each epoch after a warm-up, weight
decay 1/32768 but not on batch norm, label smoothing 0.1, random crops of 224 pixels. Resumable: the same command goes
on where it ended.

    python examples/paper/imagenet.py --data FOLDER --model resnet18 --recipe bhq5 --backend native@cuda --out DIR

FOLDER has train/<class>/IMAGE and val/<class>/IMAGE. Unlike the authors' 8 processes of 50 images each, one process
sees the whole batch: batch norm, ranges and the rows of PSQ and BHQ are over all 400 images.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from imagenet_data import ImageFolder
from publishing import script, without_traceback
from training_gpu import notes_in

from fqtsim.backends.primitives import Primitives
from fqtsim.errors import TrainingStopped
from fqtsim.hw.load import load_hardware
from fqtsim.models import build_model
from fqtsim.recipe.load import load_recipe
from fqtsim.train.convert import fully_quantize
from fqtsim.train.loop import logits
from fqtsim.train.loss import softmax_cross_entropy
from fqtsim.train.schedule import Rate
from fqtsim.train.trainer import Trainer

OPTIMIZER = {
    "name": "sgd", "lr": 0.4, "momentum": 0.875, "nesterov": False, "weight_decay": 1 / 32768, "decay_norm": False,
}  # fmt: skip
SMOOTHING = 0.1
#: What --model takes -> a model of fqtsim; resnet50 is v1.5, of the file beside this one.
MODELS = {"resnet18": "resnet18", "resnet50": f"{script('imagenet_networks.py')}:resnet50"}


@dataclass(frozen=True)
class WarmedUp(Rate):
    """The authors' rate: lr * (epoch + 1) / warmup, then a cosine over the epochs that are left."""

    warmup: int = 0
    epochs: int = 1

    def describe(self) -> dict[str, Any]:
        """Return what decides the rate of every step."""
        return {**super().describe(), "warmup_epochs": self.warmup, "epochs": self.epochs}

    def at(self, step: int, p: Primitives) -> np.float32:
        """Return the learning rate of a step, one float32 operation a symbol but for the factor of the epoch."""
        epoch = step // (self.steps_per_epoch or 1)
        if epoch < self.warmup:
            factor = (epoch + 1) / self.warmup
        else:
            factor = 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup) / max(1, self.epochs - self.warmup)))
        return np.float32(p.multiply(np.float32(self.base), np.float32(factor)))


def make_trainer(folder: ImageFolder, options: argparse.Namespace) -> Trainer:
    """Return the run at step 0. Raises InputError for a recipe, hardware or backend that cannot be had."""
    model = build_model(MODELS.get(options.model, options.model), folder.info, options.seed)
    design = load_recipe(options.recipe, {}), load_hardware(options.hardware, {})
    net = fully_quantize(model, *design, backend=options.backend, seed=options.seed)
    optimizer = {**OPTIMIZER, "lr": options.lr}
    trainer = Trainer(net, optimizer=optimizer, label_smoothing=SMOOTHING)
    trainer.rate = WarmedUp(
        options.lr, trainer.rate.schedule, steps_per_epoch=folder.steps(options.batch), warmup=options.warmup,
        epochs=options.epochs,
    )  # fmt: skip
    return trainer


def validate(trainer: Trainer, folder: ImageFolder, batch: int, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Return top-1 share and mean loss, label smoothing included as in the authors' logs."""
    right, total, count = 0, 0.0, len(folder.val.files)
    for number in range(-(-count // batch)):
        images, labels = folder.validation_batch(number, batch, pool)
        values = logits(trainer.net, images, batch)
        loss, _ = softmax_cross_entropy(values, labels, SMOOTHING, trainer.net.backend.primitives.host)
        right += int(np.sum(np.argmax(values, axis=1) == labels))
        total += float(loss) * len(labels)
    return right / count, total / count


def train(
    trainer: Trainer, folder: ImageFolder, options: argparse.Namespace, file: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Train to the end, or to `options.steps`; return one entry an epoch. State and entries are one file."""
    setting = {
        key: getattr(options, key)
        for key in ("model", "recipe", "hardware", "epochs", "warmup", "batch", "lr", "seed", "side")
    }
    notes = notes_in(file, setting) or {"setting": setting, "epochs": [], "losses": []}
    if file.is_file():
        trainer.load(file)
    per_epoch = folder.steps(options.batch)
    end = min(options.epochs * per_epoch, options.steps or sys.maxsize)
    losses: list[float] = notes["losses"]
    start = time.perf_counter()
    with ThreadPoolExecutor(options.threads) as pool:
        while trainer.step_index < end:
            images, labels = folder.training_batch(options.seed, trainer.step_index, options.batch, pool)
            losses.append(trainer.step(torch.from_numpy(images), torch.from_numpy(labels)))
            done = trainer.step_index
            if done % per_epoch == 0:
                top1, loss = validate(trainer, folder, options.batch, pool)
                entry = {"epoch": done // per_epoch, "train_loss": float(np.mean(losses)), "val_loss": loss,
                         "val_top1": 100 * top1, "digest": trainer.digest().hex}  # fmt: skip
                notes["epochs"].append(entry)
                losses.clear()
                say(json.dumps(entry))
            if done % options.save_every == 0 or done % per_epoch == 0 or done == end:
                trainer.save(file, {"notes": json.dumps(notes)})
                say(f"step {done} of {end}, {time.perf_counter() - start:.0f} s")
    entries: list[dict[str, Any]] = notes["epochs"]
    return entries


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of train/<class>/ and val/<class>/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the state and of results.json")
    parser.add_argument("--model", default="resnet18", help="resnet18, resnet50, or as in fqtsim train")
    parser.add_argument("--recipe", default="bhq5", help="for the gradient quantizers; the update is the paper's")
    parser.add_argument("--hardware", default="int8_acc32_wrap")
    parser.add_argument("--backend", default="native@cuda")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--warmup", type=int, default=2, help="epochs; the authors' logs have 2, or 4 [%(default)s]")
    parser.add_argument("--batch", type=int, default=400)
    parser.add_argument("--lr", type=float, default=OPTIMIZER["lr"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=224, help="pixels of a crop [%(default)s]")
    parser.add_argument("--steps", type=int, help="end after so many steps, under the same schedule")
    parser.add_argument("--save-every", type=int, default=500, help="steps [%(default)s]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="that decode images [one a core]")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, and write what came out."""
    options = options_of(arguments)
    folder = ImageFolder.open(options.data, options.side)
    options.out.mkdir(parents=True, exist_ok=True)
    trainer = make_trainer(folder, options)

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        entries = train(
            trainer, folder, options, options.out / "state.safetensors", lambda line: print(line, flush=True)
        )
    except TrainingStopped as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    results: Mapping[str, Any] = {"epochs": entries, "step": trainer.step_index, "digest": trainer.digest().hex}
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(options.out / "results.json")
    return 0


if __name__ == "__main__":
    sys.exit(without_traceback(main))
