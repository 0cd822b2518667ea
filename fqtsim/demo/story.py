"""The demo from the first line to the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Grid

from fqtsim.crosscheck import Report
from fqtsim.demo import opening, picture, silicon, variance
from fqtsim.demo.runs import BASE, Outcome, train_one, verdict
from fqtsim.train.config import TrainConfig, resolve

#: (recipe, hardware), in the order of the table; fp32 runs nothing on the hardware, and QAT no gradient. Sixteen bits
#: alter one output in eight, and training bears it.
RUNS = (
    ("fp32", "int8_acc32_wrap"),
    ("qat", "int8_acc32_wrap"),
    ("bhq5", "int8_acc32_wrap"),
    ("bhq5", "int8_acc24_saturate"),
    ("bhq5", "int8_acc20_tree4"),
    ("bhq5", "int8_acc16_saturate"),
    ("bhq5", "int8_acc12_saturate"),
)
FP32, QAT, WIDE = 0, 1, 2
BASELINES = ("fp32", "qat")


@dataclass
class Story:
    """The demo's parts, in order; each prints itself."""

    console: Console
    out: Path
    epochs: int

    @property
    def base(self) -> TrainConfig:
        return replace(BASE, epochs=self.epochs)

    def folder(self, config: TrainConfig) -> Path:
        """Return where a run's folder is."""
        return self.out / "-".join([config.recipe, *config.hardware])

    def say(self, text: str) -> None:
        """Print a line that a terminal wraps, and a file does not."""
        self.console.print(text, soft_wrap=True, highlight=False)

    def tell(self) -> bool:
        """Run the whole demo. Return whether every cross-check passed."""
        start = time.perf_counter()
        opening.show(self.console)
        outcomes = self.train()
        whole, saturating = self.check(outcomes)
        self.show_variance(outcomes)
        self.end(outcomes, whole, saturating)
        self.say(f"\n{time.perf_counter() - start:.0f} s; everything is in {self.out}")
        return whole.passed and (isinstance(saturating, str) or saturating.passed)

    def train(self) -> list[Outcome]:
        """Train every run and print the table."""
        steps = resolve(self.base).steps
        self.say(
            f"[bold]Training[/bold] a CNN on the digits, {steps} steps of {self.base.batch} images, {len(RUNS)} times:"
        )
        outcomes = []
        with self.progress("training", steps * len(RUNS)) as advance:
            for recipe, hardware in RUNS:
                config = replace(self.base, recipe=recipe, hardware=(hardware,))
                outcomes.append(train_one(config, self.folder(config), advance))
        grid = Grid(box=None)
        for name in ("run", "accuracy, 95 % interval", "altered outputs", "time"):
            grid.add_column(name, justify="left" if name == "run" else "right")
        for outcome in outcomes:
            altered = "" if outcome.config.recipe in BASELINES else str(outcome.total("altered"))
            grid.add_row(outcome.label, outcome.share, altered, f"{outcome.seconds:.1f} s")
        self.console.print(grid)
        self.console.print()
        return outcomes

    def check(self, outcomes: list[Outcome]) -> tuple[Report, Report | str]:
        """Cross-check the run on the wrapping accumulator, and one layer on a saturating instruction."""
        self.say(
            f"[bold]Cross-checking[/bold] the run on int8_acc32_wrap: stepwise against native "
            f"({silicon.native_executor()}), every GEMM:"
        )
        with self.progress("comparing", len(outcomes[0].losses)) as advance:
            whole = silicon.whole_run(self.base, advance)
        self.say(str(whole))
        self.say(
            f"\n[bold]Cross-checking saturation[/bold]: {silicon.SATURATING_LAYER} on {silicon.SATURATING}, "
            "stepwise against the instruction itself:"
        )
        with self.progress("comparing", silicon.STEPS) as advance:
            saturating = silicon.saturating_layer(self.base, advance)
        self.say(str(saturating))
        self.console.print()
        return whole, saturating

    def show_variance(self, outcomes: list[Outcome]) -> None:
        """Print the variance that each gradient quantizer adds."""
        self.say(
            "[bold]Variance of the gradient[/bold] that its quantizer adds, over the variance of mini-batches, "
            "at the weights of the qat run:"
        )
        qat = outcomes[QAT].config
        weights = variance.weights_of(self.folder(qat) / "checkpoint.safetensors", qat)
        count = len(variance.QUANTIZERS) * len(variance.BITS) * variance.BATCHES
        with self.progress("drawing", count) as advance:
            table = variance.measure(self.base, weights, advance)
        grid = Grid(box=None)
        grid.add_column("weights of")
        for recipe in table.recipes:
            grid.add_column(recipe, justify="right")
        for layer in table.layers:
            grid.add_row(layer, *(f"{table.ratios[recipe][layer]:.2g}" for recipe in table.recipes))
        self.console.print(grid)
        self.say("PTQ here is the paper's per-tensor quantizer. The last layer sees 8 bits in every column.\n")

    def end(self, outcomes: list[Outcome], whole: Report, saturating: Report | str) -> None:
        """Print the verdicts, what they rest on, and where the picture is."""
        self.say("[bold]Verdict[/bold] (one seed; +- is the 95 % interval of 360 paired test images)")
        for outcome in outcomes:
            if outcome.config.recipe not in BASELINES:
                self.say(f"  {verdict(outcome, outcomes[FP32], outcomes[WIDE])}")
        for name, report in (("int8_acc32_wrap", whole), (silicon.SATURATING, saturating)):
            self.say(f"  cross-check, {name}: {_coverage(report)}")
        path = self.out / "demo.png"
        drawn = picture.draw(outcomes, path)
        self.say(f"  picture: {path}" if drawn else "  no picture: pip install 'fqtsim[demo]'")

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar that goes away; give the function that moves it."""
        with Progress(console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)


def _coverage(report: Report | str) -> str:
    if isinstance(report, str):
        return report
    word = "equal" if report.passed else "DIFFERENT"
    coverage = report.coverage
    return (
        f"{word} in {coverage.outputs} outputs of {sum(coverage.gemms.values())} GEMMs and {coverage.steps} "
        f"states; {coverage.events.altered} of them altered, {coverage.at_rail} at a rail, "
        f"{coverage.ties} ties"
    )


def next_folder(parent: Path) -> Path:
    """Return parent/demo-N with the first N that is free."""
    return next(path for n in range(1, 10**6) if not (path := parent / f"demo-{n}").exists())
