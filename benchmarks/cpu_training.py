"""Training steps of ResNet-20 beside fp32 PyTorch, and the operands of such a step on narrow registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from cpu_gemm import FP32, INT_MM, OURS, hardware, rivals, traffic, unit_of
from cpu_report import Bench
from cpu_shapes import CIFAR, TOY, Shape, step_bytes
from safetensors.torch import load_file
from torch import nn

import fqtsim
from fqtsim.backends import get_backend
from fqtsim.backends.base import GemmResult
from fqtsim.data import DataInfo, load_dataset
from fqtsim.hw.spec import Datapath, Hardware, Level
from fqtsim.models import build_model
from fqtsim.train.check_report import parse_checks
from fqtsim.train.checks import Checker
from fqtsim.train.trainer import MOMENTUM, Trainer

RECIPE = "bhq5"
#: Steps of training before anything is measured, so that operands are not those of a random network.
STEPS = 20
#: Target of each hardware file.
STEP_TARGETS = {
    "int8_acc24_saturate": "step_acc24", "int8_acc32_wrap": "step_wrap", "int8_acc16_saturate": "step_acc16",
}  # fmt: skip
#: Share of outputs that a rail changed, from which a GEMM counts as worst case.
MOSTLY_FREE = 0.05


@dataclass(frozen=True)
class Work:
    """What is trained: model, images, labels, and the weights after a short training."""

    name: str
    info: DataInfo
    x: torch.Tensor
    y: torch.Tensor
    state: dict[str, torch.Tensor]

    def model(self) -> nn.Module:
        """Return the model with the trained weights."""
        model = build_model(self.name, self.info, 0)
        model.load_state_dict(self.state)
        return model

    def trainer(self, chosen: Hardware | str) -> Trainer:
        """Return a trainer of the quantized model."""
        return _trainer(self.model(), chosen)


def _trainer(model: nn.Module, chosen: Hardware | str, rate: float = 0.001) -> Trainer:
    net = fqtsim.fully_quantize(model, RECIPE, chosen, "emulator", 0)
    # A small rate while timing: the same batch comes again and again, and no number may leave float32.
    return Trainer(net, {"name": "sgd", "lr": rate, "momentum": 0.9})


def _images(info: DataInfo, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return digits that ship with fqtsim, enlarged to the size of CIFAR-10 and its three channels."""
    data = load_dataset("digits")
    rows = np.arange(first, first + count) % len(data.train_y)
    small = torch.from_numpy(data.normalize(data.train_pixels[rows]))
    large = nn.functional.interpolate(small, size=info.shape[1:], mode="bilinear")
    return large.repeat(1, info.shape[0], 1, 1).contiguous(), torch.from_numpy(data.train_y[rows])


def prepared(bench: Bench) -> Work:
    """Return the work; the short training is done once and kept in the cache."""
    name, info, batch, steps = bench.size(("resnet20", CIFAR, 128, STEPS), ("cnn", TOY, 4, 1))
    path = bench.cache / f"{name}-digits{info.shape[1]}-{steps}x{batch}.safetensors"
    if not path.is_file():
        trainer = _trainer(build_model(name, info, 0), "int8_acc32_wrap", 0.05)
        for step in range(steps):
            trainer.step(*_images(info, step * batch, batch))
        path.parent.mkdir(parents=True, exist_ok=True)
        trainer.save(path)
    state = {key: value for key, value in load_file(path).items() if not key.endswith(MOMENTUM)}
    return Work(name, info, *_images(info, steps * batch, batch), state)


