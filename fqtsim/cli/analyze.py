"""`fqtsim analyze`: where low-bit gradients are biased and how much variance they add, layer by layer."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from fqtsim.cli.options import config_of, forward_options
from fqtsim.errors import InputError, MissingPackage


@click.command()
@forward_options
@click.option(
    "--checkpoint", "start", metavar="FILE", help="Weights to analyse at: .safetensors (also a run's checkpoint), or a "
    "torch state dict [the initialisation].",
)  # fmt: skip
@click.option("--backend", default="emulator", show_default=True, help="reference, stepwise, emulator or native.")
@click.option("--batches", type=click.IntRange(1, 1 << 16), default=4, show_default=True, help="Batches to average.")
@click.option(
    "--repeats", type=click.IntRange(4, 1 << 16), default=100, show_default=True, help="Draws of the random words on "
    "each batch.",
)  # fmt: skip
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.01,
    show_default=True,
    help="Bias that counts as none, as a share of the norm of the reference gradient.",
)
@click.option(
    "--confidence", type=click.FloatRange(0.5, 1, max_open=True), default=0.95, show_default=True, help="Of all "
    "verdicts together.",
)  # fmt: skip
@click.option(
    "--decomposition", type=click.IntRange(min=0), default=20, show_default=True, help="Repeats that are split by "
    "quantizer (Theorem 2 of the paper); 0: none.",
)  # fmt: skip
@click.option("--bits", metavar="N..M", help="Also the variance of ptq, psq and bhq at these widths, as in 4..8.")
@click.option("--eval-mode", is_flag=True, help="Batch norm by its running statistics, as in the paper's figure.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for analysis.json, analysis.html and --resume.",
)
@click.option("--resume", is_flag=True, help="Go on with what --out holds.")
@click.option("--detail", is_flag=True, help="Print every row.")
def analyze(**options: Any) -> int:
    """Measure bias and variance of the gradients: by quantization, by dgrad and wgrad hardware, by fprop hardware."""
    out, detail, resume = options.pop("out"), options.pop("detail"), options.pop("resume")
    if resume and out is None:
        raise InputError("--resume: needs the folder of the analysis; add --out FOLDER")
    request = _request(options)
    from rich.console import Console

    from fqtsim.analysis.measure import run_request
    from fqtsim.analysis.table import show

    try:
        with _Bar(Console(stderr=True)) as bar:
            analysis = run_request(request, out, resume, bar.show)
    except KeyboardInterrupt:
        if out is not None:
            click.echo(f"interrupted; go on with the same command and --resume: {out}", err=True)
        return 130
    show(analysis, Console(), detail)
    if out is not None:
        click.echo(f"result     {out / 'analysis.json'}")
        _write_page(analysis, out / "analysis.html")
    return 0


def _write_page(analysis: Any, path: Path) -> None:
    from fqtsim.analysis.page import write_page

    try:
        write_page(analysis, path, shlex.join(["fqtsim", *sys.argv[1:]]))
    except MissingPackage as error:
        click.echo(f"no page    {error}")
    else:
        click.echo(f"page       {path}")


def _request(options: dict[str, Any]) -> Any:
    """Return what to analyse. Raises InputError for what cannot be meant."""
    from fqtsim.analysis.measure import Request, curve_points

    own = {name: options.pop(name) for name in ("margin", "confidence", "eval_mode")}
    widths = _widths(options.pop("bits"))
    batches, repeats = range(options.pop("batches")), range(options.pop("repeats"))
    decomposition = min(options.pop("decomposition"), len(repeats))
    curve = tuple(curve_points(bits=widths)) if widths else ()
    return Request(config_of(options), batches, repeats, decomposition=decomposition, curve=curve, **own)


def _widths(text: str | None) -> list[int]:
    """Return the widths of `4..8`, `5` or `4,6,8`, widest first. Raises InputError for any other text."""
    from fqtsim.evaluate.grid import values

    if text is None:
        return []
    found = values(text, f"--bits {text}")
    if not all(value.isascii() and value.isdecimal() and 2 <= int(value) <= 8 for value in found):
        raise InputError(f"--bits {text}: must be widths of 2..8 bits; write 4..8, or 4,6,8")
    return sorted({int(value) for value in found}, reverse=True)


class _Bar:
    """Progress in backward passes on a terminal."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        self._task = self._bar.add_task("backward passes", total=None)

    def show(self, done: int, total: int, what: str) -> None:
        self._bar.update(self._task, completed=done, total=total, description=what)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
