"""From rows to statistics, verdicts, a table and a page: made-up rows with answers worked out by hand."""

from __future__ import annotations

import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fqtsim.errors import InputError
from fqtsim.evaluate.page import figures, render, write_page
from fqtsim.evaluate.statistics import mean_accuracy, paired, right_of
from fqtsim.evaluate.summary import DesignSummary, pareto, short_names, summarize
from fqtsim.evaluate.table import show
from fqtsim.evaluate.verdict import percent, short, verdict
from fqtsim.hw.load import load_hardware
from fqtsim.train.intervals import paired_difference, wilson

IMAGES = 200
WIDE = "int8_acc32_wrap"
#: Two-sided 95 % of Student's t with 2 degrees of freedom, from a table.
T95_2 = 4.302653


def event(layer: str = "conv1", gemm: str = "fprop", **changes: Any) -> dict[str, Any]:
    line = {
        "layer": layer, "gemm": gemm, "m": 10, "n": 4, "k": 8, "outputs": 4000, "altered": 0, "out_of_range": 0,
        "transient": 0, "minimum": -100, "maximum": 100, "bits_needed": 8,
    }  # fmt: skip
    return line | changes


def row(
    recipe: str = "bhq5", seed: int = 0, right: int = 190, hardware: str = "int8_acc32_wrap", **changes: Any
) -> Any:
    """Return a finished run that gets the first `right` of 200 images right."""
    dump = load_hardware(hardware).model_dump(mode="json", by_alias=True, exclude_none=True)
    label = "fp32" if recipe == "fp32" else f"{recipe} on {hardware}"
    design = {"label": label, "recipe": recipe, "hardware": [hardware], "set_hardware": {}, "set_recipe": {}}
    packed = np.packbits(np.arange(IMAGES) < right).tobytes().hex()
    found = {
        "key": f"{recipe}-{hardware}-{seed}", "status": "done", "message": "", "failed_step": None, "design": design,
        "model": "cnn", "data": "digits", "seed": seed, "steps": 100, "batch": 64, "backend": "emulator",
        "tested": IMAGES, "hardware": {"*": dump}, "accuracy": right / IMAGES, "right": packed, "loss": 0.1,
        "losses": [[50, 1.0], [100, 0.1]], "digest": "ab" * 32, "seconds": 2.0,
        "events": [] if recipe == "fp32" else [event()], "gradients": [], "partial_sums": [],
    }  # fmt: skip
    return found | changes


def failed(seed: int = 0, hardware: str = WIDE) -> Any:
    empty = {"accuracy": None, "right": None, "loss": None, "losses": [], "events": [], "tested": 0, "digest": ""}
    status = {"status": "failed", "message": "the worker died 3 times", "seconds": 0.0}
    return row(seed=seed, hardware=hardware) | status | empty


def diverged(seed: int = 0, step: int = 40, hardware: str = WIDE, **changes: Any) -> Any:
    gone = {"accuracy": None, "right": None, "loss": None, "losses": [[20, 3.0], [40, 9.0]], "failed_step": step}
    status = {"status": "diverged", "message": f"step {step}: the loss: NaN or infinity"}
    return row(seed=seed, hardware=hardware) | status | gone | changes


def design(rows: list[Any], tolerance: float = 1.0) -> DesignSummary:
    """Return the summary of the only design that is no baseline."""
    (one,) = [one for one in summarize(rows, tolerance) if not one.baseline]
    return one


def test_packed_images_come_back() -> None:
    assert right_of(row(right=190)).sum() == 190
    assert len(right_of(row(right=3))) == IMAGES
    assert right_of(diverged()) is None


def test_the_interval_over_seeds_by_hand() -> None:
    """Differences of -2, 0 and +1 points: mean -1/3, standard deviation sqrt(7/3), over the square root of 3."""
    ours = [row(seed=seed, right=right) for seed, right in enumerate((186, 190, 192))]
    theirs = [row("fp32", seed) for seed in range(3)]
    found = paired(ours, theirs)
    assert found is not None
    assert (found.pairs, found.over, found.diverged) == (3, "seeds", 0)
    assert 100 * found.mean == pytest.approx(-1 / 3)
    assert 100 * (found.half or 0) == pytest.approx(T95_2 * np.sqrt(7 / 3) / np.sqrt(3), rel=1e-5)


