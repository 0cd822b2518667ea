"""docs/crosscheck.md: its commands are run as they stand there and print what the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fqtsim.cli import main

PAGE = Path(__file__).resolve().parents[1] / "docs" / "crosscheck.md"


def sessions() -> list[tuple[str, str]]:
    """Return each command of a `console` block with the output below it."""
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found = [part for block in blocks for part in re.split(r"^\$ ", block, flags=re.MULTILINE) if part]
    return [(part.split("\n", 1)[0], part.split("\n", 1)[1]) for part in found]


def test_the_page_shows_three_commands() -> None:
    assert [shlex.split(command)[1] for command, _ in sessions()] == ["train", "crosscheck", "verify-run"]


def test_the_commands_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command, shown in sessions():
        assert main(shlex.split(command)[1:]) == 0
        assert capsys.readouterr().out == shown, command
