"""The list of changes, large operands, floating point, and what explain_mismatch refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planted_faults import (
    FILE,
    GROUPED,
    SATURATING,
    SHAPES,
    WRAPPING,
    Array,
    bfloat16,
    float_sums,
    operands,
    wrap,
)

import fqtsim
from fqtsim.errors import InputError
from fqtsim.hw.load import hardware_names, load_hardware, parse_hardware
from fqtsim.hw.spec import Datapath
from fqtsim.identify import (
    Observation,
    candidates,
    explain_mismatch,
    explain_mismatches,
)
from fqtsim.identify.candidates import single_changes
from fqtsim.identify.change import Problem, outputs
from fqtsim.identify.floats import rounded_to, to_float
from fqtsim.identify.search import MOST_CAUSES


@pytest.mark.parametrize("name", hardware_names())
def test_every_shipped_datapath_has_candidates_of_its_own(name: str) -> None:
    datapath = load_hardware(name).datapath
    singles = single_changes(datapath)
    assert len({change.text for change in singles}) == len(singles) > 300
    every = list(candidates(datapath))
    assert len(every) > len(singles)
    assert {change.count for change in every} == {1, 2}


def test_every_single_change_is_found_again_where_it_shows() -> None:
    """Its own outputs, on several shapes: whatever is listed first gives the same outputs everywhere."""
    for datapath in (SATURATING, GROUPED):
        cases = [operands(datapath, shape, seed) for seed, shape in enumerate(SHAPES[:3])]
        expected = [fqtsim_codes(case, datapath) for case in cases]
        for change in single_changes(datapath)[::41]:
            seen = [outputs(change, Problem(a.astype(np.int32), b.astype(np.int32), c, datapath)) for a, b, c in cases]
            shown = [right if found is None else found for found, right in zip(seen, expected, strict=True)]
            if all(np.array_equal(found, right) for found, right in zip(shown, expected, strict=True)):
                continue
            causes = explain_mismatches(
                [Observation(a, b, found, c) for (a, b, c), found in zip(cases, shown, strict=True)], datapath,
                with_pairs=False,
            )  # fmt: skip
            assert len(causes) == MOST_CAUSES or change.text in {cause.text for cause in causes}
            assert causes


def fqtsim_codes(case: tuple[Array, Array, Array | None], datapath: Datapath) -> Array:
    a, b, c = case
    hardware = parse_hardware(FILE).model_copy(update={"datapath": datapath})
    return np.asarray(fqtsim.gemm(a, b, hardware, c=c).codes)


def test_large_operands_are_sampled_first_and_then_run_in_full() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-128, 128, (300, 900)), rng.integers(-128, 128, (900, 280))
    observed = wrap((a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64), 16)
    causes = explain_mismatch(a, b, SATURATING, observed)
    assert causes[0].text.startswith("the accumulator wraps")
    assert causes[0].outputs == 300 * 280


def test_long_sums_in_float32() -> None:
    a, b = np.full((2, 3000), 127), np.full((3000, 3), 127)
    a[1, ::2] = -128
    b[::3, 1] = 63
    causes = explain_mismatch(a, b, WRAPPING, float_sums(a, b, None))
    assert causes[0].text == "products are added in float32"


@pytest.mark.parametrize(
    "code", [0, 1, 255, 257, 259, 65535, 2**24 + 1, -(2**24) - 3, 2**30 + 2**22, 2**30 + 2**22 + 1]
)
def test_rounding_to_bfloat16_is_a_single_rounding(code: int) -> None:
    assert rounded_to(np.array([code]), "bfloat16").tolist() == [bfloat16(code)]


def test_floats_beyond_their_range() -> None:
    assert rounded_to(np.array([70000, -5]), "float16").tolist() == [-(2**31), -5]
    assert np.isinf(to_float(np.array([70000]), "float16")).all()


@pytest.mark.parametrize(
    ("observed", "text"),
    [
        ([[1]], "observed.shape = (1, 1): must be (2, 2), rows of a by columns of b; reshape it"),
        ([[1.0, 2.0], [3.0, 4.0]], "observed: dtype float64 holds no codes; pass integers"),
    ],
)
def test_observed_codes_are_checked(observed: Any, text: str) -> None:
    with pytest.raises(InputError) as error:
        explain_mismatch([[1], [2]], [[1, 2]], SATURATING, observed)
    assert str(error.value) == text
