"""`fqtsim analyze`: bias and variance of low-bit gradients, on a network, data, recipe and hardware of your own.

The estimand is in fqtsim.analysis.batch, the statistics are in fqtsim.analysis.statistics. Everything is measured part
by part (fqtsim.analysis.store), so that an analysis that was killed goes on, and analyses of other batches or repeats
can be put together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fqtsim.analysis.batch import (
    MOST_BATCHES,
    MOST_COORDINATES,
    MOST_REPEATS,
    RANDOM_SOURCES,
    Plan,
    measure_batch,
    measure_reference,
    measure_variance,
)
from fqtsim.analysis.decompose import TOGGLE_ORDER
from fqtsim.analysis.result import Analysis, CurvePoint
from fqtsim.analysis.store import Part, State, write_result
from fqtsim.analysis.summary import BATCH, REFERENCE, curve_kind, part_name, summarize
from fqtsim.analysis.tape import gemm_layers
from fqtsim.data.batches import training_batch
from fqtsim.errors import InputError, TrainingStopped
from fqtsim.train.config import Resolved, TrainConfig, build_trainer, resolve
from fqtsim.train.digest import state_digest
from fqtsim.train.module import FQTModule

Point = tuple[str, str, int]
#: Told (passes done, passes in all, what is measured).
Progress = Callable[[int, int, str], None]
Name = str | os.PathLike[str]

ESTIMAND = {
    "reference": "same batch, same forward codes and fprop hardware; gradients not quantized, accumulators unlimited",
    "gradient quantization": "quantized gradients, dgrad and wgrad unlimited, less the reference",
    "backward hardware": "quantized gradients, the hardware as given, less the same with dgrad and wgrad unlimited",
    "forward hardware": "the reference, less the same with an unlimited fprop",
    "all": "quantized gradients, the hardware as given, less the reference: the first two together",
    "bias": "squared norm of the mean error over random words, at fixed batch and forward codes, averaged over batches",
    "margin": "a share of the norm of the reference gradient; not 0: stochastic rounding with n random bits is itself "
    "up to 2^-n of a step low",
    "quantization variance": "of `gradient quantization` over random words, at fixed batch and forward codes, summed "
    "over elements, averaged over batches",
    "mini-batch variance": "of the reference's weight gradients between batches, summed over elements",
    "curve": "quantization variance, Q_b2 as the point says, Q_b1 and the rest as the recipe says",
    "bounds": "variance of one quantizer on the output gradient that it met in the first repeat of each batch",
}
#: Batches for the variance between batches, where fewer are analysed.
REFERENCE_BATCHES = 10
#: Blocks of repeats for the jackknife, about.
BLOCKS = 10


def curve_points(
    quantizers: Sequence[str] = ("ptq", "psq", "bhq"),
    zeros: Sequence[str] = ("aligned", "float_offset"),
    bits: Sequence[int] = (8, 7, 6, 5, 4),
) -> list[Point]:
    """Return every point (quantizer, zero form, bits) of a curve."""
    return [(quantizer, zero, width) for quantizer in quantizers for zero in zeros for width in bits]


@dataclass(frozen=True)
class Request:
    """What to analyse, and how; `analyze` makes one from its arguments."""

    #: Model, data, recipe, hardware, backend, seed, batch, and the checkpoint as `start`.
    config: TrainConfig
    #: Numbers of the batches, in the order of the training set's first epoch, and of the repeats.
    batches: range = range(4)
    repeats: range = range(100)
    margin: float = 0.01
    confidence: float = 0.95
    #: Repeats that are decomposed; 0: none.
    decomposition: int = 0
    #: Draws for each quantizer's own variance; 0: none.
    bounds: int = 8
    curve: tuple[Point, ...] = ()
    #: Repeats for each point of the curve, the first ones.
    curve_repeats: int = 10
    #: Batch norm and dropout as in evaluation, as in the paper's variance figure.
    eval_mode: bool = False
    coordinates: int = MOST_COORDINATES
    #: Repeats in a block; None: a tenth of them.
    block: int | None = None
    keep_sums: bool = False

    def plan(self) -> Plan:
        """Return what is measured on each batch. Raises InputError for what cannot be meant."""
        for key, numbers, least, most in (
            ("batches", self.batches, 1, MOST_BATCHES),
            ("repeats", self.repeats, 4, MOST_REPEATS),
        ):
            if len(numbers) < least or numbers.step != 1 or numbers.start < 0 or numbers.stop > most:
                raise InputError(f"{key} = {numbers}: must be {least}..{most} consecutive numbers; ask for {least}")
        if not 0 < self.margin < 1 or not 0.5 <= self.confidence < 1:
            rule = "margin must be in 0..1 and confidence in 0.5..1; 0.01 and 0.95 are usual"
            raise InputError(f"margin = {self.margin}, confidence = {self.confidence}: {rule}")
        if not 1 <= self.coordinates <= MOST_COORDINATES:
            raise InputError(f"coordinates = {self.coordinates}: must be 1..{MOST_COORDINATES}; leave it out")
        if self.bounds == 1 or self.bounds < 0 or self.bounds > MOST_REPEATS // 2:
            raise InputError(f"bounds = {self.bounds}: must be 0 or at least 2 draws; 8 are usual")
        block = self.block or -(-len(self.repeats) // BLOCKS)
        small = min(block, -(-self.decomposition // BLOCKS)) or 1
        if self.repeats.start % block or len(self.repeats) < 4 * block:
            raise InputError(
                f"block = {block}: repeats = {self.repeats} must begin at a multiple of it and hold four; use 1"
            )
        if self.decomposition and not 4 <= self.decomposition <= len(self.repeats):
            rule = f"must be 4..{len(self.repeats)}, the repeats, or 0"
            raise InputError(f"decomposition = {self.decomposition}: {rule}; 20 are usual")
        return Plan(
            tuple(self.repeats), block, self.coordinates, self.decomposition, small, self.bounds, self.keep_sums
        )

    def curve_plan(self) -> Plan:
        """Return what is measured on each batch for a point of the curve."""
        if self.curve_repeats < 4:
            raise InputError(f"curve_repeats = {self.curve_repeats}: must be at least 4; 10 are usual")
        return Plan(tuple(self.repeats[: self.curve_repeats]), 1, self.coordinates, keep_sums=self.keep_sums)

    @property
    def references(self) -> list[int]:
        """Numbers of the batches that only the variance between batches needs."""
        return [number for number in range(REFERENCE_BATCHES) if number not in self.batches]

    def settings(self, resolved: Resolved, net: FQTModule) -> dict[str, Any]:
        """Return everything that decides the result, as JSON has it."""
        from fqtsim import __version__

        plan, config, plain = self.plan(), self.config, resolved.as_plain()
        weights = {name: tensor.cpu().numpy() for name, tensor in net.state_dict().items()}
        settings = {
            "version": __version__, "model": config.model, "data": config.data, "recipe": config.recipe,
            "hardware": config.hardware, "set_recipe": dict(config.set_recipe),
            "set_hardware": dict(config.set_hardware), "seed": config.seed, "batch": config.batch,
            "checkpoint": config.start, "step": _step(resolved),
            "notes": [] if resolved.weights is None else list(resolved.weights.notes),
            "batches": len(self.batches), "repeats": len(self.repeats), "batch_numbers": list(self.batches),
            "repeat_numbers": list(self.repeats), "block": plan.block, "margin": self.margin,
            "confidence": self.confidence,
            "bias_family": f"Bonferroni over layers, gemms and {len(RANDOM_SOURCES)} random sources; two-sided; "
            "delete-one-block jackknife, Student's t; upper end by inversion", "variance_confidence": 0.95,
            "estimand": ESTIMAND, "toggle_order": TOGGLE_ORDER, "decomposition": plan.decomposition,
            "bounds": self.bounds, "curve": self.curve, "curve_repeats": self.curve_repeats,
            "eval_mode": self.eval_mode, "coordinates": self.coordinates,
            "coordinates_are": "all elements up to so many; beyond, a count sketch: relative standard error of a "
            "squared norm at most sqrt(2 / coordinates)", "keep_sums": self.keep_sums,
            "digests": {"weights": state_digest(weights, False).hex, "data": resolved.data.hash},
            "files": {"recipe": plain["recipe"], "hardware": plain["hardware"]},
        }  # fmt: skip
        normal: dict[str, Any] = json.loads(json.dumps(settings))
        return normal


def _step(resolved: Resolved) -> int | None:
    """Return the step of a training state, None where the weights do not say one."""
    notes = [] if resolved.weights is None else resolved.weights.notes
    words = next((note for note in notes if "training state at step" in note), "").split()
    return next((int(word.rstrip(",")) for word in words if word.rstrip(",").isdecimal()), None)


@dataclass
class _Counter:
    """Passes done, told to whoever wants to know."""

    total: int
    tell: Progress
    done: int = 0
    what: str = field(default="")

    def tick(self, passes: int = 1) -> None:
        self.done += passes
        self.tell(self.done, self.total, self.what)


def build_net(config: TrainConfig, eval_mode: bool) -> tuple[Resolved, FQTModule]:
    """Return what a configuration names and its network, with the weights of `config.start`. Raises InputError."""
    resolved = resolve(replace(config, steps=1, epochs=None))
    net = build_trainer(resolved).net
    net.train(not eval_mode)
    return resolved, net


def run_request(
    request: Request, out: Path | None = None, resume: bool = False, on_progress: Progress | None = None
) -> Analysis:
    """Measure what is not measured yet, and return the findings; see `analyze`."""
    plan = request.plan()
    resolved, net = build_net(request.config, request.eval_mode)
    if net.recipe.port("grad_for_wgrad") is None and net.recipe.port("grad_for_dgrad") is None:
        raise InputError(
            f"recipe = {request.config.recipe}: leaves the gradients float, so there is nothing to analyse; "
            "use a recipe with gradient quantizers, for example bhq5"
        )
    state = State.open(request.settings(resolved, net), out, resume)
    passes = len(gemm_layers(net)) - 1
    per_batch = 1 + len(plan.repeats) + passes * plan.decomposition
    per_point = len(request.curve_plan().repeats)
    total = (
        len(request.batches) * per_batch
        + len(request.references)
        + len(request.curve) * len(request.batches) * per_point
    )
    counter = _Counter(total, on_progress or (lambda done, total, what: None))

    def batch_of(number: int) -> tuple[Any, Any]:
        return training_batch(resolved.data, request.config.seed, number, request.config.batch)

    def part(name: str, passes: int, measure: Callable[[], Part]) -> None:
        counter.what = name
        start = counter.done
        state.once(name, measure)
        if counter.done < start + passes:  # it was there, or tells nobody
            counter.tick(start + passes - counter.done)

    for number in request.batches:
        x, y = batch_of(number)
        part(part_name(BATCH, number), per_batch, partial(measure_batch, net, x, y, number, plan, counter.tick))
    for number in request.references:
        x, y = batch_of(number)
        part(part_name(REFERENCE, number), 1, partial(measure_reference, net, x, y, number, plan.coordinates))
    for point in request.curve:
        _measure_point(request, point, state, counter)
    analysis = summarize(state.settings, state.parts)
    if out is not None:
        write_result(analysis, out)
    return analysis


def _measure_point(request: Request, point: Point, state: State, counter: _Counter) -> None:
    """Measure one point of the curve on every batch; where its quantizer stops the step, say why."""
    plan, kind = request.curve_plan(), curve_kind(point)
    names = [part_name(kind, number) for number in request.batches]
    counter.what, end = kind, counter.done + len(names) * len(plan.repeats)
    if all(name in state.parts for name in names):
        counter.tick(end - counter.done)
        return
    try:
        resolved, net = build_net(_at_point(request.config, point), request.eval_mode)
        for name, number in zip(names, request.batches, strict=True):
            x, y = training_batch(resolved.data, request.config.seed, number, request.config.batch)
            start = counter.done
            state.once(name, partial(measure_variance, net, x, y, number, plan, counter.tick))
            counter.done = start + len(plan.repeats)
    except (TrainingStopped, InputError) as error:
        why = Part({}, {"stopped": str(error)})
        state.parts |= dict.fromkeys(names, why)
        state.save()
        counter.tick(end - counter.done)


def _at_point(config: TrainConfig, point: Point) -> TrainConfig:
    """Return the configuration with another Q_b2; everything else, Q_b1 too, is the recipe's."""
    quantizer, zero, bits = point
    spec = f"{{quantizer: {quantizer}, bits: {bits}, rounding: stochastic, zero: {zero}}}"
    kept = {key: value for key, value in config.set_recipe.items() if not key.startswith("grad_for_dgrad")}
    return replace(config, set_recipe={**kept, "grad_for_dgrad": spec})


