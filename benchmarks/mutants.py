"""96 kernels with one bug each: who detects them, and what golden check names as the likely cause.

For each mutant of tests/kernel_mutants*.py and each planted bug of examples/kernels/triton_gemm.py: the first case of
the default golden set that shows it, whether torch.equal on random codes lets it pass, and the first suggestion, by
the same path as `fqtsim golden check`. mutants_expected.py says beforehand what a right answer is. Resumable: results
are kept by the digest of everything that they come from.

    python benchmarks/mutants.py
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from mutants_expected import ADDED, EXPECTED, IN, OUT, TRITON, Expected

from fqtsim.golden.case import GoldenSet
from fqtsim.golden.causes import likely_causes
from fqtsim.golden.check import check, size
from fqtsim.golden.make import make_golden
from fqtsim.hw.load import load_hardware
from fqtsim.hw.spec import Hardware

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples" / "kernels")]

from kernel_mutants import MUTANTS  # noqa: E402

Kernel = Callable[..., Any]
GEMMS = ("fprop", "dgrad")
ALL = "reproduces all"
MOST_PRODUCTS = 1 << 24
"""Of a case that takes part: K = 131,072 does, 4096 x 4096 x 4096 does not."""
MOST_PRODUCTS_OF_TRITON = 1 << 18
"""The same of the interpreter, which takes milliseconds for a tile."""


@dataclass(frozen=True)
class Answer:
    """What came of one mutant on the default set of one GEMM."""

    mutant: str
    gemm: str
    #: The first case, by the set's order, that shows it; None where the set does not.
    case: str | None
    #: Every line that golden check suggests, and the seconds that it took to find them.
    causes: tuple[str, ...]
    seconds: float

    @property
    def full(self) -> tuple[str, ...]:
        """The suggestions that reproduce all outputs."""
        return tuple(cause for cause in self.causes if ALL in cause)


@dataclass(frozen=True)
class Row:
    """A mutant, what is expected, and what was found on every GEMM whose set shows it."""

    name: str
    #: "wrap32", "sat20" or "triton".
    group: str
    wrong: str
    expected: Expected
    missed_by_torch: bool
    answers: tuple[Answer, ...]

    @property
    def shown(self) -> tuple[Answer, ...]:
        return tuple(answer for answer in self.answers if answer.case is not None)

    @property
    def right(self) -> bool:
        """Whether every set that shows it gives the right answer; see is_right()."""
        return bool(self.shown) and all(is_right(self.expected, answer) for answer in self.shown)


def is_right(expected: Expected, answer: Answer) -> bool:
    """Tell whether an answer is right: for a fault outside the list, that no change reproduces all outputs.

    For one inside, that the first suggestion has one of its names and reproduces all outputs. A name that comes later
    does not count: suggestions that the set cannot tell apart are listed, but the first must be right.
    """
    if expected.place == OUT:
        return not answer.full
    return bool(answer.full) and any(name in answer.causes[0] for name in expected.names)


def hardware(group: str) -> Hardware:
    """Return the meaning of a group of kernels; those that saturate take codes, no differences from zero points."""
    if group == "sat20":
        return load_hardware("int8_acc20_tree4", {"datapath.zero_point": "none"})
    return load_hardware("int8_acc32_wrap")


@cache
def golden(group: str, gemm: str) -> GoldenSet:
    """Return the default set, less its cases of most products, those of size 4096."""
    whole = make_golden(hardware("wrap32" if group == "triton" else group), gemm)
    most = MOST_PRODUCTS_OF_TRITON if group == "triton" else MOST_PRODUCTS
    return replace(whole, cases=tuple(case for case in whole.cases if size(case) <= most))


def answered(name: str, group: str, kernel: Kernel, gemm: str) -> Answer:
    """Check a kernel against a set and ask for the causes, as `fqtsim golden check` does."""
    whole = golden(group, gemm)
    verdict = check(whole, kernel, explained=False)
    if verdict.passed:
        return Answer(name, gemm, None, (), 0.0)
    began = time.perf_counter()
    causes = likely_causes(verdict.results, whole.hardware).texts
    return Answer(name, gemm, verdict.failures[0].name, causes, round(time.perf_counter() - began, 2))


def kernels() -> list[tuple[str, str, Kernel, str, Expected]]:
    """Return name, group, kernel, what is wrong and what is expected, of every mutant; Triton's where it is installed.

    Triton's kernels run in its interpreter.
    """
    found = [(name, group, kernel, wrong, EXPECTED[name]) for name, group, kernel, wrong in MUTANTS]
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported
    try:
        from triton_gemm import BUGS, matmul
    except ModuleNotFoundError:
        return found
    return found + [(name, "triton", partial(matmul, bug=name), wrong, TRITON[name]) for name, wrong in BUGS.items()]


@cache
def random_operands(group: str) -> tuple[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]], ...]:
    """Return what the rival tries: random codes of a square, an odd and a larger shape, a unsigned and signed.

    For `sat20` of K up to 64: beyond, sums pass 20 bits, and the rival would reject right kernels. Triton's take
    signed codes only.
    """
    g = np.random.default_rng(0)
    shapes = [(64, 64, 64), (37, 61, 53), (128, 64 if group == "sat20" else 512, 96)]
    found = []
    for m, k, n in shapes:
        b = g.integers(-128, 128, (k, n)).astype(np.int8)
        found += [(g.integers(0, 256, (m, k)).astype(np.uint8), b)] * (group != "triton")
        found.append((g.integers(-128, 128, (m, k)).astype(np.int8), b))
    return tuple(found)


def missed_by_torch(kernel: Kernel, group: str) -> bool:
    """Tell whether torch.equal(out, a.int() @ b.int()) holds on every random pair."""
    import torch

    for a, b in random_operands(group):
        out = torch.as_tensor(np.ascontiguousarray(kernel(a=a, b=b)))
        if not torch.equal(out, torch.from_numpy(a).int() @ torch.from_numpy(b).int()):
            return False
    return True


def rows(names: Iterable[str] | None = None, store: Path | None = None) -> list[Row]:
    """Return what was found of the named mutants, or of all; store keeps answers from one run to the next.

    A kept answer is used again only for the same program, mutants and expectations.
    """
    wanted = None if names is None else set(names)
    chosen = [one for one in kernels() if wanted is None or one[0] in wanted]
    kept: dict[str, Any] = {}
    version = digest()
    if store is not None and store.exists():
        kept = json.loads(store.read_text(encoding="utf-8"))
        kept = kept if kept.get("version") == version else {}
    found = []
    for number, (name, group, kernel, wrong, expected) in enumerate(chosen, 1):
        if name not in kept:
            gemms = ("dgrad",) if group == "triton" else GEMMS
            answers = [asdict(answered(name, group, kernel, gemm)) for gemm in gemms]
            kept[name] = {"missed_by_torch": missed_by_torch(kernel, group), "answers": answers}
            if store is not None:
                write(store, json.dumps({**kept, "version": version}, indent=1) + "\n")
        stored = kept[name]["answers"]
        answered_before = tuple(Answer(**{**one, "causes": tuple(one["causes"])}) for one in stored)
        found.append(Row(name, group, wrong, expected, kept[name]["missed_by_torch"], answered_before))
        if store is not None:
            print(f"{number}/{len(chosen)} {name}: {'right' if found[-1].right else 'NOT RIGHT'}", flush=True)
    return found


def digest() -> str:
    """Return a digest of the files that answers come from."""
    found = hashlib.sha256()
    folders = [ROOT / "fqtsim" / part for part in ("golden", "identify", "kernels", "backends", "hw", "ref", "api")]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    files += [*sorted((ROOT / "tests").glob("kernel_mutants*.py")), *sorted((ROOT / "benchmarks").glob("mutants*.py"))]
    for file in [*files, ROOT / "examples" / "kernels" / "triton_gemm.py"]:
        found.update(file.read_bytes())
    return found.hexdigest()


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name, then move it to its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def counted(found: Sequence[Row]) -> dict[str, int]:
    """Return the numbers that count: mutants, shown, missed by torch.equal, and right answers by place."""
    shown = [row for row in found if row.shown]
    inside, added, outside = ([row for row in shown if row.expected.place == place] for place in (IN, ADDED, OUT))
    return {
        "mutants": len(found),
        "shown by the default set": len(shown),
        "missed by torch.equal": sum(row.missed_by_torch for row in found),
        "in the list": len(inside),
        "in the list, named right first": sum(row.right for row in inside),
        "added to the list since": len(added),
        "added, named right first": sum(row.right for row in added),
        "outside the list": len(outside),
        "outside, falsely named": sum(any(answer.full for answer in row.shown) for row in outside),
    }


def document(found: Sequence[Row]) -> str:
    """Return the page: what was counted, and a row for each mutant."""
    groups = {"96 mutants": [row for row in found if row.group != "triton"],
              "12 Triton bugs": [row for row in found if row.group == "triton"]}  # fmt: skip
    counts = {title: counted(group) for title, group in groups.items()}
    lines = [
        "# Which mutants are found, and named", "",
        "96 INT8 GEMM kernels with one bug each, written by somebody who had not seen the list of changes that",
        "`fqtsim.identify` tries, and the 12 planted bugs of `examples/kernels/triton_gemm.py`, interpreted.",
        "`python benchmarks/mutants.py` reruns it; `benchmarks/mutants_expected.py` says what a right answer is, and",
        "why, as it was written down before any answer was looked at. A mutant counts as named right only if the",
        "first suggestion of golden check reproduces all outputs and has the expected name, on every set (fprop,",
        "dgrad) that shows it; outside the list the right answer is that nothing tried reproduces all outputs.",
        "`added` mutants were outside when first looked at; a general change that is also theirs has come to the list",
        "since. They are counted apart. Sets: the default ones, without the cases of size 4096",
        "(Triton's: of more than 2**18 products).", "",
        "The names are not blind: the first time, 12 of the 21 in the list were named right and five outside were",
        "named falsely. What was missing then was added as kinds of changes, with these answers in view.", "",
        f"| | {' | '.join(counts)} |", f"|---|{'---|' * len(counts)}",
    ]  # fmt: skip
    for name in next(iter(counts.values())):
        lines.append(f"| {name} | {' | '.join(str(count[name]) for count in counts.values())} |")
    lines += ["", "| mutant | what is wrong | list | first case | torch.equal | first suggestion | s | right |",
              "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in found:
        first = row.shown[0] if row.shown else None
        said = "none of these" if first is not None and not first.full else ""
        if first is not None and first.full:
            said = first.causes[0].split(" (reproduces")[0]
            said += f" (and {len(first.full) - 1} that the set cannot tell from it)" if len(first.full) > 1 else ""
        seconds = f"{max(answer.seconds for answer in row.shown):.1f}" if row.shown else ""
        right = ("yes" if row.right else "**no**") if row.shown else ""
        cells = [f"`{row.name}`", row.wrong, row.expected.place, f"{first.gemm} {first.case}" if first else "not shown",
                 "missed" if row.missed_by_torch else "found", said, seconds, right]  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument("--kept", type=Path, default=Path("runs/mutants.json"), help="answers so far")
    parser.add_argument("--only", nargs="+", help="some mutants, by name; prints, writes no page")
    arguments = parser.parse_args()
    found = rows(arguments.only, arguments.kept)
    print(json.dumps(counted(found), indent=1))
    if arguments.only:
        for row in found:
            print(row.name, *(f"  {answer.gemm}: {cause}" for answer in row.shown for cause in answer.causes), sep="\n")
        return
    write(arguments.out / "mutants.md", document(found))
    table = [{**asdict(row), "right": row.right} for row in found]
    write(arguments.out / "mutants.json", json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
