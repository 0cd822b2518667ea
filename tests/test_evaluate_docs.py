"""docs/evaluate.md: its commands are run as they stand there, with fewer steps, seeds and trials."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fqtsim.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evaluate.md"
#: Option -> what stands in for its value, and its name where that changes too.
SMALLER = {
    "--epochs": ("--steps", "2"),
    "--seeds": ("--seeds", "1"),
    "--confirm-seeds": ("--confirm-seeds", "1"),
    "--trials": ("--trials", "1"),
    # No width and no training of two steps means anything: the search must only find an end.
    "--tolerance": ("--tolerance", "100"),
    "--set": ("--set", "hardware.datapath.levels.-1.register=int20"),
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Return the arguments of every command of the page, in order."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line]
    words = [shlex.split(line) for line in lines]
    assert {line[0] for line in words} == {"fqtsim"}
    return [line[1:] for line in words]


def smaller(arguments: list[str]) -> list[str]:
    """Return the arguments with the values of SMALLER, and a batch of 32 where something is trained."""
    found = list(arguments)
    for option, (name, value) in SMALLER.items():
        if option in found:
            place = found.index(option)
            found[place : place + 2] = [name, value]
    return [*found, "--batch", "32"] if "--steps" in found else found


def test_the_page_uses_every_command_of_the_way() -> None:
    assert [words[0] for words in commands()] == [
        "new", "validate", "train", "sweep", "report", "shrink", "eval",
    ]  # fmt: skip


def test_the_pages_commands_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks("python"):
        (tmp_path / block.split()[1]).write_text(block, encoding="utf-8")
    for arguments in commands():
        code = main(smaller(arguments))
        shown = capsys.readouterr()
        assert code == 0, f"{arguments}\n{shown.out}\n{shown.err}"
        if arguments[0] == "new":
            edited = next(block for block in blocks("yaml") if block.startswith("# my_mac.yaml"))
            assert (tmp_path / "my_mac.yaml").is_file()
            (tmp_path / "my_mac.yaml").write_text(edited, encoding="utf-8")
    for made in ("runs/first/checkpoint.safetensors", "sweeps/widths/results.sqlite", "sweeps/widths/report.html"):
        assert (tmp_path / made).stat().st_size > 0
    shrunk = sorted((tmp_path / "shrunk").glob("*.yaml"))
    assert shrunk
    assert main(["validate", *map(str, shrunk)]) == 0
