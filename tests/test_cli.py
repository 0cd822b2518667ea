"""The command line: what it prints, where errors go, exit codes 0, 1, 2, and never a traceback for bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fqtsim.cli import _COMMANDS, main, npz
from fqtsim.crosscheck import Report
from fqtsim.hw.load import hardware_names, hwconfigs_dir
from fqtsim.recipe.load import recipe_names

RUN = ["--model", "mlp", "--recipe", "ptq8", "--hardware", "int8_acc20_tree4", "--steps", "2", "--batch", "32"]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a command line; return exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_every_command_has_help_and_is_listed(call) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("--help")
    assert code == 0
    for name in _COMMANDS:
        assert re.search(rf"^  {name} ", out, re.MULTILINE)
        code, about, _ = call(name, "--help")
        assert code == 0
        assert about.startswith(f"Usage: fqtsim {name}")


def test_help_imports_nothing_heavy() -> None:
    """The promise is half a second; what breaks it is an import, which a busy machine cannot blur."""
    program = (
        "import sys; from fqtsim.cli import main; main(['--help']); "
        "print([m for m in ('torch', 'numba', 'numpy', 'rich', 'pydantic', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_python_m_fqtsim_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fqtsim", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fqtsim, version ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing option '--out'"),
        (["hardware"], "Usage: fqtsim hardware"),
        (["hardware", "show", "int8_acc24_saturat"], "did you mean int8_acc24_saturate?"),
        (["recipe", "show", "bhq55"], "recipe = bhq55"),
        (["validate"], "Missing argument 'FILE...'"),
        (["validate", "/no/such.yaml"], "/no/such.yaml: cannot be read (No such file or directory)"),
        (["explain", "/no/such.npz", "--hardware", "int8_acc32_wrap"], "/no/such.npz: No such file or directory"),
        (["explain", ".", "--hardware", "int8_acc32_wrap"], ".: Is a directory"),
        (["train", "--out", "x", "--hardware", "int8_acc32_wrap", "--steps", "1"], "--recipe: is required"),
        (["train", "--out", "x", "--recipe", "ptq8", "--steps", "1"], "--hardware: is required"),
        (
            ["train", "--out", "x", *RUN, "--set", "hardware=3"],
            "--set hardware=3: must be hardware.KEY=VALUE or recipe",
        ),
        (["train", "--out", "x", *RUN, "--set", "recipe.name=a", "--set", "recipe.name=b"], "recipe.name is set twice"),
        (["train", "--out", "x", *RUN, "--set", "recipe.optimizer.lr=fast"], "--set recipe.optimizer.lr=fast"),
        (["train", "--out", "x", *RUN, "--data", "mnist"], "data = mnist: must be one of"),
        (["train", "--out", "x", *RUN, "--backend", "gpu"], "backend = 'gpu': must be one of"),
        (["train", "--out", "x", *RUN, "--seed", "-1"], "Invalid value for '--seed'"),
        (["train", "--out", "x", *RUN, "--resume"], "x/run.yaml: no such file: --resume needs the folder"),
        (["crosscheck", *RUN, "--backends", "stepwise"], "one alone has nothing to agree with"),
        (["data", "fetch", "cifar10", "--out", "x"], "'cifar10' is not 'fashion-mnist'"),
        (["data", "fetch", "fashion-mnist", "--out", "x", "--from", "y"], "y: no train-images-idx3-ubyte"),
        (["new", "int8/acc"], "int8/acc"),
    ],
)
def test_bad_input_exits_2_with_one_message_on_stderr(  # type: ignore[no-untyped-def]
    call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*arguments)
    assert code == 2
    assert message in err
    assert not out
    assert not (tmp_path / "x").is_dir() or not list((tmp_path / "x").iterdir())


def test_hardware_list_and_show(call) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("hardware", "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == hardware_names()
    code, out, _ = call("hardware", "show", "int8_acc32_wrap")
    assert code == 0
    assert out == (hwconfigs_dir() / "int8_acc32_wrap.yaml").read_text()


def test_recipe_list_and_show(call) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("recipe", "list")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert list(lines) == recipe_names()
    assert "grad_for_dgrad bhq5" in lines["bhq5"]
    assert "activation float" in lines["fp32"]
    code, out, _ = call("recipe", "show", "bhq5")
    assert code == 0
    assert "name: bhq5" in out


def test_new_writes_a_file_that_validates(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert call("new", "mine")[0] == 0
    code, out, _ = call("validate", "mine.yaml")
    assert code == 0
    assert out.startswith("mine.yaml: ok, hardware mine:")
    code, _, err = call("new", "mine")
    assert code == 2
    assert "mine.yaml: already exists" in err


def test_validate_checks_every_file_and_knows_recipes(call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    good = (hwconfigs_dir() / "int8_acc24_saturate.yaml").read_text()
    Path("good.yaml").write_text(good)
    Path("bad.yaml").write_text(good.replace("overflow: saturate}", "overflow: clamp}", 1))
    Path("recipe.yaml").write_text(
        Path(str(__import__("fqtsim.recipe", fromlist=["x"]).__path__[0]), "files/bhq5.yaml").read_text()
    )
    code, out, err = call("validate", "bad.yaml", "good.yaml", "recipe.yaml")
    assert code == 2
    assert re.match(r"bad\.yaml:\d+: datapath\.levels\.1\.overflow = clamp: ", err)
    assert "good.yaml: ok, hardware int8_acc24_saturate" in out
    assert "recipe.yaml: ok, recipe bhq5" in out
    assert call("validate", "good.yaml", "recipe.yaml")[0] == 0


# --- explain


@pytest.fixture
def operands(tmp_path: Path) -> Path:
    path = tmp_path / "ab.npz"
    a = np.full((2, 40), 255, np.uint8)
    b = np.full((40, 3), 127, np.int8)
    np.savez(path, a=a, b=b)
    return path


def test_explain_prints_the_additions_around_the_first_event(call, operands: Path) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = call("explain", str(operands), "--hardware", "int8_acc20_tree4", "--row", "1", "--col", "2")
    assert code == 0
    assert "output [1, 2]" in out
    assert "255 * 127" in out
    assert "saturate" in out
    assert "code 524287, unlimited registers 1295400: altered (out of range)" in out
    more = call("explain", str(operands), "--hardware", "int8_acc20_tree4", "--all")[1]
    assert len(more.splitlines()) > len(out.splitlines())
    code, out, _ = call(
        "explain",
        str(operands),
        "--hardware",
        "int8_acc20_tree4",
        "--set",
        "hardware.datapath.levels.-1.register=int22",
    )
    assert code == 0
    assert "code 1295400: unaltered" in out


def test_explain_takes_start_values_and_gemms(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "abc.npz"
    np.savez(path, a=np.array([[2, 3]], np.uint8), b=np.array([[5], [-7]], np.int8), c=np.array([[100]]))
    code, out, _ = call("explain", str(path), "--hardware", "int8_acc24_saturate", "--gemm", "wgrad")
    assert code == 0
    assert "code 89: unaltered" in out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.ones((2, 2), np.int8)}, "arrays a: must be a, b and optionally c"),
        ({"a": np.ones((2, 2), np.int8), "b": np.ones((2, 2), np.int8), "d": np.ones(1)}, "arrays a, b, d: must be"),
        ({"a": np.ones((2, 2)), "b": np.ones((2, 2), np.int8)}, "float64"),
        ({"a": np.ones((2, 2), np.int8), "b": np.ones((3, 2), np.int8)}, "(2, 2)"),
        ({"a": np.full((2, 2), 300), "b": np.ones((2, 2), np.int8)}, "300"),
        ({"a": np.array([[object()]]), "b": np.ones((1, 1), np.int8)}, "not a readable .npz of numbers"),
    ],
)
def test_explain_refuses_other_arrays(call, tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    code, _, err = call("explain", str(path), "--hardware", "int8_acc32_wrap")
    assert code == 2
    assert message in err


def test_explain_refuses_damaged_foreign_and_huge_files(  # type: ignore[no-untyped-def]
    call, operands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(operands.read_bytes()[:-60])
    text = tmp_path / "text.npz"
    text.write_text("a: 1")
    for path in (damaged, text):
        code, _, err = call("explain", str(path), "--hardware", "int8_acc32_wrap")
        assert code == 2
        assert "not a readable .npz of numbers" in err
    for place in range(0, operands.stat().st_size, 7):  # a header may claim any shape, a stream any length
        content = bytearray(operands.read_bytes())
        content[place] ^= 0x10
        damaged.write_bytes(content)
        code, _, err = call("explain", str(damaged), "--hardware", "int8_acc32_wrap")
        assert code in (0, 2)
        assert "Traceback" not in err
    monkeypatch.setattr(npz, "MAX_ARRAY_BYTES", 100)
    code, _, err = call("explain", str(operands), "--hardware", "int8_acc32_wrap")
    assert code == 2
    assert "bytes: must be at most 1 GiB" in err


def test_explain_checks_the_place(call, operands: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, err = call("explain", str(operands), "--hardware", "int8_acc32_wrap", "--row", "2")
    assert code == 2
    assert "row = 2: must be 0..1" in err


# --- train and crosscheck


def test_train_writes_its_folder_and_resumes_with_its_own_options(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    code, said, _ = call("train", *RUN, "--out", str(out), "--set", "recipe.optimizer.lr=0.05")
    assert code == 0
    assert {path.name for path in out.iterdir()} == {
        "run.yaml", "metrics.jsonl", "checkpoint.safetensors", "events.json",
    }  # fmt: skip
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"digest     {last['digest']}" in said
    assert re.search(r"accuracy   \d+\.\d % \[\d+\.\d, \d+\.\d\] of 360 test images", said)
    assert re.search(r"hardware   altered \d+ of \d+ outputs", said)
    code, again, _ = call("train", "--out", str(out), "--resume")
    assert code == 0
    assert last["digest"] in again
    assert call("train", *RUN, "--out", str(out), "--resume", "--set", "recipe.optimizer.lr=0.05")[0] == 0
    code, _, err = call("train", "--out", str(out), "--resume", "--seed", "5")
    assert code == 2
    assert re.search(r"run\.yaml:\d+: config\.seed = 0: a resumed run must not change it, and now it is 5", err)
    code, _, err = call("train", *RUN, "--out", str(out))
    assert code == 2
    assert "already exists; continue it with --resume" in err


def test_crosscheck_passes_with_0_and_fails_with_1(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    arguments = ["crosscheck", *RUN, "--hardware", "*=int8_acc32_wrap", "--backends", "stepwise, native"]
    arguments[arguments.index("int8_acc20_tree4")] = "5=int8_acc32_wrap"
    code, out, _ = call(*arguments)
    assert code == 0
    assert "compared   2 steps, 16 GEMMs" in out
    monkeypatch.setattr(Report, "passed", property(lambda _: False))
    assert call(*arguments)[0] == 1


def test_ctrl_c_before_the_first_step_is_130(call, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fqtsim.hw.load.hardware_names", interrupt)
    assert call("hardware", "list")[0] == 130


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m fqtsim hardware show template.yaml | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=True, cwd=hwconfigs_dir(), env=os.environ
    )
    assert done.stdout.split()[-1] == "141"
    assert not done.stderr