def test_pairs_are_of_equal_seeds_only() -> None:
    """A gain of one point in every pair; the other seeds would hide it."""
    ours = [row(seed=0, right=102), row(seed=1, right=192), row(seed=7, right=0)]
    theirs = [row("fp32", 1, right=190), row("fp32", 0, right=100), row("fp32", 5, right=200)]
    found = paired(ours, theirs)
    assert found is not None
    assert found.pairs == 2
    # The pairs agree, so the seeds tell nothing of the spread and the images of one pair do.
    assert found.over == "images"
    assert found.half == pytest.approx(paired_difference(right_of(ours[0]), right_of(theirs[1]))[1])
    assert paired(ours, [row("fp32", 9)]) is None


def test_one_seed_has_the_interval_of_its_images() -> None:
    found = paired([row(right=180)], [row("fp32")])
    expected = paired_difference(np.arange(IMAGES) < 180, np.arange(IMAGES) < 190)
    assert found is not None
    assert (found.mean, found.half, found.over) == (*expected, "images")
    accuracy = mean_accuracy([row(right=180)])
    assert accuracy is not None
    assert (accuracy.low, accuracy.high) == wilson(180, IMAGES)


def test_a_run_that_diverged_counts_as_guessing() -> None:
    rows = [row("fp32", 0), row("fp32", 1), row(seed=0), diverged(1)]
    one = design(rows)
    assert one.accuracy is not None
    assert one.accuracy.mean == pytest.approx((0.95 + 0.1) / 2)
    assert one.against_fp32 is not None
    assert one.against_fp32.diverged == 1
    assert verdict(one).kind == "diverges"
    assert verdict(one).words == "diverges (NaN or infinity at step 40, 1 of 2 seeds)"
    two_classes = design([row("fp32", classes=2), diverged(classes=2)])
    assert two_classes.accuracy is not None
    assert two_classes.accuracy.mean == 0.5


def test_a_baseline_that_diverged_is_nothing_to_compare_with() -> None:
    bad = diverged()
    bad["design"]["recipe"] = bad["design"]["label"] = "fp32"
    one = design([bad, row("qat", right=188), row()])
    assert one.against_fp32 is None
    assert one.against is not None
    assert one.against[0] == "qat"
    assert "against qat" in str(verdict(one))


def with_differences(points: list[float], tolerance: float = 1.0) -> DesignSummary:
    """Return a design that differs from fp32 by these points, seed by seed."""
    rows = [row("fp32", seed) for seed in range(len(points))]
    return design([*rows, *(row(seed=n, right=round(190 + 2 * p)) for n, p in enumerate(points))], tolerance)


@pytest.mark.parametrize(
    ("points", "tolerance", "words"),
    [
        ([0, 0.5, 0], 1.0, "trains"),
        ([3, 3.5, 3], 1.0, "trains"),  # better than the tolerance asks for
        ([-5, -5.5, -5], 1.0, "loses more than 1 point"),
        ([-5, -5.5, -5], 0.5, "loses more than 0.5 points"),
        ([-5, -5.5, -5], 9.0, "trains"),
        ([-3, 0, 2], 1.0, "undecided (between -6.6 and +5.9 points; more seeds)"),
        ([-50, -50.5, -50], 1.0, "does not train"),
    ],
)
def test_verdicts_go_by_the_whole_interval(points: list[float], tolerance: float, words: str) -> None:
    assert verdict(with_differences(points, tolerance)).words == words


