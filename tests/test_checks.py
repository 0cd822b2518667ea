"""`train --check`: every wrong code that a check can see is seen, named and saved; the state does not change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fqtsim
from fqtsim.backends import direct
from fqtsim.backends.base import Array, GemmResult
from fqtsim.backends.device import DeviceEmulator, DeviceNative
from fqtsim.backends.emulator import Emulator
from fqtsim.backends.stepwise import Stepwise
from fqtsim.cli import main
from fqtsim.data.batches import training_batch
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Datapath
from fqtsim.kernels import freivalds
from fqtsim.kernels.gpu import convolution
from fqtsim.kernels.gpu import freivalds as on_device
from fqtsim.kernels.gpu.epilogue import Register
from fqtsim.train import loop
from fqtsim.train import on_device as on_device_layers
from fqtsim.train.check_report import Checks, Counts, check_report, parse_checks
from fqtsim.train.checks import Checker, CheckFailed, wrapping_bits
from fqtsim.train.config import TrainConfig, build_trainer, resolve
from fqtsim.train.gemm import Gemm
from fqtsim.train.loop import run
from fqtsim.train.operands import decoded
from fqtsim.train.products import Product
from fqtsim.train.reproducer import read
from fqtsim.train.trainer import Trainer

CONFIG = TrainConfig("mlp", "digits", "bhq5", ("int8_acc32_wrap",), seed=5, steps=4, batch=16, save_every=2)


class FlipsABit(Emulator):
    """One bit of one output of every GEMM of one kind is wrong."""

    def __init__(self, bit: int, row: int = 3, col: int = 2) -> None:
        self.bit, self.place = bit, (row, col)

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        result = super().gemm(a, b, datapath, c, trace)
        codes = result.codes.copy()
        codes[self.place] = (codes[self.place].view(np.uint32) ^ np.uint32(1 << self.bit)).view(np.int32)
        return replace(result, codes=codes)


def one_step(trainer: Trainer, checker: Checker) -> None:
    images, labels = training_batch(resolve(CONFIG).data, CONFIG.seed, trainer.step_index, CONFIG.batch)
    with checker.watching():
        trainer.step(torch.from_numpy(images), torch.from_numpy(labels))


@pytest.mark.parametrize("matrix", [np.int8, np.uint8, np.int16, np.int32, np.int64])
def test_combinations_are_exact_modulo_2_to_the_32(matrix: Any) -> None:
    rng = np.random.default_rng(1)
    info = np.iinfo(matrix)
    codes = rng.integers(info.min, info.max, (41, 9), matrix, endpoint=True)
    codes[:2] = [[info.min], [info.max]]
    weights = rng.integers(0, 2**32, (2, 41), np.uint64).astype(np.uint32)
    weights[:, :2] = 2**32 - 1
    expected = (weights.astype(object) @ codes.astype(object) % 2**32).astype(np.uint32)
    assert np.array_equal(freivalds.combine(weights, codes), expected)
    assert np.array_equal(freivalds.combine_rows(weights, np.ascontiguousarray(codes.T)), expected)
    words, tensor = torch.from_numpy(weights.view(np.int32)), torch.from_numpy(codes)
    assert np.array_equal(on_device.combine(words, tensor).numpy().view(np.uint32), expected)


@pytest.mark.parametrize("bit", [0, 7, 30, 31])
def test_freivalds_sees_every_single_wrong_output(bit: int) -> None:
    trainer = build_trainer(resolve(CONFIG), FlipsABit(bit))
    before = trainer.digest().hex
    with pytest.raises(CheckFailed) as caught:
        one_step(trainer, Checker(trainer.net, Checks(freivalds=1.0)))
    error = caught.value
    assert (error.original, error.reproducer.name, error.reproducer.place["layer"]) == ((3, 2), "fprop", "1")
    (row, col), operands = (error.reproducer.place[name] for name in ("row", "col")), error.reproducer.operands
    step = float(operands["rows.step"][row]) * float(operands["columns.step"][col])
    assert abs(float(error.found) - float(error.expected)) / step == pytest.approx(1 << bit, rel=0.01)
    assert "step 1, layer '1', fprop, row 3, column 2: emulator has" in str(error)
    assert trainer.digest().hex == before
    assert trainer.net.checks is None


class WrongStepwise(Stepwise):
    """The backend whose own code says what is right, wrong in one output."""

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        result = super().gemm(a, b, datapath, c, trace)
        codes = result.codes.copy()
        codes[3, 2] ^= 8
        return replace(result, codes=codes)


def test_a_wrong_stepwise_is_not_taken_for_what_it_is_compared_with(tmp_path: Path) -> None:
    trainer = build_trainer(resolve(CONFIG), WrongStepwise())
    with pytest.raises(CheckFailed, match=r"row 3, column 2: stepwise \(run\) has .*, stepwise ") as caught:
        one_step(trainer, Checker(trainer.net, Checks(freivalds=1.0)))
    assert main(["explain", str(caught.value.save(tmp_path))]) == 0


def test_a_full_sample_sees_it_too_and_a_small_one_after_some_steps() -> None:
    trainer = build_trainer(resolve(CONFIG), FlipsABit(4))
    with pytest.raises(CheckFailed, match=r"row 3, column 2.*\(sample\)"):
        one_step(trainer, Checker(trainer.net, Checks(sample=1.0)))
    checker = Checker(trainer.net, Checks(sample=0.02))

    def until_seen() -> None:
        for _ in range(400):
            one_step(trainer, checker)

    with pytest.raises(CheckFailed, match="row 3, column 2"):
        until_seen()
    # 8 GEMMs a step, each seen with 0.02: 400 steps without a sight would have a chance of 1e-28.
    assert checker.counts.steps > 0


@pytest.mark.parametrize(
    ("m", "n", "groups", "share"),
    [(37, 11, 1, 0.05), (3, 200, 1, 0.02), (500, 1, 1, 0.01), (9, 4, 7, 0.1), (2, 3, 90, 0.05)],
)
def test_outputs_are_sampled_evenly_and_reproducibly(m: int, n: int, groups: int, share: float) -> None:
    trainer = build_trainer(resolve(CONFIG))
    checker = Checker(trainer.net, Checks(sample=share))
    gemm = Gemm("l", "fprop", load_hardware("int8_acc32_wrap").datapath_for("fprop"), trainer.net._run)
    plain = decoded(np.zeros(1, np.float32))
    product = Product(gemm, plain, plain, np.zeros(1), (m, n, 5), groups)
    seen, steps = np.zeros((groups, m, n)), 800
    for step in range(steps):
        trainer.net.step_index = step
        picked = list(checker._picked(product, share))
        again = list(checker._picked(product, share))
        assert repr(picked) == repr(again)
        for group, rows, cols in picked:
            assert len(set(rows)) == len(rows)
            assert len(set(cols)) == len(cols)
            seen[group][np.ix_(rows, cols)] += 1
    # Each output's count is binomial with at least this share: six standard deviations below.
    assert seen.min() >= steps * share - 6 * np.sqrt(steps * share)
    assert share <= seen.mean() / steps < 3 * share


def test_products_take_turns_evenly() -> None:
    """Each of a block of products is the one with the same probability; a block that is cut short loses none of it."""
    trainer = build_trainer(resolve(CONFIG))
    checker, steps, turns = Checker(trainer.net, Checks(sample=0.01)), 3000, 16
    seen = np.zeros(211)
    for step in range(steps):
        trainer.net.step_index = step
        checker._turns.clear()
        chosen = np.array([checker._has_turn(number, turns) for number in range(len(seen))])
        assert (chosen[:208].reshape(-1, turns).sum(1) == 1).all()
        seen += chosen
    assert np.abs(seen - steps / turns).max() < 5 * np.sqrt(steps / turns * (1 - 1 / turns))
    assert all(checker._has_turn(number, 1) for number in range(3))


def test_tensors_are_checked_after_the_step() -> None:
    """A sample disturbs no kernel of a device, and no layer waits for it."""
    trainer = build_trainer(resolve(CONFIG), DeviceNative("cpu"))
    checker, seen = Checker(trainer.net, Checks(sample=1.0)), []
    one_step(trainer, checker)

    def wrong_number(product: Product) -> None:
        if product.names == ("1", "fprop"):
            product.out.reshape(-1, product.shape[1])[9, 7] += 1
        seen.append(product.names[1])

    trainer.net.watchers.append(wrong_number)
    with pytest.raises(CheckFailed, match="row 9, column 7"):
        one_step(trainer, checker)
    assert "wgrad" in seen


class Branches(torch.nn.Module):
    """Convolutions with and without groups, strides and dilation, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(4, 8, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=4)
        self.paired = torch.nn.Conv2d(8, 4, 1, groups=2, bias=False)
        self.last = torch.nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.paired(torch.relu(self.depthwise(torch.relu(self.first(x))))))
        return self.last(torch.flatten(torch.nn.functional.adaptive_avg_pool2d(x, 1), 1))


