"""Whole training steps: ResNet-56 and ResNet-50 beside fake quantization and bf16, and accumulator designs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gpu_models import CIFAR, IMAGENET, ResNet50, fake_quantized, random_batch
from gpu_report import Bench, milliseconds
from torch import nn

import fqtsim
from fqtsim.data import DataInfo
from fqtsim.models import build_model
from fqtsim.train.check_report import parse_checks
from fqtsim.train.checks import Checker
from fqtsim.train.trainer import Trainer

HARDWARE, RECIPE = "int8_acc32_wrap", "bhq5"
TOY = DataInfo((3, 8, 8), 10)
EPOCHS, STEPS_PER_EPOCH, DESIGNS = 30, 390, 8


def _trainer(bench: Bench, model: nn.Module, backend: str, hardware: str = HARDWARE) -> Trainer:
    net = fqtsim.fully_quantize(model, RECIPE, hardware, bench.backend(backend), 0)
    # A small rate: the same batch comes again and again, and no number may leave float32.
    return Trainer(net, {"name": "sgd", "lr": 0.001, "momentum": 0.9})


def _step(bench: Bench, trainer: Trainer, batch: tuple[torch.Tensor, torch.Tensor]) -> Callable[[], float]:
    x, y = batch[0].to(bench.device), batch[1]
    return lambda: trainer.step(x, y)


def _plain_step(
    bench: Bench, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], bf16: bool
) -> Callable[[], Any]:
    """Return one step of ordinary training: channels last, cross-entropy, SGD with momentum."""
    model = model.to(bench.device, memory_format=torch.channels_last).train()
    x, y = batch[0].to(bench.device, memory_format=torch.channels_last), batch[1].to(bench.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device, dtype=torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return step


def _busy(bench: Bench, step: Callable[[], Any]) -> dict[str, Any]:
    """Return how long the device computes in one step, and what takes longest: what to improve next."""
    if bench.device != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            step()
            torch.cuda.synchronize()
        kernels = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    except (RuntimeError, AttributeError) as error:
        return {"profile": str(error)}
    kernels.sort(key=lambda event: -event.self_device_time_total)
    return {
        "device_busy_seconds": sum(event.self_device_time_total for event in kernels) / 1e6,
        "launches": sum(event.count for event in kernels),
        "longest": [[event.key[:90], event.count, event.self_device_time_total / 1e6] for event in kernels[:20]],
    }  # fmt: skip


def resnet56(bench: Bench) -> None:
    """Time a full BHQ-5 step, batch 128, beside fake-quantized float32 and plain bf16 of the same model."""
    info, count = bench.size((CIFAR, 128), (TOY, 4))
    name, batch = bench.size("resnet56", "resnet8"), random_batch(info, count)
    trainer = _trainer(bench, build_model(name, info, 0), "native")
    step = _step(bench, trainer, batch)
    ours = bench.seconds(step, 4.0)
    busy = _busy(bench, step)
    fake = _plain_step(bench, fake_quantized(build_model(name, info, 0)), batch, False)
    slow = bench.seconds(fake, 3.0)
    bf16 = bench.seconds(_plain_step(bench, build_model(name, info, 0), batch, True), 2.0)
    work, measured = f"{name}, batch {count}, BHQ-5, full step", milliseconds(ours)
    details = {
        "seconds": {"native": ours, "fake_float32": slow, "bf16": bf16}, **busy, "fake": _busy(bench, fake),
        "replayed_steps": trainer.replayed_steps,
    }  # fmt: skip
    both = f"{measured}, fake {milliseconds(slow)}"
    bench.at_least(f"{work} / fake-quantized fp32", both, slow / ours, 3.0, "as fast", **details)
    bench.at_most(f"{work} / bf16", f"{measured}, bf16 {milliseconds(bf16)}", ours / bf16, 1.5, "of bf16")
    if busy.get("device_busy_seconds"):
        bench.record(
            f"{work}: share of the step that the device computes", measured, busy["device_busy_seconds"] / ours
        )
    _checked(bench, trainer, step, ours)


def _checked(bench: Bench, trainer: Trainer, step: Callable[[], float], plain: float) -> None:
    """Time the same step under `train --check`; steps checked by a share are no replays of a recorded one."""
    for asked in ("sample:0.01", "freivalds"):
        checker = Checker(trainer.net, parse_checks(asked))

        def checked(checker: Checker = checker) -> None:
            with checker.watching():
                step()

        seconds = bench.seconds(checked, 1.5, 8)  # enough steps for every product to have had a turn
        work, measured = f"the same with --check {asked}", milliseconds(seconds)
        bench.at_most(work, measured, seconds / plain, 1.05, "of unchecked", checks=checker.report())


def designs(bench: Bench) -> None:
    """Time ResNet-20 steps on saturating accumulators, and report what 8 designs x 30 epochs of CIFAR-10 add up to."""
    info, count = bench.size((CIFAR, 128), (TOY, 2))
    name, batch = bench.size("resnet20", "resnet8"), random_batch(info, count)
    for hardware in bench.size(
        ("int8_acc24_saturate", "int8_acc16_saturate", "int8_acc20_tree4"), ("int8_acc24_saturate",)
    ):
        if bench.left < 0:
            bench.skip(hardware, "the time was up; run again with --resume")
            continue
        step = _step(bench, _trainer(bench, build_model(name, info, 0), "emulator", hardware), batch)
        seconds = bench.seconds(step, 2.0, 3)
        hours = DESIGNS * EPOCHS * STEPS_PER_EPOCH * seconds / 3600
        work = f"{DESIGNS} designs x {name} x {EPOCHS} epochs, as {hardware}"
        bench.at_most(
            work, f"{milliseconds(seconds)} a step", hours, 2.0, "hours", step_seconds=seconds, **_busy(bench, step)
        )


def resnet50(bench: Bench) -> None:
    """Time BHQ-5 steps on 224 x 224 images (conv1's wgrad has 627200 terms) beside bf16, one of them checked."""
    info, count = bench.size((IMAGENET, 50), (DataInfo((3, 32, 32), 10), 2))

    def model() -> nn.Module:
        torch.manual_seed(0)
        return bench.size(ResNet50, lambda: ResNet50(10, (1, 1), 4))()

    batch = random_batch(info, count)
    trainer = _trainer(bench, model(), "native")
    step = _step(bench, trainer, batch)
    ours = bench.seconds(step, min(15.0, max(bench.left / 3, 1)), 3)
    bench.record(
        f"ResNet-50, batch {count}, BHQ-5: {trainer.step_index} iterations", milliseconds(ours), **_busy(bench, step)
    )
    bf16 = bench.seconds(_plain_step(bench, model(), batch, True), 2.0)
    bench.record("ResNet-50 beside bf16", f"bf16 {milliseconds(bf16)}", ours / bf16)
    checker = Checker(trainer.net, parse_checks("sample:0.00001,freivalds"))
    with checker.watching():  # raises CheckFailed, naming step, layer and element
        step()
    bench.equal(
        "ResNet-50: one iteration, sampled by stepwise and by Freivalds", 0, "its GEMMs", checks=checker.report()
    )
