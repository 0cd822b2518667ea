"""`fqtsim golden make` and `golden check` on the command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_sets import golden

from fqtsim.cli import main
from fqtsim.golden.files import load, save

Array = np.ndarray[Any, Any]


def test_make_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set.npz"
    arguments = ["golden", "make", "--hardware", "tflite_double", "--kind", "requantize,quantize", "--out", str(out)]
    assert main([*arguments, "--seed", "3"]) == 0
    said = capsys.readouterr().out
    assert "reached by requantize" in said
    assert "stage1.ties" in said
    assert load(out).seed == 3
    assert {case.kind for case in load(out).cases} == {"quantize", "requantize"}


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        (["--kind", "gem"], "kind = 'gem'"),
        (["--kind", ""], "has no cases"),
        (["--kind", "requantize"], "has no output stages"),
        (["--out", "set.txt"], "its name tells no format"),
        (["--hardware", "int8_acc99"], "int8_acc99"),
        (["--out", "missing/folder/set.npz", "--kind", "quantize"], "cannot be written"),
        (["--kind", "quantize", "--format", "c"], "has no GEMM"),
    ],
)
def test_bad_input_is_one_line(
    more: list[str], rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["golden", "make", "--hardware", "int8_acc12_saturate", "--out", "set.npz", *more]) == 2
    said = capsys.readouterr().err
    assert rule in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


KERNELS = """
import numpy as np

def right(a, b, c=None):
    total = np.zeros((a.shape[0], b.shape[1]), np.int64) if c is None else c.copy()
    for k in range(a.shape[1]):
        total = np.clip(total + a[:, k:k+1].astype(np.int64) * b[k:k+1], -2048, 2047)
    return total

def late(a, b, c=None):
    return np.clip(a.astype(np.int64) @ b + (0 if c is None else c), -2048, 2047)
"""


def test_check_takes_one_kernel_and_the_cases_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(KERNELS)
    save(golden("int8_acc12_saturate"), "set.npz")
    check = ["golden", "check", "set.npz", "--no-large", "--case", "k_?", "--case", "order"]
    assert main([*check, "--kernel", "mine.py:right"]) == 0
    assert "all 5 cases" in capsys.readouterr().out
    assert main([*check, "--kernel", "mine.py:late"]) == 1
    for wrong, rule in (
        (["--kernel", "mine.py:right", "--command", "x"], "give exactly one of"),
        ([], "no kernel: give exactly one of"),
        (["--kernel", "mine.py:right", "--case", "nothing_like_it"], None),
        (["--kernel", "mine.py:absent"], "mine.py"),
    ):
        code = main([*check, *wrong])
        said = capsys.readouterr().err
        assert (code, rule is None or rule in said) == ((0 if rule is None else 2), True), (wrong, said)
    assert main(["golden", "check", "set.npz", "--case", "none", "--kernel", "mine.py:right"]) == 2
    assert "no case of set.npz fits" in capsys.readouterr().err


LAYOUTS = """
import numpy as np
from mine import right

def of_row_major_memory(a, b, c=None):
    flat = b.ravel("K").reshape(b.shape)
    return right(a, flat, c)
"""


def test_layouts_run_smaller_gemms_again_on_column_major_operands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(KERNELS)
    Path("flat.py").write_text(LAYOUTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    save(golden("int8_acc12_saturate"), "set.npz")
    check = ["golden", "check", "set.npz", "--case", "k_3", "--case", "k_65"]
    assert main([*check, "--kernel", "flat.py:of_row_major_memory"]) == 0
    assert "all 2 cases" in capsys.readouterr().out
    assert main([*check, "--layouts", "--kernel", "mine.py:right"]) == 0
    assert "all 4 cases" in capsys.readouterr().out
    assert main([*check, "--layouts", "--kernel", "flat.py:of_row_major_memory"]) == 1
    assert "k_65 (column-major)" in capsys.readouterr().out


def test_no_large_means_the_same_cases_in_make_and_in_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    helps = []
    for command in ("make", "check"):
        assert main(["golden", command, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        helps.append(text[text.index("--no-large") :].split("operands.")[0])
    assert helps[0] == helps[1]
    assert "seed in place of" in helps[0]
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(KERNELS)
    make = ["golden", "make", "--hardware", "int8_acc12_saturate", "--out"]
    assert main([*make, "small.npz", "--no-large"]) == 0
    assert "0 of them as seed and digest" in capsys.readouterr().out
    large = golden("int8_acc32_wrap")
    save(replace(large, cases=tuple(case for case in large.cases if case.is_large)), "seeds.npz")
    assert main(["golden", "check", "seeds.npz", "--no-large", "--kernel", "mine.py:right"]) == 2
    assert "--no-large: no case of seeds.npz fits" in capsys.readouterr().err