def branched(recipe: str, hardware: Any, backend: Any) -> Trainer:
    torch.manual_seed(0)
    return Trainer(fqtsim.fully_quantize(Branches(), recipe, hardware, backend, seed=3), {"name": "sgd", "lr": 0.1})


@pytest.mark.parametrize(
    ("recipe", "hardware", "backend"),
    [
        ("bhq5", "int8_acc32_wrap", "emulator"), ("psq5", "int8_acc16_saturate", "emulator"),
        ("bhq5_offset", "int8_acc32_wrap", "emulator"), ("psq5_channel", "int8_acc20_tree4", "emulator"),
        ("ptq8", "int8_acc32_wrap", "native@cpu"),
        ("bhq5", "int8_acc32_wrap", DeviceNative("cpu")), ("psq5", "int8_acc16_saturate", DeviceEmulator("cpu")),
    ],
)  # fmt: skip
def test_every_output_of_every_layer_can_be_recomputed(recipe: str, hardware: str, backend: Any) -> None:
    trainer = branched(recipe, hardware, backend)
    checker = Checker(trainer.net, Checks(sample=1.0))
    one_step(trainer, checker)
    assert checker.counts.recomputed == checker.counts.outputs > 10_000
    assert checker.counts.gemms == 3 * (1 + 4 + 2 + 1) - 1  # the first layer needs no dgrad


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    "backend", ["emulator", "native@cpu", "stepwise", DeviceNative("cpu"), DeviceEmulator("cpu")],
    ids=["emulator", "native", "stepwise", "native on tensors", "emulator on tensors"],
)  # fmt: skip
def test_every_wrapping_gemm_of_every_layer_is_summed(backend: Any, narrow: bool) -> None:
    hardware = load_hardware("int8_acc32_wrap", {"datapath.levels.-1.register": "int14"} if narrow else {})
    trainer = branched("psq5", hardware, backend)
    checker = Checker(trainer.net, Checks(freivalds=1.0))
    one_step(trainer, checker)
    assert checker.counts.products == checker.counts.wrapping == 3 * (1 + 4 + 2 + 1) - 1
    assert trainer.net.checks is None
    assert narrow == any(row["altered"] for row in trainer.net.report())


