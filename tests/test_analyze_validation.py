"""benchmarks/analyze_validation.py: it counts what it says, goes on where it stopped, and its page is its numbers'."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"


def load() -> Any:
    """Import the script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("analyze_validation", ROOT / "benchmarks" / "analyze_validation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


validation = load()
QUANTIZATION, BACKWARD = validation.QUANTIZATION, validation.BACKWARD


def made_up(source: str, squared: float, half: float, verdict: str = "undecided") -> dict[str, Any]:
    """Return a run of one row of a gradient with norm 1."""
    return {"rows": [[source, "1", "wgrad", squared, squared - half, squared + half, 1.0, verdict]]}


def test_false_alarms_are_counted_at_both_margins() -> None:
    runs = [made_up(BACKWARD, 0.0, 1e-3, "undecided")] * 6
    runs += [made_up(BACKWARD, 2e-5, 1e-5, "negligible")] * 3
    runs += [made_up(BACKWARD, 1e-3, 1e-5, "biased")]
    found = validation.false_alarms(runs)
    assert (found["stated margin"]["count"], found["margin 0"]["count"]) == (1, 4)
    assert found["stated margin"]["low"] < 0.1 < found["stated margin"]["high"]


def test_intervals_that_miss_are_counted_by_side() -> None:
    runs = [made_up(QUANTIZATION, value, 0.5) for value in (1.0, 1.0, 1.0, 2.0, 0.4)]
    truth = validation.true_sizes(runs)
    assert list(truth.values()) == [pytest.approx(1.08)]
    found = validation.coverage(runs, truth)
    assert (found["above"]["count"], found["below"]["count"]) == (1, 1)


def test_power_is_that_of_the_planted_source() -> None:
    runs = [made_up(QUANTIZATION, 1.0, 0.1, "biased"), made_up(BACKWARD, 1.0, 0.1, "biased")]
    found = validation.power(runs, QUANTIZATION)
    assert (found["found"]["count"], found["clean source called biased"]["count"]) == (1, 1)


def test_one_run_of_the_null_and_of_a_planted_bias() -> None:
    null = validation.run_once(("null", 20, 0))
    assert {row[-1] for row in null["rows"]} <= {"negligible", "undecided"}
    planted = validation.run_once(("nearest", 4, 0))
    assert any(row[0] == QUANTIZATION and row[-1] == "biased" for row in planted["rows"])


def test_windows_are_other_random_words_at_the_same_weights() -> None:
    first, again, other = (validation.run_once(("cover", 4, number))["rows"] for number in (0, 0, 1))
    assert first == again
    assert first[0][3] != other[0][3]
    assert first[0][6] == other[0][6]  # the reference gradient


def test_a_killed_measurement_goes_on(tmp_path: Path) -> None:
    """Runs that are there stay as they are; what is missing, or was cut short, is run."""
    keys = [(study.name, repeats, 0) for study in validation.STUDIES for repeats in study.repeats]
    missing = [("null", 20, 0), ("2 bits", 4, 0)]
    kept = {key: {"key": list(key), "rows": [], "data": "made up"} for key in keys if key not in missing}
    lines = [json.dumps(row) for row in kept.values()]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:20], encoding="utf-8")
    found = validation.measure(tmp_path, 1, 1e-9)
    assert list(found) == keys
    assert {key: found[key] for key in kept} == kept
    assert all(len(found[key]["rows"]) == 12 for key in missing)
    assert validation.measure(tmp_path, 1, 1e-9) == found


def test_the_published_page_is_that_of_the_published_numbers() -> None:
    result = json.loads((RESULTS / "analyze_validation.json").read_text(encoding="utf-8"))
    text = validation.page(result, "python benchmarks/analyze_validation.py")
    assert (RESULTS / "analyze_validation.md").read_text(encoding="utf-8") == text
    assert sum(row["runs"] for row in result["null"]) >= 300
    counts = re.findall(r"(\d+) of (\d+) \(", text)
    assert len(counts) >= 2 * len(result["null"]) + 2 * len(result["cover"])


def test_false_alarms_are_within_what_is_stated() -> None:
    """The rate that an analysis promises, 1 - confidence, lies not below the interval of what was counted."""
    result = json.loads((RESULTS / "analyze_validation.json").read_text(encoding="utf-8"))
    stated = 1 - validation.CONFIDENCE
    for row in result["null"]:
        assert row["stated margin"]["low"] <= stated, row
        assert row["margin 0"]["low"] <= stated, row
