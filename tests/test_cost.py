"""Area from recorded figures and stated rules, and the bits that a GEMM moves: against answers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fqtsim.cost import RECORDED, gemm_traffic, mac_area, relative_area
from fqtsim.cost.area import BASELINE, Area, _adder_bits
from fqtsim.hw.load import hardware_names, load_hardware
from fqtsim.hw.spec import Datapath, Item, Level
from fqtsim.words import Overflow, Rounding, ZeroPoint

#: By hand: the least-squares line through (16, 886), (18, 960), (20, 1038), (24, 1183), (32, 1480).
SLOPE, MULTIPLIER = 5934 / 160, 1109.4 - 22 * 5934 / 160


def level(terms: int | str, register: str, overflow: str | None = None, item: Item | None = None) -> Level:
    return Level(terms=terms, register=register, overflow=overflow and Overflow(overflow), item=item)


def path(*levels: Level, a: str = "int8", b: str = "int8", zero: str = "none") -> Datapath:
    return Datapath(a=a, b=b, zero_point=ZeroPoint(zero), levels=levels)


@pytest.mark.parametrize(
    ("bits", "overflow", "ge"),
    [(16, "wrap", 886), (18, "wrap", 960), (20, "wrap", 1038), (24, "wrap", 1183), (32, "wrap", 1480),
     (16, "saturate", 930), (18, "saturate", 1002), (20, "saturate", 1081), (24, "saturate", 1231),
     (32, "saturate", 1531)],
)  # fmt: skip
def test_recorded_widths_are_exact(bits: int, overflow: str, ge: float) -> None:
    found = mac_area(path(level("all", f"int{bits}", overflow)))
    assert found == Area(pytest.approx(ge), True, "recorded")


@pytest.mark.parametrize(
    ("bits", "ge", "note"),
    [
        (22, 1110.5, "interpolated from 20 and 24 to 22 bits"),
        (28, 1331.5, "interpolated from 24 and 32 to 28 bits"),
        (12, 738.0, "extrapolated from 16 and 18 to 12 bits"),
        (48, 2074.0, "extrapolated from 24 and 32 to 48 bits"),
    ],
)
def test_other_widths_lie_on_lines_and_say_so(bits: int, ge: float, note: str) -> None:
    assert mac_area(path(level("all", f"int{bits}", "wrap"))) == Area(pytest.approx(ge), False, note)


def test_another_multiplier_scales_with_the_product_of_widths() -> None:
    narrow = mac_area(path(level("all", "int32", "wrap"), a="int4", b="int4"))
    assert narrow.ge == pytest.approx(1480 - MULTIPLIER * 3 / 4)
    assert narrow.note == "estimate: 4 x 4 multiplier scaled from 8 x 8"
    wider = mac_area(path(level("all", "int32", "wrap"), zero="before_multiply"))
    assert wider.ge == pytest.approx(1480 + MULTIPLIER * (81 / 64 - 1))
    unsigned = mac_area(path(level("all", "int32", "wrap"), a="uint8"))
    assert (unsigned.ge, unsigned.exact) == (pytest.approx(1480), False)
    assert "unsigned" in unsigned.note


def test_a_tree_shares_its_accumulator() -> None:
    """Four products of 16 bits: two adders of 16 bits (2 * 2**14 = 2**15 needs 17), one of 18 bits."""
    found = mac_area(path(level(4, "exact"), level("all", "int32", "wrap")))
    bits = 2 * 17 + 18
    assert found.ge == pytest.approx(MULTIPLIER + SLOPE * bits / 4 + (1480 - MULTIPLIER) / 4)
    assert not found.exact
    assert found.note == "estimate: tree of 4, an adder bit counted as an accumulator bit"


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["int8", "uint8"]))
def test_a_tree_of_trees_is_one_tree(inner: int, outer: int, a: str) -> None:
    """Powers of two, so that both pair the same items."""
    last = level("all", "int24", "saturate")
    nested = mac_area(path(level(2**inner, "exact"), level(2**outer, "exact"), last, a=a))
    assert nested.ge == pytest.approx(mac_area(path(level(2 ** (inner + outer), "exact"), last, a=a)).ge)


def test_adders_of_a_tree_by_hand() -> None:
    assert _adder_bits(1, -128, 127) == 0
    assert _adder_bits(2, -128, 127) == 9  # -256..254
    assert _adder_bits(3, 0, 15) == 6 + 7  # 0..30 and 0..45, with a sign
    assert _adder_bits(1 << 30, -1, 1) > 1 << 30


def test_a_cast_costs_what_saturation_adds() -> None:
    plain = mac_area(path(level("all", "int32", "wrap")))
    cast = mac_area(path(level(1, "int16", "saturate"), level("all", "int32", "wrap")))
    assert cast.ge == pytest.approx((plain.ge or 0) + 930 - 886)
    assert not cast.exact
    wrapped = mac_area(path(level(1, "int16", "wrap"), level("all", "int32", "wrap")))
    assert wrapped.ge == pytest.approx(plain.ge)


@pytest.mark.parametrize(
    ("datapath", "reason"),
    [
        (path(level("all", "exact")), "an exact accumulator has no width"),
        (
            path(level(8, "int18", "saturate"), level("all", "int32", "wrap")),
            "whether in space or in time",
        ),
        (path(Level(lanes=4, register="exact"), level("all", "int32", "wrap")), "level 0 has lanes"),
        (path(Level(parts=4, register="exact"), level("all", "int32", "wrap")), "level 0 has parts"),
        (
            path(level("all", "int32", "wrap", Item(drop_bits=2, rounding=Rounding.TIES_TO_EVEN))),
            "no recorded figure for dropping bits with rounding ties_to_even",
        ),
    ],
)
def test_what_no_rule_covers_has_no_area_but_a_reason(datapath: Datapath, reason: str) -> None:
    found = mac_area(datapath)
    assert (found.ge, found.exact) == (None, False)
    assert reason in found.note
    ratio = relative_area(datapath)
    assert (ratio.value, str(ratio)) == (None, "unknown")
    assert reason in ratio.note


def test_dropped_bits_are_free_and_marked() -> None:
    found = mac_area(path(level("all", "int32", "wrap", Item(drop_bits=4, rounding=Rounding.TOWARD_NEGATIVE))))
    assert (found.ge, found.exact) == (pytest.approx(1480), False)
    assert "dropping 4 bits" in found.note


def test_the_largest_datapath_of_an_array_counts() -> None:
    small, large = path(level("all", "int16", "wrap")), path(level("all", "int20", "wrap"))
    ratio = relative_area([small, large, small])
    assert (ratio.value, ratio.exact, str(ratio)) == (pytest.approx(1038 / 1480), True, "0.70 x")
    assert relative_area(large, baseline=large).value == 1
    # Its wgrad keeps 32 bits, so narrowing the others saves nothing on one array.
    hardware = load_hardware("int8_acc24_saturate")
    assert relative_area(hardware).value == pytest.approx(1.0)
    narrow = MULTIPLIER + SLOPE * (2 * 17 + 18) / 4 + (1231 - MULTIPLIER) / 4
    assert relative_area(hardware.datapath_for("fprop")).value == pytest.approx(narrow / 1480)
    assert relative_area([]).value is None


def test_every_shipped_file_has_an_area() -> None:
    for name in hardware_names():
        ratio = relative_area(load_hardware(name))
        assert ratio.value is not None, f"{name}: {ratio.note}"
        assert 0.3 < ratio.value < 2


@given(st.integers(2, 61), st.sampled_from(["wrap", "saturate"]))
def test_a_wider_accumulator_is_larger(bits: int, overflow: str) -> None:
    areas = [mac_area(path(level("all", f"int{width}", overflow))).ge for width in (bits, bits + 1)]
    assert areas[0] is not None
    assert areas[1] is not None
    assert 0 < areas[0] < areas[1]


def test_the_source_is_named_in_full() -> None:
    for word in ("OSU", "0.18 um", "yosys", "undated", "NAND2X1"):
        assert word in RECORDED.citation
    assert mac_area(BASELINE) == Area(pytest.approx(1480), True, "recorded")


def test_traffic_by_hand() -> None:
    row = {"m": 3, "n": 5, "k": 7}
    found = gemm_traffic(row, path(level("all", "int20", "wrap"), a="uint4", b="int8"))
    assert (found.operations, found.operand_bits) == (105, 3 * 7 * 4 + 7 * 5 * 8)
    assert (found.result_bits, found.register_bits) == (3 * 5 * 20, 20)
    exact = gemm_traffic(row, path(level("all", "exact")))
    assert (exact.result_bits, exact.register_bits) == (None, None)