class Wrong:
    """A kernel that is wrong once: one bit of one code that it multiplies is another one."""

    def __init__(self, kernel: Any, call: int) -> None:
        self.kernel, self.left, self.seen = kernel, call, 0

    def __call__(self, codes: Any, *rest: Any, **settings: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            codes = codes.clone() if isinstance(codes, torch.Tensor) else codes.copy()
            codes[tuple(size // 2 for size in codes.shape)] ^= 4
            self.seen += 1
        return self.kernel(codes, *rest, **settings)


@pytest.mark.parametrize(
    ("module", "name", "backend", "call", "seen"),
    [
        (direct.kernels, "convolve", "emulator", 1, "'first', fprop"),
        (direct, "_sums", "emulator", 1, "'first', wgrad"),
        (convolution, "conv_fprop", DeviceNative("cpu"), 2, "'depthwise', fprop, group 2"),
        (convolution, "conv_dgrad", DeviceNative("cpu"), 1, "'paired', dgrad, group 1"),
        (convolution, "conv_wgrad", DeviceNative("cpu"), 3, "'first', wgrad"),
        (on_device_layers, "int8_gemm_scaled", DeviceNative("cpu"), 3, "'last', wgrad"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_kernel_wrong_once_is_seen_by_its_sums(
    module: Any, name: str, backend: Any, call: int, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no code leaves the kernel: whatever multiplied wrong codes has other sums than the operands say."""
    direct.prove_images()  # whose own calls are right
    direct.prove_gradient(1)
    if name == "_sums":
        honest = direct._sums
        wrong = Wrong(lambda codes, job: honest(replace(job, codes=codes)), call)
        monkeypatch.setattr(direct, name, lambda job: wrong(job.codes, job))
    else:
        wrong = Wrong(getattr(module, name), call)
        monkeypatch.setattr(module, name, wrong)
    trainer = branched("psq5", "int8_acc32_wrap", backend)
    with pytest.raises(CheckFailed, match=rf"layer {seen}, .*row \d+, column \d+.*\(freivalds\)"):
        one_step(trainer, Checker(trainer.net, Checks(freivalds=1.0)))
    assert wrong.seen == 1


def test_a_wrong_code_behind_a_register_is_seen_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a register of 14 bits wraps, its code is summed and not what it was made from."""
    honest, seen = Register.reduce, []

    def wrong(self: Register, total: torch.Tensor) -> torch.Tensor:
        codes = honest(self, total)
        if self.bits == 14 and not seen:
            codes[0, 0] ^= 2
            seen.append(self)
        return codes

    hardware = load_hardware("int8_acc32_wrap", {"datapath.levels.-1.register": "int14"})
    trainer = branched("psq5", hardware, DeviceNative("cpu"))
    monkeypatch.setattr(Register, "reduce", wrong)
    with pytest.raises(CheckFailed, match=r"wgrad, row 0, column 0.*\(freivalds\)"):
        one_step(trainer, Checker(trainer.net, Checks(freivalds=1.0)))
    assert seen


def test_a_sum_without_a_wrong_number_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = direct._summed
    monkeypatch.setattr(direct, "_summed", lambda words, samples: honest(words, samples) + np.uint32(1 << 31))
    trainer = branched("psq5", "int8_acc32_wrap", "emulator")
    with pytest.raises(CheckFailed, match=r"'first', fprop, column 0: its codes have another sum than they must"):
        one_step(trainer, Checker(trainer.net, Checks(freivalds=1.0)))


@pytest.mark.parametrize(
    ("name", "gemm"),
    [
        (name, gemm)
        for name in ("first", "depthwise", "paired", "last")
        for gemm in ("fprop", "dgrad", "wgrad")
        if (name, gemm) != ("first", "dgrad")  # nobody reads the gradient of the images
    ],
)
def test_a_wrong_number_behind_the_accumulator_is_seen_and_saved(
    name: str, gemm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kernel whose scaling is one unit of the last place off: no code is wrong, and the product is."""
    trainer = branched("psq5", "int8_acc24_saturate", "emulator")

    def off(product: Product) -> None:
        if product.names == (name, gemm):
            flat = product.out.reshape(-1)
            flat[-3] = np.nextafter(flat[-3], np.float32(np.inf))

    trainer.net.watchers.append(off)
    with pytest.raises(CheckFailed, match=rf"layer '{name}', {gemm}, .* \(sample\)") as caught:
        one_step(trainer, Checker(trainer.net, Checks(sample=1.0)))
    error = caught.value
    file = error.save(tmp_path)
    place = read(file).place
    assert (tuple(place["cut_from"]), place["group"]) == (error.original, error.group)
    assert error.group == {"depthwise": 3, "paired": 1}.get(name, 0)
    assert main(["explain", str(file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    said = {line.partition(":")[0]: line.split()[-1] for line in shown if line.startswith(("in the file", "here"))}
    wanted = {"in the file, emulator": "WRONG", "in the file, stepwise": "equal", "here, emulator": "equal"}
    assert wanted.items() <= said.items()


@pytest.mark.parametrize(
    ("name", "bits"), [("int8_acc32_wrap", 32), ("int8_acc24_saturate", None), ("int8_acc20_tree4", None)]
)
def test_which_accumulators_wrap_in_any_order(name: str, bits: int | None) -> None:
    assert wrapping_bits(load_hardware(name).datapath_for("fprop")) == bits


def test_a_narrower_wrapping_accumulator_is_compared_in_its_own_bits(tmp_path: Path) -> None:
    config = replace(CONFIG, set_hardware={"datapath.levels.-1.register": "int14"}, check="freivalds,sample:0.5")
    run(config, tmp_path / "run")
    events = json.loads((tmp_path / "run" / "events.json").read_text())
    assert sum(row["altered"] for row in events["layers"]) > 0
    assert events["checks"]["freivalds"]["checked"] == events["checks"]["gemms"] == 4 * 8


def test_a_checked_run_has_the_same_state_and_resumes_with_the_same_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(CONFIG, tmp_path / "plain")
    config = replace(CONFIG, check="sample:0.01,freivalds:0.5")
    whole = run(config, tmp_path / "whole")
    assert whole.digest == plain.digest

    class Killed(BaseException):
        pass

    def kill(record: loop.StepRecord) -> None:
        if record.step == 3:
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "killed", on_step=kill)
    run(config, tmp_path / "killed", resume=True)
    texts = [(tmp_path / name / "events.json").read_text() for name in ("whole", "killed")]
    assert texts[0] == texts[1]
    with pytest.raises(InputError, match=r"config\.check"):
        run(replace(config, check="sample:0.5"), tmp_path / "killed", resume=True)


def test_the_report_states_probabilities() -> None:
    counts = Counts(steps=100, gemms=800, outputs=10**6, recomputed=10**4, wrapping=800, products=200)
    report = check_report(Checks(0.01, 0.25), counts)
    assert report["sample"]["wrong_kernel"] == pytest.approx(1 - 0.99**100)
    assert report["freivalds"]["wrong_kernel"] == pytest.approx(1 - 0.9375**100)
    assert report["freivalds"]["wrong_output"] == 0.25
    assert check_report(Checks(sample=1.0), counts)["sample"]["wrong_kernel"] == 1


@pytest.mark.parametrize(
    "text", ["sample", "sample:0", "sample:2", "sample:x", "freivalds:-1", "all", "sample:0.1,sample:0.2", "sample:nan"]
)
def test_bad_checks_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="check = "):
        parse_checks(text)


def test_checks_that_would_prove_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="compared with itself"):
        Checker(build_trainer(resolve(CONFIG), "stepwise").net, Checks(sample=0.1))
    with pytest.raises(InputError, match="no integer GEMM"):
        Checker(build_trainer(resolve(replace(CONFIG, recipe="fp32"))).net, Checks(sample=0.1))


def test_the_command_stops_with_1_and_saves_what_explain_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, faulty = tmp_path / "run", FlipsABit(5)
    monkeypatch.setattr("fqtsim.train.convert.get_backend", lambda name: faulty)
    words = ["train", "--model", "mlp", "--recipe", "bhq5", "--hardware", "int8_acc32_wrap", "--steps", "2"]
    assert main([*words, "--batch", "16", "--check", "freivalds", "--out", str(out)]) == 1
    said = capsys.readouterr().err
    (file,) = out.glob("reproducer_*.safetensors")
    assert f"fqtsim explain {file}" in said
    assert read(file).operands["a"].shape == (16, 64)
    assert main(["explain", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "in the file, emulator" in shown
    assert "WRONG" in shown.split("in the file, emulator")[1].splitlines()[0]
    assert "here, emulator" in shown
    assert main(["explain", str(file), "--row", "1"]) == 2


def test_the_command_prints_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--model", "mlp", "--recipe", "bhq5", "--hardware", "int8_acc32_wrap", "--steps", "2"]
    arguments = [*words, "--batch", "16", "--backend", "native", "--check", "sample:0.01,freivalds"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "16 of 16 wrapping GEMMs of 16 checked" in shown
    assert "seen with probability >= 0.010000" in shown
