"""`fqtsim explain`: one output of a GEMM, step by step."""

from __future__ import annotations

import sys
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fqtsim.cli.overrides import split_overrides
from fqtsim.errors import InputError
from fqtsim.words import GEMMS

if TYPE_CHECKING:
    import numpy as np

#: Arrays larger than this in an .npz are refused before they are read.
MAX_ARRAY_BYTES = 1 << 30

#: What zipfile, zlib and NumPy raise for bytes that are no .npz of numbers; a header may claim any shape.
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError, ValueError, EOFError, OSError, MemoryError,
    NotImplementedError, RuntimeError, KeyError,
)  # fmt: skip


def read_operands(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return arrays a, b and, where given, c of an .npz file. Raises InputError for any other content."""
    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.file_size > MAX_ARRAY_BYTES:
                    raise InputError(f"{path}: {info.filename} has {info.file_size} bytes: must be at most 1 GiB")
        with np.load(path, allow_pickle=False) as stored:
            unknown = sorted(set(stored.files) - {"a", "b", "c"})
            missing = sorted({"a", "b"} - set(stored.files))
            if unknown or missing:
                raise InputError(
                    f"{path}: arrays {', '.join(stored.files) or 'none'}: must be a, b and optionally c; "
                    "write it with numpy.savez(path, a=a, b=b)"
                )
            return {name: stored[name] for name in stored.files}
    except _DAMAGE as error:
        if isinstance(error, InputError | FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise InputError(f"{path}: not a readable .npz of numbers ({error}); write it with numpy.savez") from error


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--hardware", required=True, help="A shipped name or a file.")
@click.option("--row", type=int, default=0, show_default=True, help="Row of the output.")
@click.option("--col", type=int, default=0, show_default=True, help="Column of the output.")
@click.option("--gemm", type=click.Choice(GEMMS), default="fprop", show_default=True, help="Which datapath.")
@click.option("--set", "overrides", multiple=True, metavar="hardware.KEY=V", help="Change one key of the file.")
@click.option("--all", "everything", is_flag=True, help="Print every addition, not those around the first event.")
def explain(
    file: Path, hardware: str, row: int, col: int, gemm: str, overrides: tuple[str, ...], everything: bool
) -> None:
    """Show every product and addition of one output of (M,K) x (K,N).

    FILE is an .npz with integer codes a (M,K), b (K,N) and optionally c, which starts the accumulator.
    """
    from rich.console import Console

    from fqtsim.api.explain import SHOWN
    from fqtsim.api.explain import explain as explain_output
    from fqtsim.hw.load import load_hardware

    operands = read_operands(file)
    described = load_hardware(hardware, split_overrides(overrides, owners=("hardware",))["hardware"])
    a, b, c = operands["a"], operands["b"], operands.get("c")
    explanation = explain_output(a, b, described, row=row, col=col, gemm=gemm, c=c)
    # Colour on a terminal; a fixed width elsewhere, so that a log does not depend on where it was written.
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    console.print(explanation.table(None if everything else SHOWN))
    console.print(explanation.summary())
