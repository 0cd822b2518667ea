"""The answer of a shrink as a table: guaranteed, seen, still trains."""

from __future__ import annotations

from rich.table import Table

from fqtsim.cost import relative_area
from fqtsim.cost.area import RECORDED_AREAS
from fqtsim.evaluate.shrink.confirm import points
from fqtsim.evaluate.shrink.plan import Answer
from fqtsim.evaluate.shrink.space import RANDOM_BITS, cost, narrowed, own_width


def answer_table(answer: Answer) -> Table:
    """Return a row per accumulator: widths in the file, guaranteed, seen in the run, and found to train."""
    table = Table(title="accumulator widths")
    table.add_column("layer")
    table.add_column("GEMM")
    for name in ("K", "file", "data type", "weights (A2Q)", "seen", "still trains"):
        table.add_column(name, justify="right")
    widths = answer.space.widths(answer.candidate)
    for seen in answer.seen:
        weights = "-" if seen.gemm == "wgrad" else _width(seen.weights_bits)
        table.add_row(
            seen.layer, seen.gemm, str(seen.k), str(own_width(answer.space.hardware, seen.gemm)),
            _width(seen.data_type_bits), weights, _width(seen.seen_bits), str(widths[seen.place]),
        )  # fmt: skip
    if RANDOM_BITS in answer.candidate:
        own = answer.space.own()[RANDOM_BITS]
        table.add_row(RANDOM_BITS, "", "", str(own), "", "", "", str(answer.candidate[RANDOM_BITS]))
    return table


def _width(bits: int | None) -> str:
    return "none" if bits is None else str(bits)


def _area_line(answer: Answer) -> str:
    """Return the area of one array for all layers over that of the file, by the recorded figures."""
    bits = answer.candidate.get(RANDOM_BITS)
    shared = narrowed(answer.space.hardware, answer.space.widest(answer.candidate), bits)
    before, after = relative_area(answer.space.hardware), relative_area(shared)
    if before.value is None or after.value is None:
        return f"MAC area: not known ({before.note or after.note})"
    note = f"; {after.note}" if after.note else ""
    ratio = after.value / before.value
    return f"MAC area of one array for all layers: {ratio:.2f} x the file's ({RECORDED_AREAS.citation}{note})"


def answer_lines(answer: Answer) -> list[str]:
    """Return what the answer is worth and where it is, in lines."""
    name, own, bits = answer.space.hardware.name, cost(answer.space.own()), cost(answer.candidate)
    verdict = f"{name}: {bits} of {own} bits still train" if answer.narrower else f"{name}: nothing narrower trains"
    over = answer.check.difference
    lines = [
        f"{verdict}, {answer.check.words} against the file's own widths over {over.pairs} fresh seeds, "
        f"{points(answer.check.against_fp32)} against fp32",
        f"search: {len(answer.trials)} trials; {answer.refuted} candidates refuted on fresh seeds",
        "guaranteed: data type, for any codes; weights (A2Q), for any inputs and the weight codes of this run. "
        "seen: every result, and partial sums on sampled steps, of one run",
        _area_line(answer),
        f"one array for all layers: {answer.shared_file}",
    ]
    if answer.layer_files:
        if not answer.shared_check.confirmed:
            lines.append(f"one array for all layers is not confirmed: {answer.shared_check.words}")
        lines.append(f"by layer: {answer.options}")
    return lines
