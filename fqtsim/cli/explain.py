"""`fqtsim explain`: one output of a GEMM, step by step."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fqtsim.cli.npz import read_arrays
from fqtsim.cli.options import given_options
from fqtsim.cli.overrides import split_overrides
from fqtsim.errors import InputError
from fqtsim.words import GEMMS

if TYPE_CHECKING:
    import numpy as np


def read_operands(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays a, b and, where given, c of an .npz file. Raises InputError for any other content."""
    arrays = read_arrays(path)
    if not {"a", "b"} <= set(arrays) <= {"a", "b", "c"}:
        raise InputError(
            f"{path}: arrays {', '.join(arrays) or 'none'}: must be a, b and optionally c; "
            "write it with numpy.savez(path, a=a, b=b)"
        )
    return arrays


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--hardware", help="A shipped name or a file; a reproducer has its own.")
@click.option("--row", type=int, default=0, show_default=True, help="Row of the output.")
@click.option("--col", type=int, default=0, show_default=True, help="Column of the output.")
@click.option("--gemm", type=click.Choice(GEMMS), default="fprop", show_default=True, help="Which datapath.")
@click.option("--set", "overrides", multiple=True, metavar="hardware.KEY=V", help="Change one key of the file.")
@click.option("--all", "everything", is_flag=True, help="Print every addition, not those around the first event.")
def explain(
    file: Path, hardware: str | None, row: int, col: int, gemm: str, overrides: tuple[str, ...], everything: bool
) -> None:
    """Show every product and addition of one output of (M,K) x (K,N).

    FILE is an .npz with integer codes a (M,K), b (K,N) and optionally c, which starts the accumulator; or a
    .safetensors reproducer, which needs no option and may hold a float primitive instead.
    """
    from rich.console import Console

    from fqtsim.api.explain import SHOWN
    from fqtsim.api.explain import explain as explain_output
    from fqtsim.hw.load import load_hardware

    # Colour on a terminal; a fixed width elsewhere, so that a log does not depend on where it was written.
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    if file.suffix == ".safetensors":
        _refuse_options()
        _explain_reproducer(file, console, None if everything else SHOWN)
        return
    if hardware is None:
        raise InputError("--hardware: is required for an .npz; choose one of fqtsim hardware list")
    operands = read_operands(file)
    described = load_hardware(hardware, split_overrides(overrides, owners=("hardware",))["hardware"])
    a, b, c = operands["a"], operands["b"], operands.get("c")
    explanation = explain_output(a, b, described, row=row, col=col, gemm=gemm, c=c)
    console.print(explanation.table(None if everything else SHOWN))
    console.print(explanation.summary())


def _refuse_options() -> None:
    """Raise InputError for an option that a reproducer answers itself: it would do nothing."""
    given = given_options(click.get_current_context()) - {"file", "everything"}
    if given:
        name = sorted(given)[0]
        raise InputError(f"--{'set' if name == 'overrides' else name}: a reproducer has its own; leave it out")


def _explain_reproducer(file: Path, console: Any, shown: int | None) -> None:
    from fqtsim.crosscheck.reproducer import explanation, read, summary

    found = read(file)
    one = explanation(found)
    if one is not None:
        console.print(one.table(shown))
        console.print(one.summary())
    click.echo(summary(found))