def test_a_verdict_line_says_what_it_rests_on() -> None:
    events = [
        event(altered=30, outputs=1_000_000),
        event("conv1", "wgrad", altered=11, transient=5, outputs=2_100_000, bits_needed=22),
    ]
    hardware = "int8_acc20_tree4"
    rows = [row("fp32", 0), row("fp32", 1), row("fp32", 2)]
    rows += [row(seed=n, right=r, hardware=hardware, events=events) for n, r in enumerate((190, 190, 189))]
    assert str(verdict(design(rows))) == (
        "bhq5 on int8_acc20_tree4: trains, -0.2 +- 0.7 points against fp32; 123 of 9.3 M outputs altered; "
        "wgrad of conv1 needs 22 bits; area about 0.75 x"
    )


def test_failed_runs_are_no_result_and_are_counted() -> None:
    one = design([row("fp32", 0), row("fp32", 1), row(seed=0), failed(1)])
    assert one.accuracy is not None
    assert one.accuracy.mean == 0.95
    assert "1 of 2 runs failed" in verdict(one).facts
    none = design([row("fp32"), failed()])
    assert (none.accuracy, none.loss, none.against) == (None, None, None)
    assert verdict(none).kind == "failed"
    assert verdict(none).words == "no result (the worker died 3 times)"


def test_without_a_baseline_nothing_is_decided_but_what_guesses() -> None:
    assert verdict(design([row()])).words == "undecided (no fp32 or qat run with its seeds; add one)"
    assert verdict(design([row(right=22)])).words == "does not train"


def test_counts_are_added_over_seeds_and_gradients_averaged() -> None:
    first = row(seed=0, gradients=[{"layer": "fc", "bias": 0.2, "variance": 1.0}])
    second = row(seed=1, gradients=[{"layer": "fc", "bias": 0.4, "variance": 3.0}], events=[event(bits_needed=11)])
    one = design([first, second])
    (gemm,) = one.gemms
    assert (gemm.outputs, gemm.bits_needed, gemm.accumulator) == (8000, 11, "int32 wrap")
    # 8000 outputs of 10 x 4 are 200 calls in 200 steps: one each.
    assert (gemm.operations, gemm.operand_bits, gemm.result_bits) == (320, (80 + 32) * 8, 40 * 32)
    (line,) = one.gradients
    assert (line.layer, line.bias, line.variance) == ("fc", pytest.approx(0.3), 2.0)


def test_layers_of_different_hardware() -> None:
    wide, narrow = row(), row(hardware="int8_acc16_saturate")
    mixed = row(
        hardware="int8_acc16_saturate", events=[event("conv1"), event("fc")],
        key="mixed",
    )  # fmt: skip
    mixed["hardware"] = {"conv*": wide["hardware"]["*"], "*": narrow["hardware"]["*"]}
    one = design([mixed])
    assert [gemm.accumulator for gemm in one.gemms] == ["int32 wrap", "int16 saturate"]
    assert one.area.value == pytest.approx(1.0)  # one array for all layers: the largest
    unmatched = row(events=[event("fc")])
    unmatched["hardware"] = {"conv*": wide["hardware"]["*"]}
    with pytest.raises(InputError, match=r"layer fc: no pattern of its run matches"):
        summarize([unmatched], 1.0)


def test_a_design_is_compared_with_the_baseline_that_was_set_alike() -> None:
    slow, fast = row("fp32", right=100), row("fp32", right=190, key="fast")
    fast["design"]["set_recipe"] = {"optimizer.lr": "0.05"}
    ours = row(right=190)
    ours["design"]["set_recipe"] = {"optimizer.lr": "0.05"}
    one = design([slow, fast, ours])
    assert one.against_fp32 is not None
    assert one.against_fp32.mean == pytest.approx(0)
    longer = row(steps=200)
    assert design([slow, longer]).against_fp32 is None


def test_groups_order_and_labels() -> None:
    rows = [row(seed=1), row("qat"), row(seed=0), row("fp32"), row(seed=0, steps=200)]
    found = summarize(rows, 1.0)
    assert [one.recipe for one in found] == ["fp32", "qat", "bhq5", "bhq5"]
    assert [one.number for one in found] == [1, 2, 3, 4]
    assert [line["seed"] for line in found[2].rows] == [0, 1]
    assert found[3].label == "bhq5 on int8_acc32_wrap (cnn, digits, 200 steps)"
    assert summarize([], 1.0) == []
    with pytest.raises(InputError, match=r"seed 0: two runs \(bhq5-int8_ac, again\)"):
        summarize([row(), row(key="again")], 1.0)
    with pytest.raises(InputError, match="tolerance = -1"):
        summarize([], -1)


