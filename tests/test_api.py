"""The public functions: layouts and libraries in and out, what they print, and every error's whole text."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from independent import model
from mac import chain, hardware

import fqtsim
from fqtsim.api.compare import said as said_of
from fqtsim.backends import Events
from fqtsim.errors import BackendRefused, InputError

HW = hardware(*chain("terms 2 exact, int12 saturate"))
A = np.array([[100, 100, -100, 3], [1, 2, 3, 4]], np.int8)
B = np.array([[20, 1], [1, 1], [20, 1], [-1, 1]], np.int8)
CODES = [[44, 103], [78, 10]]  # the first is 2100 - 2003 by way of the rail, 2047


# --- gemm: what goes in and comes out --------------------------------------------------------------------------------


def test_gemm_returns_codes_and_events() -> None:
    out = fqtsim.gemm(A, B, HW)
    assert out.codes.tolist() == CODES
    assert out.codes.dtype == np.int32
    assert out.events == Events(altered=1, out_of_range=0, transient=1)
    assert out.trace is None


LAYOUTS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "int64": lambda x: x.astype(np.int64),
    "big-endian": lambda x: x.astype(">i4"),
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.int8).reshape(x.shape),
    "list": lambda x: x.tolist(),
    "uint64": lambda x: x.astype(np.uint64) if (x >= 0).all() else x.astype(np.int16),
}


@pytest.mark.parametrize("backend", ["reference", "stepwise", "emulator", "native"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_and_integer_type(layout: str, backend: str) -> None:
    random = np.random.RandomState(0)
    described = hardware(*chain("int14 wrap"), a="uint8")
    for m, k, n in ((5, 17, 3), (1, 9, 4), (4, 9, 1), (1, 1, 1), (3, 1, 6)):
        a, b = random.randint(0, 256, (m, k)), random.randint(-128, 128, (k, n))
        expected = fqtsim.gemm(a.astype(np.uint8), b.astype(np.int8), described, backend="reference").codes
        left = a.astype(np.uint8).tolist() if layout == "read-only" else LAYOUTS[layout](a)
        right = LAYOUTS[layout](b.astype(np.int8) if layout == "read-only" else b)
        assert np.array_equal(fqtsim.gemm(left, right, described, backend=backend).codes, expected)


@pytest.mark.parametrize("levels", ["int14 wrap", "int16 saturate", "int26 saturate", "terms 4 exact, int18 saturate",
                                    "drop 2 ties_to_even int20 saturate"])  # fmt: skip
def test_large_operands_by_columns_are_those_by_rows(levels: str) -> None:
    random = np.random.RandomState(1)
    for (m, k, n), dtype in ((((170, 170, 150)), np.int8), ((10, 90, 5000), np.int16), ((3000, 40, 40), np.int64)):
        described = hardware(*chain(levels), a="int9", b="int9")
        a, b = random.randint(-100, 128, (m, k)).astype(dtype), random.randint(-128, 100, (k, n)).astype(dtype)
        expected = fqtsim.gemm(a, b, described, backend="stepwise")
        for left in (a, np.asfortranarray(a)):
            for right in (b, np.asfortranarray(b)):
                for backend in ("stepwise", "emulator"):
                    found = fqtsim.gemm(left, right, described, backend=backend)
                    assert np.array_equal(found.codes, expected.codes)
                    assert found.events == expected.events


def test_torch_tensors_come_back_as_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    a, b = torch.tensor(A), torch.tensor(B)
    for left, right in ((a, b), (a.t().contiguous().t(), b[:, :]), (a.long(), b.int())):
        out = fqtsim.gemm(left, right, HW, c=torch.tensor([1, 0]))
        assert isinstance(out.codes, torch.Tensor)
        assert (out.codes.dtype, out.codes.device) == (torch.int32, a.device)
        assert out.codes.tolist() == [[44, 103], [79, 10]]  # the rail swallowed the first start value
    assert isinstance(fqtsim.gemm(A, b, HW).codes, np.ndarray)
    assert fqtsim.compare(a, b, HW, out.codes, c=[1, 0]).equal
    fqtsim.assert_bitexact(out.codes, a, b, HW, c=torch.tensor([1, 0]))


@pytest.mark.parametrize("backend", ["reference", "stepwise", "emulator"])
@pytest.mark.parametrize(
    "c", [7, [7], [[7]], [[7], [-7]], [7, -7], [[1, 2], [3, 4]], np.int8(-3), np.array([[5]], np.uint64)]
)
def test_start_values_broadcast(c: Any, backend: str) -> None:
    start = np.broadcast_to(np.asarray(c).astype(np.int64), (2, 2))
    expected = fqtsim.gemm(A, B, HW, backend="reference", c=start)
    out = fqtsim.gemm(A, B, HW, backend=backend, c=c)
    assert out.codes.tolist() == expected.codes.tolist()
    assert out.events == expected.events


def test_operands_are_left_alone() -> None:
    a, b, c = A.copy(), B.copy(), np.array([[3, 4], [5, 6]])
    for backend in ("reference", "stepwise", "emulator"):
        fqtsim.gemm(a, b, HW, backend=backend, c=c, trace=True)
    assert np.array_equal(a, A)
    assert np.array_equal(b, B)
    assert c.tolist() == [[3, 4], [5, 6]]


def test_gemms_of_one_file_differ() -> None:
    described = fqtsim.load_hardware("int8_acc24_saturate")
    ones = np.ones((1, 1), np.int8)
    assert fqtsim.gemm(200 * np.ones((1, 1), np.uint8), ones, described, gemm="fprop").codes.tolist() == [[200]]
    with pytest.raises(InputError):
        fqtsim.gemm(200 * np.ones((1, 1), np.uint8), ones, described, gemm="dgrad")
    assert fqtsim.gemm(ones, ones, "int8_acc32_wrap").codes.tolist() == [[1]]


def test_the_trace_comes_on_request() -> None:
    out = fqtsim.gemm(A, B, HW, trace=True)
    assert out.trace is not None
    assert [(level.minimum, level.maximum, level.additions, level.overflows) for level in out.trace] == [
        (-2003, 2100, 16, 0),
        (3, 2100, 8, 1),
    ]
    assert out.trace[0].registers[0, 0].tolist() == [2100, -2003]


ONES = np.ones((2, 2), np.int8)
NOT_A_FILE = "is not the name of a shipped file, nor a path (with / or ending in .yaml)"
GEMM_ERRORS: list[tuple[Any, Any, dict[str, Any], str]] = [
    (ONES, ONES, {"gemm": "forward"}, "gemm = 'forward': must be one of fprop, dgrad, wgrad"),
    (ONES.astype(float), ONES, {}, "a: dtype float64 holds no codes; pass integers"),
    (ONES, ONES.astype(bool), {}, "b: dtype bool holds no codes; pass integers"),
    (ONES[0], ONES, {}, "a.shape = (2,): must have 2 dimensions; reshape it"),
    (ONES, ONES[None], {}, "b.shape = (1, 2, 2): must have 2 dimensions; reshape it"),
    (ONES, np.ones((3, 2), int), {},
     "a.shape = (2, 2), b.shape = (3, 2): a's columns must equal b's rows; transpose one"),
    ([[1, 2], [3, 128]], ONES, {}, "a[1, 1] = 128: must be a code of int8, -128..127; quantize to int8 first"),
    (ONES, [[0, -129], [-200, 0]], {}, "b[0, 1] = -129: must be a code of int8, -128..127; quantize to int8 first"),
    (np.array([[2**64 - 1, 0]], np.uint64), ONES, {},
     "a[0, 0] = 18446744073709551615: must be a code of int8, -128..127; quantize to int8 first"),
    (ONES, ONES, {"c": [1, 2, 3]}, "c.shape = (3,): must broadcast to (2, 2); reshape it"),
    (ONES, ONES, {"c": 0.5}, "c: dtype float64 holds no codes; pass integers"),
    (ONES, ONES, {"c": [0, 2048]}, "c: must lie in the accumulator, -2048..2047; it holds 0..2048"),
    (ONES, ONES, {"backend": "fpga"},
     "backend = 'fpga': must be one of reference, stepwise, emulator, native, optionally @cpu or @cuda"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "options", "text"), GEMM_ERRORS, ids=[error[3] for error in GEMM_ERRORS])
def test_bad_operands_are_named(a: Any, b: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as error:
        fqtsim.gemm(a, b, HW, **options)
    assert str(error.value) == text


def test_operands_before_the_multiplier_are_differences() -> None:
    described = hardware(*chain("int20 saturate"), a="uint8", zero_point="before_multiply")
    assert fqtsim.gemm([[-256, 255]], [[-256], [255]], described).codes.tolist() == [[256**2 + 255**2]]
    with pytest.raises(InputError) as error:
        fqtsim.gemm([[256]], [[1]], described)
    assert str(error.value) == "a[0, 0] = 256: must be a code of int9, -256..255; quantize to int9 first"


def test_a_refusal_names_backend_and_reason() -> None:
    with pytest.raises(BackendRefused) as refusal:
        fqtsim.gemm(A, B, HW, backend="native")
    reason = "a register can overflow and INT8 instructions neither saturate nor narrow there"
    assert str(refusal.value) == f"native@cpu: {reason}; use backend emulator"


def test_a_trace_too_large_to_hold_is_refused() -> None:
    a, b = np.zeros((2048, 1), np.int8), np.zeros((1, 65537), np.int8)
    with pytest.raises(InputError) as error:
        fqtsim.gemm(a, b, HW, trace=True)
    assert str(error.value) == "trace = True: holds all 134219776 products; at most 134217728; trace a part"


# --- explain ---------------------------------------------------------------------------------------------------------

EXPLAINED = """\
output [0, 0]
┏━━━━━━┳━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━┓
┃ step ┃ level ┃ register ┃      item ┃ before ┃ exact sum ┃ after ┃ event    ┃
┡━━━━━━╇━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━┩
│    0 │     0 │ exact[0] │  100 * 20 │      0 │      2000 │  2000 │          │
│    1 │     0 │ exact[0] │   100 * 1 │   2000 │      2100 │  2100 │          │
│    2 │     0 │ exact[1] │ -100 * 20 │      0 │     -2000 │ -2000 │          │
│    3 │     0 │ exact[1] │    3 * -1 │  -2000 │     -2003 │ -2003 │          │
│    4 │     1 │ int12[0] │      2100 │      0 │      2100 │  2047 │ saturate │
│    5 │     1 │ int12[0] │     -2003 │   2047 │        44 │    44 │          │
└──────┴───────┴──────────┴───────────┴────────┴───────────┴───────┴──────────┘
code 44, unlimited registers 97: altered (transient)"""


def trimmed(text: object) -> str:
    return "\n".join(line.rstrip() for line in str(text).splitlines())


def test_explain_shows_every_product_and_addition() -> None:
    explanation = fqtsim.explain(A, B, HW)
    assert trimmed(explanation) == EXPLAINED
    assert (explanation.code, explanation.unlimited) == (44, 97)
    last = explanation.steps[-2]
    assert (last.level, last.register, last.item, last.before, last.exact, last.after, last.event) == (
        1, 0, 2100, 0, 2100, 2047, "overflow",
    )  # fmt: skip


def test_explain_shows_dropped_bits_and_start_values() -> None:
    described = hardware(*chain("drop 2 toward_negative int8 wrap"))
    text = trimmed(fqtsim.explain([[5, -5]], [[1], [1]], described, c=127))
    assert "│    0 │     0 │ int8[0]  │   5 * 1 -> 1 │    127 │       128 │  -128 │ wrap  │" in text
    assert "│    1 │     0 │ int8[0]  │ -5 * 1 -> -2 │   -128 │      -130 │   126 │ wrap  │" in text
    assert text.endswith("code 126: unaltered")  # 127 + 1 - 2, after turning twice


def test_explain_of_a_long_sum_shows_where_it_overflows() -> None:
    a, b = np.full((1, 300), 127, np.int8), np.full((300, 1), 127, np.int8)
    explanation = fqtsim.explain(a, b, hardware(*chain("int20 saturate")))
    lines = trimmed(explanation).splitlines()
    assert len(explanation.steps) == 300
    assert lines[-2].strip() == "276 more additions; steps 20..43 of 300 shown"
    assert lines[-1] == "code 524287, unlimited registers 4838700: altered (out of range)"
    assert "saturate" in lines[4 + 32 - 20]
    assert "saturate" not in lines[4 + 31 - 20]
    assert fqtsim.explain(a, b, hardware(*chain("int32 wrap"))).summary() == "code 4838700: unaltered"


@given(st.integers(0, 1), st.integers(0, 1))
def test_explain_gives_the_code_of_gemm(row: int, col: int) -> None:
    assert fqtsim.explain(A, B, HW, row, col).code == fqtsim.gemm(A, B, HW).codes[row, col]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"row": 2}, "row = 2: must be 0..1; the output is 2 x 2"),
        ({"col": -1}, "col = -1: must be 0..1; the output is 2 x 2"),
        ({"gemm": "x"}, "gemm = 'x': must be one of fprop, dgrad, wgrad"),
        ({"c": 5000}, "c: must lie in the accumulator, -2048..2047; it holds 5000..5000"),
    ],
)
def test_explain_names_what_is_wrong(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as error:
        fqtsim.explain(A, B, HW, **options)
    assert str(error.value) == text


# --- compare and assert_bitexact -------------------------------------------------------------------------------------


def test_compare_finds_the_first_wrong_output() -> None:
    codes = fqtsim.gemm(A, B, HW).codes
    assert fqtsim.compare(A, B, HW, codes).equal
    assert str(fqtsim.compare(A, B, HW, codes)) == "all 4 outputs equal"
    wrong = codes.copy()
    wrong[0, 0], wrong[1, 1] = 97, -10
    found = fqtsim.compare(A, B, HW, wrong)
    assert (found.equal, found.row, found.col, found.expected, found.observed) == (False, 0, 0, 44, 97)
    assert (found.mismatches, found.outputs, found.causes) == (2, 4, ())
    first = (
        "2 of 4 outputs differ; first at [0, 0]:\n  expected 44 (0x0000002c)\n  observed 97 (0x00000061), off by 53\n"
    )
    why = next(number for number, step in enumerate(found.explanation.steps) if step.event)  # type: ignore[union-attr]
    assert trimmed(found) == f"{first}expected from:\n{EXPLAINED}\nshown: step {why} is the only that overflows"


def one_wrong(change: Callable[[np.ndarray, np.ndarray, int], int]) -> str:
    """The text of a comparison in which output [2, 1] of a sum of 40 products without overflow is another code."""
    generator = np.random.default_rng(7)
    a, b = generator.integers(0, 256, (3, 40)).astype(np.uint8), generator.integers(-128, 128, (40, 2)).astype(np.int8)
    codes = fqtsim.gemm(a, b, "int8_acc32_wrap").codes
    wide = codes.astype(np.int64)
    wide[2, 1] = change(a[2].astype(np.int64), b[:, 1].astype(np.int64), int(wide[2, 1]))
    return str(fqtsim.compare(a, b, "int8_acc32_wrap", wide))


def test_without_overflow_the_window_is_where_the_difference_can_be_placed() -> None:
    lost = one_wrong(lambda a, b, code: code - int(a[21] * b[21]))
    assert "steps 17..24 of 40 shown" in lost
    assert "shown: step 21: without its item the sum is the observed code" in lost
    twice = one_wrong(lambda a, b, code: code + int(a[9] * b[9]))
    assert "shown: step 9: with its item added twice the sum is the observed code" in twice
    stopped = one_wrong(lambda a, b, code: int((a * b)[:30].sum()))
    assert "shown: the observed code is the sum before step 30" in stopped
    assert "shown: the last steps: " in one_wrong(lambda a, b, code: code ^ 0x155)


def test_suggestions_say_on_which_outputs_they_were_tried() -> None:
    a, b = np.full((2, 40), 255, np.uint8), np.full((40, 3), 127, np.int8)
    right = fqtsim.gemm(a[:, :-1], b[:-1], "int8_acc32_wrap").codes
    said = fqtsim.compare(a, b, "int8_acc32_wrap", right).causes
    assert said[0] == "the last k is left out (reproduces all 6 outputs of this case, 6 wrong)"
    cause = SimpleNamespace(text="it wraps", reproduces_all=True, outputs=4096, wrong=7)
    assert said_of(cause, 1 << 24, "this case") == (
        "it wraps (reproduces a sample of 4,096 of 16,777,216 outputs of this case)"
    )


def test_negative_and_long_codes_are_shown_in_hexadecimal() -> None:
    described = hardware(*chain("int40 wrap"))
    found = fqtsim.compare([[1]], [[1]], described, [[-1]], c=2**35)
    assert "  expected 34359738369 (0x0000000800000001)\n  observed -1 (0xffffffff), off by -34359738370\n" in str(
        found
    )


def test_assert_bitexact_passes_or_shows_what_compare_found() -> None:
    codes = fqtsim.gemm(A, B, HW).codes
    fqtsim.assert_bitexact(codes, A, B, HW)
    fqtsim.assert_bitexact(codes.tolist(), A, B, HW)
    one_wrong = codes + np.array([[0, 0], [0, 1]])
    with pytest.raises(AssertionError) as error:
        fqtsim.assert_bitexact(one_wrong, A, B, HW)
    text = str(error.value)
    assert text == str(fqtsim.compare(A, B, HW, one_wrong))
    assert text.startswith(
        "1 of 4 outputs differ; first at [1, 1]:\n  expected 10 (0x0000000a)\n  observed 11 (0x0000000b)"
    )


def test_a_hardware_name_is_all_a_test_needs() -> None:
    fqtsim.assert_bitexact([[11]], np.array([[1, 2]]), np.array([[3], [4]]), "int8_acc32_wrap")
    with pytest.raises(AssertionError):
        fqtsim.assert_bitexact([[11]], np.array([[1, 2]]), np.array([[3], [4]]), "int8_acc32_wrap", c=1)


@pytest.mark.parametrize(
    ("observed", "text"),
    [
        ([1, 2], "observed.shape = (2,): must be (2, 2), rows of a by columns of b; reshape it"),
        ([[1.0, 2.0], [3.0, 4.0]], "observed: dtype float64 holds no codes; pass integers"),
    ],
)
def test_compare_names_what_is_wrong(observed: Any, text: str) -> None:
    for check in (lambda: fqtsim.compare(A, B, HW, observed), lambda: fqtsim.assert_bitexact(observed, A, B, HW)):
        with pytest.raises(InputError) as error:
            check()
        assert str(error.value) == text


def test_an_empty_comparison_proves_nothing() -> None:
    with pytest.raises(InputError) as error:
        fqtsim.assert_bitexact(np.zeros((0, 2), int), A[:0], B, HW)
    assert str(error.value) == "actual: has no outputs, so nothing was compared; pass non-empty operands"


# --- round_shift and random_bits -------------------------------------------------------------------------------------


def test_round_shift_broadcasts_and_keeps_the_library() -> None:
    assert fqtsim.round_shift([[3, -3], [5, 6]], [[1], [2]], "ties_to_even").tolist() == [[2, -2], [1, 2]]
    assert fqtsim.round_shift(3, -2, "to_odd").tolist() == 12
    torch = pytest.importorskip("torch")
    out = fqtsim.round_shift(torch.tensor([6, -6]), 2, "ties_to_away")
    assert (out.dtype, out.tolist()) == (torch.int64, [2, -2])


@pytest.mark.parametrize("kind", [np.uint8, np.uint64])
def test_round_shift_takes_unsigned_shifts(kind: type) -> None:
    assert fqtsim.round_shift(np.array([100, -7]), kind(3), "ties_to_even").tolist() == [12, -1]
    assert fqtsim.round_shift(np.array([5, -5]), kind(1), "stochastic", np.array([3, 4], kind), 3).tolist() == [3, -3]


DETERMINISTIC = "rand_bits: rounding ties_to_even draws none; remove it, or use stochastic"
STOCHASTIC = "rounding = stochastic: needs rand_bits and n_bits in 1..32; fqtsim.random_bits draws them"
WORDS = ("ties_to_even, ties_to_odd, ties_to_away, ties_to_zero, ties_to_positive, ties_to_negative, toward_zero, "
         "away_from_zero, toward_positive, toward_negative, to_odd, stochastic")  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, 1, "nearest"), f"rounding = 'nearest': must be one of {WORDS}"),
        ((1.0, 1, "to_odd"), "codes: dtype float64 holds no codes; pass integers"),
        ((1, 63, "to_odd"), "shift = 63..63: must be -62..62"),
        (([1, 2], [1, 2, 3], "to_odd"), "shift.shape = (3,): must broadcast to (2,); reshape it"),
        ((1, 1, "ties_to_even", 0), DETERMINISTIC),
        ((1, 1, "ties_to_even", None, 4), DETERMINISTIC),
        ((1, 1, "stochastic"), STOCHASTIC),
        ((1, 1, "stochastic", 0), STOCHASTIC),
        ((1, 1, "stochastic", 0, 33), STOCHASTIC),
        ((1, 1, "stochastic", 16, 4), "rand_bits = 16..16: must be 0..15"),
        ((2**40, -40, "to_odd"), "codes: codes / 2**shift needs more than 64 bits; shift left by fewer bits"),
    ],
)
def test_round_shift_names_what_is_wrong(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(InputError) as error:
        fqtsim.round_shift(*arguments)
    assert str(error.value) == text


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 32))
def test_random_bits_like_the_per_bit_model(seed: int, stream: int, step: int, bits: int) -> None:
    found = fqtsim.random_bits(seed, stream, step, 9, bits)
    assert found.dtype == np.uint32
    assert found.tolist() == model.random_bits(seed, stream, step, 9, bits)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 0, 0, 4, 0), "bits = 0: must be 1..32"),
        ((0, 0, 0, 4, 33), "bits = 33: must be 1..32"),
    ],
)
def test_random_bits_names_what_is_wrong(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(InputError) as error:
        fqtsim.random_bits(*arguments)
    assert str(error.value) == text


@pytest.mark.parametrize("arguments", [(-1, 0, 0, 4, 8), (2**64, 0, 0, 4, 8), (0, 2**32, 0, 4, 8), (0, 0, 2**32, 4, 8)])
def test_random_bits_refuses_fields_that_overflow(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InputError):
        fqtsim.random_bits(*arguments)
