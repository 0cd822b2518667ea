"""README, docs and examples are executed: what they show is what happens."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fqtsim.words import Overflow, Rounding, ZeroPoint

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_sessions_print_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in blocks(page, "yaml"):
        name = re.match(r"# (\w+\.yaml)\b", text)
        if name:
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
    session = "".join(block for block in blocks(page, "python") if block.startswith(">>>"))
    test = doctest.DocTestParser().get_doctest(session, {}, page.name, str(page), 0)
    failures: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append)
    assert not failures, "".join(failures)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_whole_hardware_files_on_the_page_are_valid(page: Path) -> None:
    from fqtsim.hw.load import parse_hardware

    for text in blocks(page, "yaml"):
        if "schema: 1" in text and "datapath:" in text:
            parse_hardware(text, page.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_run_and_stay_short(example: Path, tmp_path: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < 40
    run = subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip(), "prints nothing"


def test_there_is_an_example_for_each_kind_of_user() -> None:
    assert {path.name for path in EXAMPLES} >= {"architect.py", "rounding.py", "kernel.py"}


def test_every_word_of_the_vocabulary_is_documented() -> None:
    text = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
    text += (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    missing = [word for words in (Rounding, Overflow, ZeroPoint) for word in words if f"`{word}`" not in text]
    assert not missing


def test_every_command_in_the_readme_is_one_that_exists() -> None:
    import click

    from fqtsim.cli import cli

    shell = "".join(blocks(ROOT / "README.md", "sh"))
    used = set(re.findall(r"^fqtsim (\w+)", shell, re.MULTILINE))
    known = set(cli.list_commands(click.Context(cli)))
    assert used
    assert used <= known


def test_cited_rules_exist() -> None:
    text = (ROOT / "docs" / "semantics.md").read_text(encoding="utf-8")
    rules = set(re.findall(r"\*\*(S[45]\.\d+)\b", text)) | {"S4", "S5", "S3"}
    for source in (ROOT / "fqtsim").rglob("*.py"):
        for rule in re.findall(r"\bS[345](?:\.\d+)?\b", source.read_text(encoding="utf-8")):
            assert rule in rules, f"{source}: {rule}"