def test_short_names_leave_out_what_all_share() -> None:
    found = summarize([row("fp32"), row(hardware="int8_acc16_saturate"), row(hardware="int8_acc24_saturate")], 1.0)
    assert short_names(found) == {1: "fp32", 2: "int8_acc16_saturate", 3: "int8_acc24_saturate"}
    levels = []
    for terms in (1, 4):
        changed = row(key=str(terms))
        changed["design"]["set_hardware"] = {"datapath.levels": str(terms)}
        changed["design"]["label"] += f" levels=[{{terms: {terms}, register: exact}}] bits=8"
        levels.append(changed)
    assert list(short_names(summarize(levels, 1.0)).values()) == [
        "levels=[{terms: 1, register: exact}]", "levels=[{terms: 4, register: exact}]",
    ]  # fmt: skip
    assert short_names(summarize([row()], 1.0)) == {1: "bhq5 on int8_acc32_wrap"}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = pareto(points)
    for index, (cost, gain) in enumerate(points):
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert (index in front) == (not beaten)
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_numbers_in_words() -> None:
    assert [short(n) for n in (0, 999, 12_345, 3.1e9, 2e12)] == ["0", "999", "12.3 k", "3.1 G", "2.0 T"]
    assert [percent(s) for s in (0, 1e-6, 0.0013, 0.0312, 0.412, 1)] == [
        "0 %", "< 0.01 %", "0.13 %", "3.1 %", "41 %", "100 %",
    ]  # fmt: skip


def many_rows() -> list[Any]:
    """Return baselines and designs that train, diverge, fail and hardly work, with hostile names among them."""
    hostile = row(hardware="int8_acc16_saturate", right=60)
    hostile["design"]["label"] = "<script>alert(1)</script> & $\\frac$ [bold]"
    hostile["events"] = [event("<b>conv</b>", altered=1200, transient=3)]
    sums = {"layer": "fc", "gemm": "wgrad", "rails": [-8, 7], "edges": [-32, -16, -8, -4, 4, 8, 16],
            "counts": [1, 2, 3, 10, 3, 1]}  # fmt: skip
    trains = [
        row(seed=n, right=190 + n, partial_sums=[sums], gradients=[{"layer": "fc", "bias": -0.01, "variance": 0.5}])
        for n in range(3)
    ]
    gone = [diverged(n, hardware="int8_acc12_saturate") for n in range(2)]
    dead = [failed(0, hardware="int8_acc24_saturate")]
    return [*(row("fp32", n, 191) for n in range(3)), row("qat"), *trains, *gone, *dead, hostile]


def shown(rows: list[Any], width: int, detail: bool = False) -> str:
    stream = io.StringIO()
    show(Console(file=stream, width=width), summarize(rows, 1.0), detail)
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 250])
def test_the_table_fits_the_terminal_and_loses_nothing(width: int) -> None:
    text = shown(many_rows(), width)
    table, verdicts = text.split("Verdict\n")
    assert max(map(len, table.splitlines())) <= width
    for word in ("accuracy", "fp32", "QAT", "altered", "transient", "bits", "variance", "area", "time", "[bold]"):
        assert word in table, word
    assert len(verdicts.strip().splitlines()) == len(summarize(many_rows(), 1.0))
    assert "a run that diverged counts as guessing" in text
    assert "guessing" not in shown([row("fp32"), row()], width)


def test_the_detail_names_every_gemm() -> None:
    text = shown([row("fp32"), row(gradients=[{"layer": "fc", "bias": 0.25, "variance": 2.0}])], 160, detail=True)
    assert re.search(r"conv1 +fprop +10 x 4 x 8 +int32 wrap", text)
    assert re.search(r"fc +0.25 +2", text)


