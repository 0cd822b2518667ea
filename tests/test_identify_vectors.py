"""identify from vectors alone, in memory and at the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted_faults import (
    ACC,
    DOUBLE,
    MULTIPLIER,
    SATURATING,
    SHIFT,
    WRAPPING,
    chain,
    clamp,
    exact,
    operands,
    wrap,
    xor_sum,
)

import fqtsim
from fqtsim.cli import main
from fqtsim.errors import InputError
from fqtsim.identify import (
    identify,
    identify_requantization,
)


@pytest.mark.parametrize("name", ["int8_acc12_saturate", "int8_acc16_saturate", "x86_avx2_pmaddubsw"])
def test_the_hardware_that_made_vectors_is_found(name: str) -> None:
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 256, (6, 300)), rng.integers(-127, 128, (300, 5))
    b[:, 0] = 127
    found = identify(a, b, fqtsim.gemm(a, b, name).codes)
    assert [text.split()[0] for text in found.hardware] == [name]
    assert found.survivors[0] == found.hardware[0]


def test_hardware_that_vectors_cannot_tell_apart_comes_with_inputs_that_can() -> None:
    a, b = np.array([[1, 2, 3]]), np.array([[4], [5], [6]])
    found = identify(a, b, [[32]], among=["int8_acc16_saturate", "int8_acc24_saturate", "int8_acc32_wrap"])
    assert len(found.hardware) == 3
    assert found.questions
    question = found.questions[0]
    codes = {
        fqtsim.gemm(question.a, question.b, name, c=question.c).codes.tobytes()
        for name in ("int8_acc16_saturate", "int8_acc24_saturate")
    }
    assert len(codes) == 2 or len(found.questions) > 1
    assert "would tell them apart" in str(found)


def test_parameters_are_found_where_no_file_fits() -> None:
    a, b, _ = operands(SATURATING, (6, 200, 6), 2)
    codes = chain(a, b, None, lambda total: clamp(total, -(1 << 17), (1 << 17) - 1))
    found = identify(a, b, codes)
    assert found.hardware == ()
    assert found.parameters[0] == "every product added by itself, accumulator of 18 bits, saturate"


def test_a_changed_file_is_found_where_no_parameters_fit() -> None:
    a, b, _ = operands(SATURATING, (6, 200, 6), 2)
    found = identify(a, b, chain(a[:, ::-1], b[::-1], None), among=["int8_acc16_saturate"])
    assert (found.hardware, found.parameters) == ((), ())
    assert found.changed[0] == "int8_acc16_saturate (fprop), where k runs from last to first"


def test_none_of_these_is_an_answer() -> None:
    a, b, _ = operands(WRAPPING, (6, 50, 6), 2)
    found = identify(a, b, xor_sum(a, b, None))
    assert found.survivors == ()
    assert str(found).startswith("none of these")


def test_identify_refuses_what_fits_no_gemm() -> None:
    with pytest.raises(InputError, match=r"^codes.shape = \(1, 2\): must be \(1, 1\)"):
        identify([[1]], [[1]], [[1, 2]])
    with pytest.raises(InputError, match=r"^a.shape = "):
        identify([1], [[1]], [[1]])


def test_stages_are_identified() -> None:
    codes = fqtsim.requantize(ACC, DOUBLE, MULTIPLIER, SHIFT).codes
    found = identify_requantization(ACC, codes, {"multiplier": MULTIPLIER, "shift": SHIFT})
    assert DOUBLE in found.hardware
    assert "tflite_single" not in found.hardware
    with pytest.raises(InputError, match=r"^no hardware's output stages take these arguments"):
        identify_requantization(ACC, codes, {})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = np.array([[1, 2, 3]]), np.array([[4], [5], [6]])
    path = tmp_path / "vectors.npz"
    np.savez(path, a=a, b=b, codes=[[32]])
    names = ["--among", "int8_acc16_saturate", "--among", "int8_acc24_saturate"]
    assert main(["identify", str(path), *names, "--save", str(tmp_path / "asked")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1. int8_acc16_saturate (fprop, dgrad, wgrad)\n2. int8_acc24_saturate")
    with np.load(tmp_path / "asked" / "inputs_1.npz") as stored:
        assert set(stored.files) >= {"a", "b"}
    a, b, _ = operands(WRAPPING, (6, 50, 6), 2)
    np.savez(path, a=a, b=b, codes=xor_sum(a, b, None))
    assert main(["identify", str(path), *names]) == 1
    assert capsys.readouterr().out.startswith("none of these")


def test_the_command_reads_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "vectors.safetensors"
    save_file({"acc": ACC, "codes": fqtsim.requantize(ACC, DOUBLE, MULTIPLIER, SHIFT).codes,
               "multiplier": MULTIPLIER, "shift": SHIFT}, path)  # fmt: skip
    assert main(["identify", str(path)]) == 0
    assert "tflite_double" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95."])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_file_that_is_none(tmp_path: Path, content: bytes, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"vectors.{suffix}"
    path.write_bytes(content)
    assert main(["identify", str(path)]) == 2
    err = capsys.readouterr().err
    assert "not a readable" in err
    assert "Traceback" not in err


def test_arrays_by_other_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, a=[[1]], b=[[1]])
    assert main(["identify", str(path)]) == 2
    assert "must be a, b, codes and optionally c" in capsys.readouterr().err


def test_compare_names_causes() -> None:
    a, b, _ = operands(SATURATING, (6, 200, 6), 2)
    found = fqtsim.compare(a, b, "int8_acc16_saturate", wrap(exact(a, b, None), 16))
    assert found.causes[0].startswith("the accumulator wraps")
    assert fqtsim.compare(a, b, "int8_acc16_saturate", chain(a, b, None)).causes == ()
    assert fqtsim.compare(a, b, "int8_acc16_saturate", chain(a, b, None) ^ 1).causes == ()
