"""docs/framework.md: every function that it names exists, and the numbers that it quotes are theirs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from functools import reduce
from pathlib import Path

import pytest

from fqtsim.analysis import laws

PAGE = Path(__file__).resolve().parents[1] / "docs" / "framework.md"
TEXT = PAGE.read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`((?:analysis|quantizers|kernels|train|backends)\.[\w.]+)`", TEXT)))


def named(name: str) -> object:
    """Return what a dotted name below fqtsim stands for."""
    module, attributes = f"fqtsim.{name}", []
    while True:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
        else:
            return reduce(getattr, attributes, found)


@pytest.mark.parametrize("name", NAMES)
def test_named_functions_exist_and_say_what_they_do(name: str) -> None:
    assert (getattr(named(name), "__doc__", None) or "").strip()


def test_a_name_that_does_not_exist_is_noticed() -> None:
    for wrong in ("analysis.laws.no_such_law", "analysis.no_such_module.law"):
        with pytest.raises(AttributeError):
            named(wrong)


def test_every_law_is_on_the_page() -> None:
    own = {name for name, value in vars(laws).items() if getattr(value, "__module__", "") == laws.__name__}
    public = {name for name in own if not name.startswith("_")}
    assert {f"analysis.laws.{name}" for name in public - {"bins"}} <= set(NAMES)
    assert len(NAMES) > 30


def test_counts_quoted_from_the_validation() -> None:
    found = json.loads((PAGE.parent / "results" / "analyze_validation.json").read_text(encoding="utf-8"))
    nulls = [row["stated margin"] for row in found["null"]]
    runs, alarms = (sum(row[key] for row in nulls) for key in ("of", "count"))
    assert f"of {runs}\nanalyses without a bias {alarms} called one" in TEXT
    row = next(row for row in found["power"] if row["study"] == "2 bits" and row["repeats"] == 16)
    size, share = row["relative bias, 10 %, median, 90 %"][1], row["found"]["share"]
    assert f"2 random bits, {100 * size:.0f} % of the gradient, was found by {100 * share:.0f} % of analyses" in TEXT


def test_the_page_of_laws_is_that_of_its_numbers() -> None:
    root = PAGE.parents[1]
    spec = importlib.util.spec_from_file_location("quantizer_laws", root / "benchmarks" / "quantizer_laws.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    results = root / "docs" / "results"
    found = json.loads((results / "quantizer_laws.json").read_text(encoding="utf-8"))
    assert (results / "quantizer_laws.md").read_text(encoding="utf-8") == script.page(found)
    assert all(row["measured"] == pytest.approx(row["law"], rel=0.02) for row in found["per_bit"])
    bits = [one for row in found["aligned_law"] for one in row.values() if isinstance(one, dict)]
    assert len(bits) == 40
    assert all(one["measured / law"] == pytest.approx(1, abs=0.05) for one in bits)
    # The first row of the table again, so that the numbers are those of today's quantizers.
    assert script.per_bit()[:2] == found["per_bit"][:2]


def test_numbers_quoted_in_the_text() -> None:
    assert [round(laws.expected_widening(bits), 3) for bits in (4, 5, 8)] == [1.073, 1.034, 1.004]
    assert "1.073 at 4 bits, 1.034\nat 5, 1.004 at 8" in TEXT
    assert round(laws.authors_widening(4), 2) == 1.27
    assert f"{laws.bias_to_noise(16, 131072):.1g}, {laws.bias_to_noise(8, 131072):.2g}" == "0.007, 1.7"
    assert "K = 131072 terms and 16 bits\ngive 0.007, 8 bits 1.7" in TEXT
    # PTQ's small rows: 6 sqrt(2/pi) sigma / step each, beside 1 of the large one.
    assert laws.near_zero_gaussian(1e-4) / 1e-4 == pytest.approx(1 / 0.2, rel=0.06)