class Tags(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "wbr", "br", "path", "use", "i"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def page(rows: list[Any], command: str = "fqtsim sweep --out <runs>") -> str:
    return render(summarize(rows, 1.0), rows, "A <title> & more", command)


def test_the_page_is_one_well_formed_file_that_asks_for_nothing() -> None:
    text = page(many_rows())
    found = Tags(text)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids)), "two figures share an id"
    for tag, attributes in found.tags:
        assert tag not in ("script", "link", "img", "iframe", "object"), tag
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#"), attributes
        assert not any(name.startswith("on") for name in attributes)
    assert "url(http" not in text
    assert "@import" not in text
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    assert references <= set(found.ids)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in found.tags


def test_names_are_escaped_everywhere() -> None:
    text = page(many_rows())
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<b>conv</b>" not in text
    assert "A &lt;title&gt; &amp; more" in text
    assert "fqtsim sweep --out &lt;runs&gt;" in text
    assert "$\\frac$" in text  # no formula: the name as it is, in figures too


def test_the_page_has_every_part() -> None:
    text = page(many_rows())
    for heading in (
        "Verdicts", "Designs", "Does it train?", "Accuracy against area", "Altered outputs by layer and GEMM",
        "Partial sums against the rails", "Loss", "Cost", "Every layer", "Digests",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in text, heading
    for piece in (
        "ab" * 32,
        "yosys 0.70",
        "OSU standard cells",
        "undated",
        "the worker died 3 times",
        "0.5 ",
        "3 done",
    ):
        assert piece in text, piece
    assert "prefers-color-scheme: dark" in text
    assert "#0101" not in text, "a stand-in colour was left in a figure"
    assert text == page(many_rows()), "the same rows give the same page"


@pytest.mark.parametrize(
    "rows",
    [[], [row()], [row("fp32")], [failed()], [diverged()], [row(events=[])], [row("fp32"), row(loss=None, losses=[])]],
    ids=["nothing", "one design", "a baseline", "failed", "diverged", "no events", "no losses"],
)
def test_a_page_and_a_table_of_little(rows: list[Any]) -> None:
    assert Tags(page(rows)).open == []
    assert "Verdict" in shown(rows, 100)


def test_sums_beyond_the_rails_by_hand() -> None:
    line = {"rails": [-8, 7], "edges": [-32, -16, -8, -4, 4, 8, 16], "counts": [1, 2, 3, 10, 3, 1]}
    # Beyond: [-32, -16) and [-16, -8) below, [8, 16) above: 1 + 2 + 1 of 20.
    assert figures.outside(line) == pytest.approx(0.2)
    assert figures.outside(line | {"rails": None}) == 0
    (panel,) = figures.partial_sums(summarize(many_rows(), 1.0), {n: str(n) for n in range(1, 9)})
    assert panel.note == "wgrad of fc: 20 % of the sums outside"


@pytest.mark.parametrize(
    ("altered", "expected"),
    [(0, 0), (1, 1), (10, 1), (11, 2), (100, 2), (1000, 3), (10_000, 4), (50_001, 6), (10**5, 6)],
)
def test_classes_of_altered_outputs(altered: int, expected: int) -> None:
    assert figures.heat_class(altered, 100_000) == expected


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many_rows()
    path = tmp_path / "new" / "report.html"
    write_page(summarize(rows, 1.0), rows, path, "title", "command")
    before = path.read_text(encoding="utf-8")
    assert before.startswith("<!doctype html>")

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match=r"report\.html: No space left on device; choose another folder or make room"):
        write_page(summarize(rows, 1.0), rows, path, "other", "command")
    assert path.read_text(encoding="utf-8") == before
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="choose another folder"):
        write_page([], [], blocked / "report.html", "title", "command")


def test_rows_survive_json() -> None:
    rows = many_rows()
    assert summarize(json.loads(json.dumps(rows)), 1.0) == summarize(rows, 1.0)
