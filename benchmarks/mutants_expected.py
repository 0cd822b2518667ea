"""What a right answer is for every mutant of tests/kernel_mutants*.py and every planted bug of triton_gemm.py.

Written from the code of the mutants and the list of changes, before any answer was looked at, by one rule. A mutant is
`IN` the list where its fault is one change of a kind that the list names (overflow, register width, order of k, length
of groups, lanes, split K, start values, left-out k, layout, signedness), made wherever that change is defined. It is
`OUT` where the fault is none of these or acts under a condition on sizes, codes or places. In doubt it is `IN`: that
asks more. The right answer is then a change whose words have one of `names`; for `OUT` it is "none of these".

`ADDED` were `OUT` when the answers were first looked at. The list has grown since by a general change that is also
theirs, so they have names, but they are counted apart.
"""

from __future__ import annotations

from typing import NamedTuple

IN, OUT, ADDED = "in", "out", "added"


class Expected(NamedTuple):
    """Whether the fault is in the list, why, and what of the first suggestion's words shows that it is named."""

    place: str
    reason: str
    names: tuple[str, ...] = ()


def inside(reason: str, *names: str) -> Expected:
    return Expected(IN, reason, names)


def since(reason: str, *names: str) -> Expected:
    return Expected(ADDED, reason, names)


def outside(reason: str) -> Expected:
    return Expected(OUT, reason)