def plain_step(work: Work, channels_last: bool) -> Callable[[], None]:
    """Return one step of fp32 PyTorch eager: cross-entropy, SGD with momentum and weight decay."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = work.model().to(memory_format=layout).train()  # type: ignore[call-overload]
    x = work.x.contiguous(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(x), work.y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return run


def step(bench: Bench) -> None:
    """Time whole training steps."""
    work = prepared(bench)
    plain = {f"fp32 {name}": plain_step(work, last) for name, last in (("contiguous", False), ("channels-last", True))}
    for threads in bench.threads:
        with bench.on(threads):
            for name, target in STEP_TARGETS.items():
                trainer = work.trainer(name)
                calls: dict[str, Callable[[], object]] = {OURS: partial(trainer.step, work.x, work.y), **plain}
                timings = bench.time(calls, threads)
                text = f"{work.name}, batch {len(work.y)}, {RECIPE}, {name}"
                bench.against(target, text, threads, timings, list(plain), **_counted(work, trainer))


def _counted(work: Work, trainer: Trainer) -> dict[str, Any]:
    """Return what one more step multiplies, moves and alters."""
    trainer.net.reset_report()
    trainer.step(work.x, work.y)
    report = trainer.net.report()
    # Rows of the report hold one GEMM's shape; outputs tell how many such products a step had.
    macs = sum(row["outputs"] * row["k"] for row in report)
    moved = step_bytes(work.name, work.info, len(work.y))
    altered = sum(row["altered"] for row in report) / sum(row["outputs"] for row in report)
    return {"macs": macs, "bytes": moved, "unit": "int8 dot product", "altered": altered}


def checks(bench: Bench) -> None:
    """Time training steps with and without checks. Turns change from step to step, so many steps are taken."""
    work = prepared(bench)
    for threads in bench.threads:
        with bench.on(threads):
            for target, asked in (("check_sample", "sample:0.01"), ("check_freivalds", "freivalds")):
                for name in STEP_TARGETS if target == "check_sample" else ("int8_acc32_wrap",):
                    plain, checked = work.trainer(name), work.trainer(name)
                    checker = Checker(checked.net, parse_checks(asked))

                    def step(checker: Checker = checker, checked: Trainer = checked) -> None:
                        with checker.watching():
                            checked.step(work.x, work.y)

                    timings = bench.time({OURS: step, "unchecked": partial(plain.step, work.x, work.y)}, threads)
                    text = f"{work.name}, batch {len(work.y)}, {RECIPE}, {name}, --check {asked}"
                    bench.against(
                        target, text, threads, timings, ["unchecked"], checks=checker.report(), **_counted(work, plain)
                    )


def narrow(datapath: Datapath, bits: int) -> Datapath:
    """Return the datapath with one saturating register behind every product."""
    level = Level.model_validate({"terms": "all", "register": f"int{bits}", "overflow": "saturate"})
    return datapath.model_copy(update={"levels": (level,)})


@dataclass
class Dumped:
    """An observer that measures each GEMM of a training step on narrow registers, on the operands it has there."""

    bench: Bench
    threads: int
    #: Where zero points enter, for the text of the rows.
    zero_point: str
    #: Measure each shape once, or every layer.
    distinct: bool
    most: int
    seen: set[Any] = field(default_factory=set)

    def __call__(self, layer: str, gemm: str, a: Any, b: Any, datapath: Datapath, c: Any, result: GemmResult) -> None:
        """Measure one GEMM."""
        shape = Shape("", gemm, a.shape[0], a.shape[1], b.shape[1])
        key = shape if self.distinct else (layer, gemm)
        if key in self.seen or len(self.seen) >= self.most:
            return
        self.seen.add(key)
        for bits in self.bench.size((24, 20, 16), (24, 16)):
            self._measure(f"{layer} {gemm}", shape, a, b, narrow(datapath, bits), bits)

    def _measure(self, name: str, shape: Shape, a: Any, b: Any, path: Datapath, bits: int) -> None:
        emulator = get_backend("emulator")
        result = emulator.gemm(a, b, path)
        outputs = result.codes.size
        altered, at_rail = result.events.altered / outputs, result.at_rail / outputs
        calls: dict[str, Callable[[], object]] = {OURS: lambda: emulator.gemm(a, b, path), **rivals(shape)}
        timings = self.bench.time(calls, self.threads)
        worst = altered > MOSTLY_FREE
        target, rival = ("dumped_16", INT_MM) if bits == 16 else ("dumped_20_24", INT_MM)
        if worst:
            target, rival = ("worst_16", FP32) if bits == 16 else ("worst_17_32", FP32)
        sized = f"{shape.m} x {shape.k} x {shape.n}"
        work = f"{bits} bits, {name} {sized}, {self.zero_point}, {100 * altered:.1f} % altered"
        counted = traffic(shape) | {"unit": unit_of(bits) if worst else "int8 dot product"}
        of_int_mm = float(np.median(timings.ratios(True, [INT_MM])))
        shares = {"altered": altered, "at_rail": at_rail, "of_int_mm": of_int_mm}
        self.bench.against(target, work, self.threads, timings, [rival], **counted, **shares)


def dumped(bench: Bench) -> None:
    """Measure the GEMMs of one step after a short training; 9-bit differences of codes, and codes as stored."""
    work = prepared(bench)
    wide = [{"terms": "all", "register": "int32", "overflow": "wrap"}]
    kinds = {
        "zero points before": hardware(wide, "int8", "int8", "before_multiply", unsigned_x=True),
        "zero points after": hardware(wide, "int8", "int8", "after_accumulate", unsigned_x=True),
    }
    for threads in bench.threads:
        with bench.on(threads):
            for name, chosen in kinds.items():
                trainer = work.trainer(chosen)
                most = bench.size(1000, 2)
                trainer.net.observers.append(Dumped(bench, threads, name, name != "zero points before", most))
                trainer.step(work.x, work.y)
