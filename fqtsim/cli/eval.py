"""`fqtsim eval`: the accuracy of a checkpoint on described hardware, forward only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fqtsim.cli.options import config_of, forward_options

if TYPE_CHECKING:
    from fqtsim.evaluate.accuracy import Evaluation, LayerResult

#: The words of fqtsim.train.ranges.Ranges, whose import would make --help wait for torch.
RANGES = ("batch", "calibrated", "running")


@click.command()
@click.option(
    "--checkpoint",
    "start",
    metavar="FILE",
    required=True,
    help="Weights: .safetensors (also a run's checkpoint), or a torch state dict.",
)
@forward_options
@click.option(
    "--ranges",
    type=click.Choice(RANGES),
    default="batch",
    show_default=True,
    help="Of activation quantizers: each batch's own; extremes over training images; their moving average.",
)
@click.option(
    "--calibration-images",
    type=click.IntRange(min=1),
    help="Training images that fix the ranges [1024, or all if fewer].",
)
@click.option(
    "--backend", default="emulator", show_default=True, help="reference, stepwise, emulator or native, as for train."
)
def eval(ranges: str, calibration_images: int | None, **options: Any) -> int:
    """Evaluate a checkpoint on described hardware: forward passes over the test images, no training."""
    from rich.console import Console

    from fqtsim.evaluate.accuracy import evaluate_checkpoint

    config = config_of(options)
    with Console(stderr=True).status("reading") as status:
        result = evaluate_checkpoint(config, ranges, calibration_images, status.update)
    for note in result.notes:
        click.echo(f"weights    {note}", err=True)
    _say(result)
    return 0


def _say(result: Evaluation) -> None:
    from fqtsim.train.intervals import show_share

    share = show_share(int(result.right.sum()), len(result.right))
    click.echo(f"accuracy   {share} of {len(result.right)} test images (95 % interval)")
    click.echo(f"ranges     {_ranges(result)}")
    reasons = "; ".join(result.batch_matters)
    effect = f"the accuracy depends on the batch: {reasons}" if reasons else "the accuracy does not depend on the batch"
    click.echo(f"batch      {result.batch} images; {effect}")
    rows = [layer.events for layer in result.layers if layer.events is not None]
    totals = {key: sum(row[key] for row in rows) for key in ("outputs", "altered", "out_of_range", "transient")}
    click.echo(
        f"hardware   altered {totals['altered']} of {totals['outputs']} outputs "
        f"({totals['out_of_range']} out of range, {totals['transient']} transient)"
    )
    click.echo(f"digest     {result.digest}")
    click.echo(f"checkpoint SHA-256 {result.checkpoint_sha256}")
    if result.layers:
        click.echo()
        _table([_HEAD, *(_row(layer) for layer in result.layers)])


def _ranges(result: Evaluation) -> str:
    """Return which ranges were used and what made them."""
    from fqtsim.train.ranges import MOMENTUM

    made = result.calibration
    if not result.layers:
        return "none: the recipe quantizes no activation"
    if made is None and not result.own_ranges:
        return "hindsight: those that training left in the checkpoint (--ranges calibrated or running measures others)"
    if made is None:
        return "batch: minimum and maximum of each batch (--ranges calibrated or running fixes them)"
    how = f"momentum {MOMENTUM:g} per batch" if result.ranges == "running" else "minimum and maximum"
    return (
        f"{result.ranges}: {how} over {made.images} training images in batches of {made.batch}, "
        f"in the order of seed {made.seed}"
    )


_HEAD = ("layer", "minimum", "maximum", "clamped", "activations", "altered", "transient", "outputs", "bits needed")


def _row(layer: LayerResult) -> tuple[str, ...]:
    low, high = layer.range
    events = layer.events or {}
    counts = (str(events.get(key, "float")) for key in ("altered", "transient", "outputs", "bits_needed"))
    return (layer.name, f"{low:.6g}", f"{high:.6g}", str(layer.clamped), str(layer.activations), *counts)


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True)]
        click.echo("  ".join([f"{first:<{widths[0]}}", *cells]))
