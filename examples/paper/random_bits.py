"""How many random bits stochastic rounding needs: digits, 2 to 24 bits, PSQ and BHQ of 5 and 4 bits.

Rounding with n random bits is 2^-(n+1) of a step low on average. Measured: that bias on the gradients of trained
networks, the bias of their weight gradients, and what training makes of it. What is expected was written down before
(random_bits_report.py). Resumable: the same command goes on where it ended.

    python examples/paper/random_bits.py --out runs/paper_random_bits --publish docs/results
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import random_bits_report as report
from common_weights import CommonWeights, named, trained
from harness import Task, command, finish, measure

if TYPE_CHECKING:
    from fqtsim.evaluate.job import Job

#: Wide enough that no sum of these networks reaches its ends: what differs is the random bits.
HARDWARE = "int8_acc32_wrap"


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    model: str
    data: str
    rate: float
    seeds: tuple[int, ...]
    #: Exactly one of both.
    epochs: int | None
    steps: int | None
    batch: int
    #: Batches and draws for the bias of weight gradients; draws of each tensor for that of the quantizers.
    batches: int
    draws: int
    tensor_draws: int


def job(setting: Setting, recipe: str, bits: int, seed: int) -> Job:
    """Return one training run. Raises InputError for a model, data set or recipe that cannot be had."""
    from fqtsim.evaluate.job import Job, Measure
    from fqtsim.train.config import TrainConfig

    config = TrainConfig(
        setting.model, setting.data, recipe, (HARDWARE,), seed=seed, steps=setting.steps, epochs=setting.epochs,
        batch=setting.batch, set_hardware={"random.bits": str(bits)}, set_recipe={"optimizer.lr": str(setting.rate)},
    )  # fmt: skip
    return Job.of(config, Measure(batches=0, outputs=0))


@dataclass(frozen=True)
class Rounding:
    """The mean of Q(x) - x in steps, x the output gradients of a trained network, for each number of random bits."""

    run: Job
    bits: tuple[int, ...]
    draws: int
    name: str

    def settings(self) -> dict[str, Any]:
        """Return what decides the result."""
        return {"run": named(self.run.plain), "bits": list(self.bits), "draws": self.draws}

    def measure(self) -> list[dict[str, Any]]:
        """Return one entry for each layer, port and number of random bits; see `_tensor`."""
        from fqtsim.analysis.tape import Tape, host
        from fqtsim.data.batches import training_batch

        plain = self.run.plain
        trainer, data = trained(plain, plain["steps"])
        images, labels = training_batch(data, int(plain["seed"]), plain["steps"], plain["batch"])
        seen: list[tuple[str, str, Any, Any]] = []

        def watch(layer: Any, gradient: Any, ports: Sequence[str]) -> None:
            seen.extend((layer.name, port, layer.recipe.port(port), host(gradient).copy()) for port in ports)

        draw = plain["steps"]
        Tape.record(trainer.net, images, labels, draw).backward(draw, watch)
        found = []
        for layer, port, spec, x in seen:
            found += [{"layer": layer, "port": port, "quantizer": f"{spec.quantizer}{spec.bits}", **entry}
                      for entry in self._tensor(spec, x)]  # fmt: skip
        return found

    def _tensor(self, spec: Any, x: Any) -> list[dict[str, Any]]:
        """Return for each number of bits: means over the values that are not 0, in steps, one for each draw.

        `direct`: of codes less quotients; `paired`: of codes less those of 32 random bits, whose words begin with the
        same bits, so that nearly all noise cancels; `exact`: the mean over all words, by S5.6 on the float32 quotients.
        """
        import numpy as np

        from fqtsim.backends.primitives import DEFAULT_PRIMITIVES
        from fqtsim.quantizers import quantizer

        made = {bits: quantizer(str(spec.quantizer), spec.bits, "stochastic", bits, str(spec.zero))
                for bits in (*self.bits, 32)}  # fmt: skip

        def quantized(bits: int, draw: int) -> Any:
            return made[bits].quantize(x, seed=int(self.run.plain["seed"]), stream=0, step=draw)

        def codes(bits: int, draw: int) -> Any:
            tensor = quantized(bits, draw)
            return tensor.codes.reshape(rows.shape).astype(np.int64) - np.reshape(tensor.zero_point, (-1, 1))

        # What is divided by the steps: for BHQ the mixed rows, to the last bit, since some lie on their grid.
        rows = made[32]._mix(made[32]._rows(x), DEFAULT_PRIMITIVES)[0]
        step = np.reshape(quantized(32, 0).step, (-1, 1))
        y, rounded = rows.astype(np.float64) / step.astype(np.float64), (rows / step).astype(np.float64)
        kept = y != 0
        direct: dict[int, list[float]] = {bits: [] for bits in self.bits}
        paired: dict[int, list[float]] = {bits: [] for bits in self.bits}
        for draw in range(self.draws):
            full = codes(32, draw)
            for bits in self.bits:
                whole = codes(bits, draw)
                direct[bits].append(float(np.mean((whole - y)[kept])))
                paired[bits].append(float(np.mean((whole - full)[kept])))
        return [
            {"random_bits": bits, "values": int(kept.sum()), "zeros": int((~kept).sum()), "direct": direct[bits],
             "paired": paired[bits], "exact": float(np.mean((np.floor(rounded * 2.0**bits) / 2.0**bits - y)[kept]))}
            for bits in self.bits
        ]  # fmt: skip


def measurements(setting: Setting, recipes: Sequence[str], bits: Sequence[int]) -> list[Task]:
    """Return both measurements for each recipe and seed, on the network trained with the most random bits."""
    found: list[Task] = []
    for seed in setting.seeds:
        for recipe in recipes:
            jobs = {n: job(setting, recipe, n, seed) for n in bits}
            full = jobs[max(bits)]
            others = tuple((str(n), one) for n, one in jobs.items())
            at, numbers = full.plain["steps"], (setting.batches, setting.draws)
            found.append(Rounding(full, tuple(bits), setting.tensor_draws, f"rounding-{recipe}-{seed}"))
            found.append(CommonWeights(full, others, at, *numbers, f"common-{recipe}-{seed}"))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished runs and measurements")
    parser.add_argument("--publish", type=Path, help="folder for paper_random_bits.md, .json and .svg [that of --out]")
    parser.add_argument("--bits", type=int, nargs="*", default=report.BITS, help="random bits; compared with the most")
    parser.add_argument("--recipes", nargs="*", default=report.RECIPES)
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps", type=int, help="train so many steps instead of epochs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=4, help="for the bias of weight gradients [%(default)s]")
    parser.add_argument("--draws", type=int, default=8, help="of the random words of a batch [%(default)s]")
    parser.add_argument("--tensor-draws", type=int, default=64, help="of those of a gradient [%(default)s]")
    parser.add_argument("--workers", type=int, help="processes; 0: this one [one a core]")
    options = parser.parse_args(arguments)
    setting = Setting(
        options.model, options.data, options.rate, tuple(range(options.seeds)),
        None if options.steps else options.epochs, options.steps, options.batch, options.batches, options.draws,
        options.tensor_draws,
    )  # fmt: skip
    # All designs of a seed before the next seed: an early look compares equal numbers of seeds.
    jobs = {
        (recipe, n, seed): job(setting, recipe, n, seed)
        for seed in setting.seeds for recipe in options.recipes for n in options.bits
    }  # fmt: skip
    rows = finish(list(jobs.values()), options.out, options.workers)
    parts = measure(measurements(setting, options.recipes, options.bits), options.out, options.workers)
    runs = {
        (recipe, n): [rows[jobs[recipe, n, seed].key] for seed in setting.seeds]
        for recipe in options.recipes for n in options.bits
    }  # fmt: skip
    page = report.page(asdict(setting), runs, parts, command("random_bits.py", arguments))
    print(page.write("paper_random_bits", options.publish or options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