def variance_curve(request: Request, points: Sequence[Point], on_progress: Progress | None = None) -> list[CurvePoint]:
    """Return the quantization variance of the weight gradients at each point, at the request's weights.

    R1 - R0 of fqtsim.analysis.batch, with Q_b2 as the point says and everything else the recipe's; summed over layers.
    A point whose quantizer cannot make a step has `stopped`, for example the NaN hole of the authors' PTQ.
    """
    from fqtsim.analysis.summary import curve_point, parts_of

    asked = replace(request, curve=tuple(points))
    state = State({}, {}, None)
    total = len(points) * len(request.batches) * len(request.curve_plan().repeats)
    counter = _Counter(total, on_progress or (lambda done, total, what: None))
    for point in asked.curve:
        _measure_point(asked, point, state, counter)
    return [curve_point(point, parts_of(state.parts, curve_kind(point))) for point in asked.curve]


def analyze(
    model: str,
    data: str,
    recipe: Name,
    hardware: Name | Sequence[Name],
    checkpoint: Name | None = None,
    *,
    seed: int = 0,
    batch: int = 64,
    batches: int | range = 4,
    repeats: int | range = 100,
    margin: float = 0.01,
    confidence: float = 0.95,
    backend: str = "emulator",
    out: Name | None = None,
    resume: bool = False,
    decomposition: bool | int = 20,
    bounds: int = 8,
    curve: Sequence[Point] | None = None,
    curve_repeats: int = 10,
    eval_mode: bool = False,
    coordinates: int = MOST_COORDINATES,
    block: int | None = None,
    keep_sums: bool = False,
    set_hardware: dict[str, str] | None = None,
    set_recipe: dict[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Analysis:
    """Measure bias and variance that low-bit gradients have at a checkpoint, source by source and layer by layer.

    `model`, `data`, `recipe`, `hardware`, `set_...` as in fqtsim.train.config.TrainConfig; `checkpoint` is a file of
    weights (None: the model's initialisation). `margin` is what counts as no bias: its square times the squared norm
    of the reference gradient. `repeats` draws of the random words on each of `batches`, or the numbers of both as
    ranges, which other analyses can be merged with (`merge`; for repeats of one batch with `keep_sums`).
    `decomposition` is how many repeats are decomposed, or all (True) or none (False). `curve` None is all of
    `curve_points()`, () none, each with `curve_repeats`.
    With `out`, OUT/analysis.safetensors keeps what is measured, for `resume`, and OUT/analysis.json is the result.
    Raises InputError for what cannot be meant, TrainingStopped for NaN and infinity.
    """
    names = (hardware,) if isinstance(hardware, str | os.PathLike) else tuple(hardware)
    config = TrainConfig(
        model, data, os.fspath(recipe), tuple(os.fspath(name) for name in names), backend, seed, batch=batch,
        set_hardware=dict(set_hardware or {}), set_recipe=dict(set_recipe or {}),
        start=None if checkpoint is None else os.fspath(checkpoint),
    )  # fmt: skip
    whole = len(_numbers(repeats))
    points = curve_points() if curve is None else [(quantizer, zero, bits) for quantizer, zero, bits in curve]
    request = Request(
        config, _numbers(batches), _numbers(repeats), margin, confidence,
        whole if decomposition is True else min(int(decomposition), whole),
        bounds, tuple(points), curve_repeats, eval_mode, coordinates, block, keep_sums,
    )  # fmt: skip
    return run_request(request, None if out is None else Path(out), resume, on_progress)


def _numbers(given: int | range) -> range:
    return given if isinstance(given, range) else range(given)


def merge(analyses: Sequence[Name], out: Name | None = None) -> Analysis:
    """Return the findings of several analyses together, given by their folders: bit for bit those of one pass.

    They may differ in batches, and where all were made with `keep_sums` in repeats of the same batches. With `out`,
    both files of the merged analysis are written there. Raises InputError where anything else differs.
    """
    from fqtsim.analysis.store import STATE

    if not analyses:
        raise InputError("analyses: none given; name the folders of at least one")
    states = [State.read(Path(folder) / STATE) for folder in analyses]
    whole = states[0]
    for state in states[1:]:
        whole = whole.merge(state)
    analysis = summarize(whole.settings, whole.parts)
    if out is not None:
        fresh = State.open(whole.settings, Path(out), resume=False)
        fresh.parts = whole.parts
        fresh.save()
        write_result(analysis, Path(out))
    return analysis
