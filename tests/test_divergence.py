"""Where two backends part: the primitive or GEMM is named, with its bits, and its reproducer can be explained."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fqtsim.backends.base import Array, GemmResult
from fqtsim.backends.primitives import Primitives
from fqtsim.backends.stepwise import Stepwise
from fqtsim.cli import main
from fqtsim.crosscheck import crosscheck
from fqtsim.crosscheck.primitives import first_unequal, recording, show
from fqtsim.crosscheck.reproducer import read, summary
from fqtsim.errors import InputError
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Datapath
from fqtsim.train.config import TrainConfig
from fqtsim.train.reproducer import of_gemm

CONFIG = TrainConfig("mlp", "digits", "bhq5", ("int8_acc12_saturate",), seed=1, steps=2, batch=16)


class Faulty(Stepwise):
    """Stepwise under another name and executor, with the primitives given."""

    name = "faulty"

    def __init__(self, primitives: Primitives | None = None) -> None:
        if primitives is not None:
            self.primitives = primitives

    @property
    def executor(self) -> str:
        return "a faulty device"


class Unproven(Primitives):
    """Primitives with a fault that the start-up proof is taken to have missed."""

    def prove(self) -> None:
        """Pass."""


class AddsAnUlp(Unproven):
    """Sums of weights of the last layer are one unit in the last place too large at [4, 7]."""

    def add(self, x: Any, y: Any) -> Any:
        total = np.array(super().add(x, y))
        if total.shape == (10, 128):
            total[4, 7] = np.nextafter(total[4, 7], np.float32(np.inf))
        return total


class QuantizesHigh(Unproven):
    """The first code of every matrix is one off."""

    def quantize(self, *args: Any) -> Any:
        codes, clamps, ties = super().quantize(*args)
        codes = codes.copy()
        codes.reshape(-1)[3] ^= 1
        return codes, clamps, ties


class OnlyOnce(Unproven):
    """The hundredth product is wrong, and never again."""

    def __init__(self) -> None:
        self.calls = itertools.count(1)

    def multiply(self, x: Any, y: Any) -> Any:
        return np.asarray(super().multiply(x, y)) * np.float32(1 + (next(self.calls) == 5))


class FlipsABit(Faulty):
    """Bit 5 of output [3, 2] is wrong."""

    def gemm(self, a: Array, b: Array, datapath: Datapath, c: Array | None = None, trace: bool = False) -> GemmResult:
        result = super().gemm(a, b, datapath, c, trace)
        codes = result.codes.copy()
        if codes.shape[0] > 3 and codes.shape[1] > 2:
            codes[3, 2] ^= 1 << 5
        return replace(result, codes=codes)


def test_a_wrong_update_is_traced_to_its_primitive_and_element(tmp_path: Path) -> None:
    report = crosscheck(CONFIG, ["stepwise", Faulty(AddsAnUlp())])
    found = report.difference
    assert found is not None
    assert (found.step, found.kind) == (1, "state")
    assert "tensor 5.weight" in found.what
    assert "at [4, 7]" in found.what
    assert "primitive  add, operation" in str(report)
    assert "at [4, 7]: stepwise 0x" in found.primitive
    assert found.reproducer is not None
    saved = read(found.reproducer.save(tmp_path / "one.safetensors"))
    assert (saved.kind, saved.name, saved.place["step"]) == ("primitive", "add", 1)
    bits = [int(saved.results[name][4, 7].view(np.uint32)) for name in ("stepwise", "faulty")]
    assert abs(bits[1] - bits[0]) == 1
    text = summary(saved)
    assert "stepwise: equal to what is here" in text
    assert "faulty: WRONG against what is here" in text
    assert "operand 1 at [4, 7]: 0x" in text


def test_a_wrong_quantizer_is_traced_from_the_operand_it_made(tmp_path: Path) -> None:
    found = crosscheck(CONFIG, ["stepwise", Faulty(QuantizesHigh())]).difference
    assert found is not None
    assert (found.kind, found.layer, found.gemm) == ("operand", "1", "fprop")
    assert found.primitive.startswith("primitive  quantize, operation")
    assert found.reproducer is not None
    text = summary(read(found.reproducer.save(tmp_path / "one.safetensors")))
    assert "stepwise: equal to what is here" in text
    assert "faulty: WRONG" in text


def test_a_fault_that_does_not_come_back_is_called_so() -> None:
    found = crosscheck(CONFIG, ["stepwise", Faulty(OnlyOnce())]).difference
    assert found is not None
    assert "did not come back" in found.primitive
    assert found.reproducer is None


def test_recording_leaves_the_backend_as_it_was() -> None:
    for backend in (Stepwise(), Faulty(AddsAnUlp())):
        before, own = backend.primitives, "primitives" in vars(backend)
        with recording(backend) as recorder:
            backend.primitives.add(np.ones(2, np.float32), 1.0)
        assert backend.primitives is before
        assert ("primitives" in vars(backend)) == own
        assert [call.name for call in recorder.calls] == ["add"]


def test_the_command_saves_a_reproducer_that_explain_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "fqtsim.crosscheck.lockstep.get_backend", lambda name: FlipsABit() if name == "native" else Stepwise()
    )
    words = ["crosscheck", "--model", "mlp", "--recipe", "bhq5", "--hardware", "int8_acc12_saturate", "--batch", "8"]
    assert main([*words, "--steps", "1", "--save", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "MISMATCH   step 1, layer 1, fprop, row 3, column 2" in shown
    (file,) = tmp_path.glob("*.safetensors")
    assert file.name == "reproducer_step1_1_fprop.safetensors"
    assert f"fqtsim explain {file}" in shown
    assert main(["explain", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "output [3, 2]" in shown
    assert [line for line in shown.splitlines() if line.endswith("WRONG")] == [
        line for line in shown.splitlines() if line.startswith("in the file, faulty")
    ]


def test_large_operands_are_cut_to_the_row_and_column(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-99, 99, (3000, 2000)).astype(np.int8), rng.integers(-99, 99, (2000, 5)).astype(np.int8)
    path = load_hardware("int8_acc24_saturate").datapath_for("dgrad")
    codes = np.arange(15000, dtype=np.int32).reshape(3000, 5)
    one = of_gemm({"row": 2000, "col": 3}, "dgrad", path, {"a": a, "b": b}, {"x": codes})
    saved = read(one.save(tmp_path / "cut.safetensors"))
    assert np.array_equal(saved.operands["a"], a[2000:2001])
    assert np.array_equal(saved.operands["b"], b[:, 3:4])
    assert saved.results["x"].tolist() == [[10003]]
    assert saved.datapath == path
    assert "row 2000, column 3 of the whole GEMM" in summary(saved)


def test_other_files_are_refused(tmp_path: Path) -> None:
    good = of_gemm(
        {"row": 0, "col": 0}, "fprop", load_hardware("int8_acc24_saturate").datapath_for("dgrad"),
        {"a": np.ones((2, 3), np.int8), "b": np.ones((3, 2), np.int8)}, {"x": np.ones((2, 2), np.int32)},
    )  # fmt: skip
    for change in ({"place": {"row": 9, "col": 0}}, {"kind": "other"}, {"results": {}}, {"parameters": {"a": "int8"}}):
        file = replace(good, **change).save(tmp_path / "bad.safetensors")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="damaged"):
            read(file)
    (tmp_path / "text.safetensors").write_text("nothing")
    with pytest.raises(InputError, match="not a readable"):
        read(tmp_path / "text.safetensors")
    assert main(["explain", str(tmp_path / "none.safetensors")]) == 2


def test_the_first_unequal_element_is_one_of_bits() -> None:
    x = np.array([[0.0, 1.0], [np.nan, 2.0]], np.float32)
    y = x.copy()
    assert first_unequal(x, y) is None
    y[0, 0] = -0.0
    assert first_unequal(x, y) == (0, 0)
    assert (show(x[0, 0]), show(y[0, 0])) == ("0x00000000 (0.0)", "0x80000000 (-0.0)")
