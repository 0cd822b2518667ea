"""`fqtsim golden make` and `fqtsim golden check`: golden vectors, and a kernel against them."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fqtsim.cli.overrides import split_overrides
from fqtsim.errors import InputError
from fqtsim.words import GEMMS

if TYPE_CHECKING:
    from fqtsim.golden.case import GoldenSet

NO_LARGE = "No large cases: those of more than 512 KiB, which hold a seed in place of operands."
"""Of make and of check, which mean the same cases."""


@click.group()
def golden() -> None:
    """Make golden vectors, and check a kernel against them."""


@golden.command()
@click.option("--hardware", required=True, help="A shipped name or a file.")
@click.option("--gemm", type=click.Choice(GEMMS), default="fprop", show_default=True, help="Datapath of kind gemm.")
@click.option(
    "--kind",
    default="gemm",
    show_default=True,
    help="gemm, conv, quantize, requantize, scaled_linear, linear; several with commas.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Of random inputs.")
@click.option("--trace", is_flag=True, help="Hold the registers of every level too, of small cases.")
@click.option("--no-start", is_flag=True, help="No cases with start values c, for kernels that take none.")
@click.option("--no-large", is_flag=True, help=NO_LARGE)
@click.option(
    "--format",
    "form",
    type=click.Choice(("safetensors", "npz", "readmemh", "c")),
    help="readmemh is a folder for RTL test benches, c a header. [as --out ends]",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File or folder to write.")
@click.option("--set", "overrides", multiple=True, metavar="hardware.KEY=V", help="Change one key of the file.")
def make(
    hardware: str, gemm: str, kind: str, seed: int, trace: bool, no_start: bool, no_large: bool, form: str | None,
    out: Path, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Write a golden set: inputs and the codes that the hardware gives for them.

    It is the same for the same hardware, seed and version. Each case was computed by the emulator and a sample of it
    by the definition; a set that zeros, transposed or shifted outputs would pass is refused.
    """
    from fqtsim.golden.files import format_of, save
    from fqtsim.golden.make import make_golden
    from fqtsim.hw.load import load_hardware

    format_of(out, form)  # before the work, not after it
    described = load_hardware(hardware, split_overrides(overrides, owners=("hardware",))["hardware"])
    kinds = tuple(name.strip() for name in kind.split(",") if name.strip())
    made = make_golden(described, gemm, kinds, seed, trace, start=not no_start, large=not no_large)
    save(made, out, form)
    _say(made, out)


def _say(made: GoldenSet, out: Path) -> None:
    """Print what the set holds and what it reaches, and does not."""
    from fqtsim.golden.coverage import total_coverage

    seeded = sum(case.is_large for case in made.cases)
    size = sum(file.stat().st_size for file in (out.rglob("*") if out.is_dir() else (out,)) if file.is_file())
    click.echo(f"written    {out}, {size / 1e6:.2f} MB")
    click.echo(f"cases      {len(made.cases)}, {seeded} of them as seed and digest")
    click.echo(f"hardware   {made.hardware.name}, SHA-256 {made.hardware_sha256[:16]}...; seed {made.seed}")
    for kind in dict.fromkeys(case.kind for case in made.cases):
        coverage = total_coverage(case for case in made.cases if case.kind == kind)
        click.echo(f"reached by {kind}:")
        for name, count in coverage.items():
            click.echo(f"  {name:{max(map(len, coverage))}}  {count or 'never'}")


@golden.command()
@click.argument("set_file", metavar="SET", type=click.Path(path_type=Path))
@click.option("--kernel", metavar="MODULE:FUNCTION", help="A Python function; or FILE.py:FUNCTION.")
@click.option(
    "--command",
    metavar="TEXT",
    help='A program: "./kernel {inputs} {outputs}" for npz, or for raw files '
    '"./gemm {a.0} {a.1} {b.1} {a} {b} {c} {codes}".',
)
@click.option("--outputs", type=click.Path(path_type=Path), help="A file of outputs that the kernel wrote before.")
@click.option("--case", "cases", multiple=True, metavar="PATTERN", help="Only cases whose name fits; may be repeated.")
@click.option("--no-large", is_flag=True, help=NO_LARGE)
@click.option("--layouts", is_flag=True, help="Run smaller GEMMs again with column-major operands.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
              help="Seconds for each case.")  # fmt: skip
@click.option("--page", type=click.Path(path_type=Path), help="Also write an HTML page here.")
def check(
    set_file: Path, kernel: str | None, command: str | None, outputs: Path | None, cases: tuple[str, ...],
    no_large: bool, layouts: bool, timeout: float, page: Path | None,
) -> int:  # fmt: skip
    """Run a kernel on every case of SET and compare each output code.

    Give one of --kernel, --command and --outputs. The exit code is 1 where an output differs.
    """
    from fqtsim.golden.check import check_file
    from fqtsim.golden.files import load
    from fqtsim.golden.vacuity import refuse_vacuous

    ways = {"--kernel": kernel, "--command": command, "--outputs": outputs}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1:
        raise InputError(f"{', '.join(given) or 'no kernel'}: give exactly one of {', '.join(ways)}")
    chosen = load(set_file)
    refuse_vacuous(chosen)
    kept = [case for case in chosen.cases if _wanted(case.name, cases) and not (no_large and case.is_large)]
    if not kept:
        asked = f"--case {', '.join(cases)}" if cases else "--no-large"
        raise InputError(f"{asked}: no case of {set_file} fits; leave it out, or make a set that has some")
    return check_file(replace(chosen, cases=tuple(kept)), kernel, command, outputs, timeout, page, layouts)


def _wanted(name: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
