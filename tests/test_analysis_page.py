"""The page of an analysis: its numbers, what is missing, and that it needs nothing else."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_analysis_cli import CLEAN, FOUND, OPEN, WRONG

from fqtsim.analysis.page import heat, render, write_page
from fqtsim.analysis.result import Analysis, Bias, Bound, Contribution, CurvePoint, Histogram, Variance
from fqtsim.errors import InputError

FULL = replace(
    FOUND,
    contributions=(
        Contribution("fc", "grad_for_wgrad", "fc", 3.0, 2.0, 4.0),
        Contribution("head", "grad_for_dgrad", "fc", -1.0, -2.0, 0.5),
    ),
    bounds=(Bound("head", "grad_for_dgrad", 2.0, 3.0),),
    histograms=(
        Histogram("head", "grad_for_dgrad", "codes", (-0.5, 0.5, 1.5), (3, 4)),
        Histogram("head", "grad_for_dgrad", "steps", (0.25, 0.5, 1.0), (5, 0)),
    ),
    curve=(
        CurvePoint("ptq", "aligned", 5, 0.1, 0.05, 0.2),
        CurvePoint("ptq", "aligned", 4, 0.4, 0.2, 0.8),
        CurvePoint("psq", "aligned", 4, 0.0, 0.0, 0.0, stopped="no step"),
    ),
    events=({"layer": "fc", "gemm": "wgrad", "altered": 7, "levels": [1, 2]},),
)


def cells(page: str) -> list[tuple[str, str, str]]:
    """Return (class, tooltip, text) of every cell of a heat map."""
    return re.findall(r'<td class="(heat-\d)" title="([^"]*)">([^<]*)</td>', page)


def test_every_number_stands_where_it_belongs() -> None:
    page = render(FULL, "fqtsim analyze --out a")
    found = {text: (kind, hint) for kind, hint, text in cells(page)}
    assert found["50 % !"][0] == f"heat-{heat(0.5)}" == "heat-5"
    assert "backward hardware, wgrad of fc: biased; 50 % of the norm (40 % to 60 %)" in found["50 % !"][1]
    assert found["2 % ?"][0] == "heat-3"
    assert found["0.1 %"][0] == "heat-0"
    assert "of the standard deviation: 0.32 %" in found["0.1 %"][1]
    assert found["75"][1] == "grad_for_wgrad of fc adds 3 (2 to 4) to the variance of fc"
    assert found["-25"][1] == "grad_for_dgrad of head adds -1 (-2 to 0.5) to the variance of fc"
    assert page.count("<svg") == 5
    assert "ptq, aligned" in page
    assert "psq, aligned" not in page  # it has no figure
    assert "<td>7</td>" in page
    assert "levels" not in page
    assert "fqtsim analyze --out a" in page


def test_it_needs_nothing_else_and_escapes_what_it_is_given() -> None:
    named = replace(FULL, biases=(replace(WRONG, layer="<b>&"),), settings=FULL.settings | {"model": "<script>x"})
    page = render(named, "fqtsim 'a<b'")
    assert "<script" not in page
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    links = set(re.findall(r'(?:href|src)="([^"#][^"]*)"|https?://[^"\s<]+', page))
    assert links <= {""}, links
    assert not set(re.findall(r'(?<!xmlns=")(?<!xmlns:xlink=")https?://[^"\s<]+', page))


@pytest.mark.parametrize(
    "analysis",
    [
        Analysis(FOUND.settings, (), ()),
        replace(FOUND, biases=(replace(CLEAN, reference=0.0, squared=0.0, low=0.0, high=0.0, variance=0.0),)),
        replace(FOUND, variances=(Variance("fc", 0.0, 0.0, 0.0, 0.0),), minibatch=0.0),
        replace(FULL, bounds=(Bound("fc", "grad_for_dgrad", 0.0, 0.0),), histograms=(), curve=(), events=()),
        replace(FULL, contributions=tuple(replace(one, variance=0.0) for one in FULL.contributions)),
        replace(FULL, histograms=(Histogram("fc", "grad_for_dgrad", "steps", (1.0, 2.0), (0,)),) * 99),
    ],
    ids=["empty", "no gradient", "no variance", "no bounds", "no contribution", "99 histograms"],
)
def test_what_is_missing_is_left_out(analysis: Analysis) -> None:
    page = render(analysis)
    assert "<h2>Verdict</h2>" in page
    assert ("75 more histograms" in page) == (len(analysis.histograms) == 99)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).lower().split()


def test_sixty_layers_have_a_line_each() -> None:
    rows: list[Bias] = []
    for number in range(60):
        rows += [replace(one, layer=f"stage{number}.conv", gemm=gemm) for one in (CLEAN, WRONG, OPEN)
                 for gemm in ("wgrad", "dgrad")]  # fmt: skip
    page = render(replace(FOUND, biases=tuple(rows)))
    assert page.count('<th scope="row" class="text sticky">') == 60
    assert len(cells(page)) == 60 * 6
    assert all(f">stage{number}.conv wgrad</text>" in page for number in range(60))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="choose another folder or make room"):
        write_page(FULL, tmp_path / "file" / "analysis.html")
    write_page(FULL, tmp_path / "page" / "analysis.html")
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["analysis.html"]