EXPECTED = {
    # One bug in the arithmetic, or one that only some codes bring out.
    "a_sign_extended": inside("signedness", "a's codes, uint8, are read as signed"),
    "sign_moved_to_b": outside("only -128 of b where a is negative"),
    "pairs_saturate": inside("pairs of products through 16 bits", "pairs of products saturate at 16 bits"),
    "pairs_wrap": inside("pairs of products through 16 bits", "pairs of products wrap at 16 bits"),
    "one_table_entry": outside("one product"),
    "quarter_squares": outside("one product"),
    "plane_skipped": outside("depends on the codes of b"),
    "zero_sum_skipped": outside("depends on the codes of a"),
    "zero_max_skipped": outside("depends on the codes of b"),
    "constant_row": outside("depends on the codes of a"),
    "row_reused": outside("depends on the codes of a"),
    "float32_chunk_too_long": outside("chunks of 1024 rounded to float32, added as integers"),
    "saturates_at_32": inside(
        "saturates for wraps, once", "saturates to int32 once, when it is stored", "overflow is applied once"
    ),
    "c_through_float32": since("a float format of the start values", "the start value is rounded to float32"),
    "guard_bits": outside("depends on K and on carries of half words"),
    "spill_24bit": outside("a second register of 24 bits, every 260 products"),
    "spill_nibbles": outside("half bytes of a in 16 bits"),
    "bucket_16bit": outside("sums by code of b"),
    "strassen_int8": outside("only from 64 x 64 x 64 on, in differences of blocks"),
    "offset_sum_16bit": outside("column sums of b wrap"),
    "residues": outside("sums modulo 255 * 256 * 257"),
    "zero_row": outside("depends on the codes of a"),
    "zero_run_8bit": outside("depends on the zeros of b"),
    "booth_zero": outside("only zeros of a"),
    "b_symmetric": inside("a narrower range of codes", "b's most negative code is read as -127"),
    "last_lane_unsigned": outside("only for K a multiple of 64, and one k"),
    "carry_skip": outside("carries of one adder"),
    "int_min_sentinel": outside("one result"),
    "squarer": outside("depends on equal bytes"),
    "sparse_by_probe": outside("depends on the codes of b"),
    "narrow_by_first_row": outside("depends on the codes of row 0"),
    # One bug in tiles, tails, strides, sizes, buffers or start values.
    "lone_last_row": outside("only where M leaves 1 over 8"),
    "k_tail_dropped": inside("k left out", "the k beyond the last multiple of 4 are left out"),
    "k_mask_of_31": outside("only where K leaves 31 over 32"),
    "overlapped_last_tile": outside("only the overlap of the last two tiles of columns"),
    "tile_counter_8bit": outside("rows from 2048 on"),
    "stale_panel": outside("k of the panel before, by two multiples"),
    "offset_without_tail": outside("128 is added to a at the last K % 4 k only"),
    "tail_lanes_swapped": outside("only where K leaves 3 over 4"),
    "last_panel_packing": outside("only where N leaves 2 over 4"),
    "row_stride_rounded": outside("only beyond K = 256"),
    "output_address_16bit": outside("only outputs beyond 65536"),
    "k_counter_16bit": outside("only K from 65536 on"),
    "pipeline_of_two": outside("only K of 65 to 128"),
    "lost_update": outside("every 97th output"),
    "grouped_tile_order": outside("tiles of a last partial group"),
    "fixup_on_boundary": outside("only where a cut meets a boundary"),
    "one_row_without_c": outside("only M = 1"),
    "one_column_tail": outside("only N = 1"),
    "strides_ignored": outside("right on every case of the set: seen with column-major operands alone"),
    "c_read_as_int32": outside("start values of 8 bytes read as of 4"),
    "square_c_transposed": outside("only M = N, and only the start values"),
    "square_b_transposed": outside("only K = N that is a multiple of 16; the set also has K = N = 3"),
    "c_row_10bit": outside("only rows from 1024 on"),
    "last_word_mask": outside("only K that is a multiple of 64"),
    "c_taken_as_bias": outside("depends on the start values"),
    "empty_k": outside("only K = 0"),
    "c_once_per_block": since("start values once in each 256 k", "the start value counts once in each tile of 256 k"),
    "early_exit_thread": outside("only M that is a multiple of 32"),
    "tail_of_one": outside("only where K leaves 1 over 16"),
    # One bug in where, when, how far and in which order sums saturate.
    "saturates_at_the_end": inside("when overflow acts", "overflow is applied once"),
    "saturates_each_product": inside(
        "length of groups", "1 products are summed at a time", "1 product is summed at a time"
    ),
    "groups_of_eight": inside("length of groups", "8 products are summed at a time"),
    "wraps_at_20": inside("wraps for saturates", "the accumulator wraps"),
    "lower_rail_wraps": inside("wraps for saturates, on one side", "saturates upwards only"),
    "symmetric_rails": inside("one rail by one off", "saturates symmetrically", "-524287 and not"),
    "exact_hit": outside("only sums that meet the rail exactly"),
    "one_bit_wider": inside("width of a register", "the accumulator has 21 bits"),
    "coarse_comparator": outside("a rail that acts 4096 early"),
    "sticky_flag": inside("when overflow acts", "stays at that rail"),
    "shared_flag": outside("odd rows, by the row before"),
    "split_in_two": inside("split K", "K is split into 2 parts"),
    "split_when_tall": outside("only M from 64 on"),
    "four_registers": inside("lanes", "4 accumulators take the items in turn"),
    "groups_backwards": inside("order of k", "tiles of 4 k come in reverse", "last to first"),
    "short_group_first": since("a remainder of k first", "the k beyond the last multiple of 4 come first"),
    "strided_groups": inside("order of k; other K have no such strides", "4 streams that take turns"),
    "blocks_cut_groups": outside("groups are cut at multiples of 250"),
    "rotated_start": outside("an order of k by row"),
    "odd_columns_swapped": outside("odd columns"),
    "c_at_the_end": inside("start values", "the start value is added last"),
    "c_port_19bit": since("width of the start values", "the start value saturates at 19 bits"),
    "tree_17bit": inside("width of a register", "the register of level 0 has 17 bits and wraps"),
    "tree_headroom": outside("rails 2048 off"),
    "fast_path_by_result": outside("depends on the exact result"),
    "fast_path_without_c": outside("depends on the codes of the whole call"),
    "every_other_group": inside("the same function as groups of eight", "8 products are summed at a time"),
    "clip_maps_one_sided": outside("slices of 80 k, one rail"),
    "short_group_wraps": outside("only the short last group"),
    "short_group_joins": outside("only the short last group"),
    "early_exit_on_rails": outside("depends on a whole row"),
    "spill_without_low_bits": outside("bits dropped between blocks of 256 k"),
    "constant_row_at_once": outside("depends on the codes of a"),
    "stale_lanes": outside("only columns from 32 on"),
    "clock_gate": outside("depends on the codes of a"),
    "flag_hazard": outside("depends on the step before"),
}

TRITON = {
    "float32_accumulator": inside("floating point", "sums of 128 products are added in float32"),
    "float32_result": inside("floating point", "the result is rounded to float32"),
    "int16_result": inside("width of a register", "16 bits", "int16"),
    "int64_clamped": inside("saturates for wraps, once", "saturates to int32 once, when it is stored"),
    "zero_point_kept": inside("zero point", "128 is added to every code of a"),
    "tail_dropped": inside("k left out", "the k beyond the last multiple of 128 are left out"),
    "tail_wraps": inside("k repeated", "padded to a multiple of 128 by starting again at k = 0"),
    "row_stride": inside("layout", "the row stride of b is K and not N"),
    "rows_left_out": inside("rows left out", "rows of the output beyond the last multiple of 32 are 0"),
    "wrong_accumulator": inside("k left out", "only the last tile of 128 k counts"),
    "start_in_each_part": inside("start values", "the start value counts twice"),
    "start_of_row_0": inside("start values", "start value of row 0 is taken for every"),
}
