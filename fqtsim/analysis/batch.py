"""What one batch tells: errors of its gradients under the hardware, without its limits, and without quantizers.

Four ways back from one forward pass (R0..R2) and one from another (R3); the estimand is what their differences say:
- R0, the reference: this batch, the forward codes and fprop hardware of the network, gradients not quantized, and
  accumulators without limits: the platform's float GEMM on the values that the codes denote;
- R1: gradient quantizers as given, dgrad and wgrad on datapaths of one level {terms: all, register: exact};
- R2: gradient quantizers and hardware as given, with the random words of R1;
- R3: R0 with an fprop of one exact level, so that the forward pass differs too.
`gradient quantization` is R1 - R0, `backward hardware` R2 - R1, `all` R2 - R0, their sum. `forward hardware`, R0 - R3,
has no random words but those of a stochastic forward quantizer or of dropout, which are fixed for each batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fqtsim.analysis.bounds import Meter
from fqtsim.analysis.decompose import passes
from fqtsim.analysis.gradients import FIRST_DRAW
from fqtsim.analysis.statistics import Floats, Moments, sketch
from fqtsim.analysis.store import Part
from fqtsim.analysis.tape import GRADIENT_PORTS, Gradients, Tape, backward_as, gemm_layers, host
from fqtsim.errors import InputError
from fqtsim.train.module import FQTModule

QUANTIZATION, BACKWARD, FORWARD, ALL = "gradient quantization", "backward hardware", "forward hardware", "all"
RANDOM_SOURCES = (QUANTIZATION, BACKWARD, ALL)

#: Each batch has 2**16 step indices: repeats first, then the draws of the bounds, then the forward pass.
_DRAWS = 16
MOST_REPEATS = _FIRST_OF_BOUNDS = 1 << (_DRAWS - 1)
_FORWARD = (1 << _DRAWS) - 1
MOST_BATCHES = 1 << (31 - _DRAWS)
#: Most numbers that stand for one gradient: beyond, it is a sketch of them.
MOST_COORDINATES = 1 << 16


@dataclass(frozen=True)
class Plan:
    """What is measured on each batch."""

    #: Numbers of the repeats; each selects its random words.
    repeats: tuple[int, ...]
    #: Repeats in a block of the jackknife.
    block: int
    #: Numbers that stand for one gradient, see `sketch`.
    coordinates: int = MOST_COORDINATES
    #: The first so many repeats are decomposed, in blocks of their own length; 0: none.
    decomposition: int = 0
    small_block: int = 1
    #: Draws for the measured variance of each quantizer; 0: none.
    bounds: int = 8
    #: Keep the sums of the errors, so that more repeats of a batch can be merged.
    keep_sums: bool = False


def draw_of(batch: int, repeat: int) -> int:
    """Return the step index of a repeat of a batch: no training run has used it."""
    if not (0 <= batch < MOST_BATCHES and 0 <= repeat <= _FORWARD):
        raise InputError(f"batch = {batch}, repeat = {repeat}: must be below {MOST_BATCHES} and {MOST_REPEATS}")
    return FIRST_DRAW + (batch << _DRAWS) + repeat


def all_ports(net: FQTModule) -> list[tuple[str, str]]:
    """Return every gradient port (layer, port)."""
    return [(layer.name, port) for layer in gemm_layers(net) for port in GRADIENT_PORTS]


def places_of(gradients: Gradients, net: FQTModule) -> list[tuple[str, str]]:
    """Return (layer, gemm) of every gradient: of the weights in forward order, then of the inputs."""
    keys = [(layer.name, gemm) for gemm in ("wgrad", "dgrad") for layer in gemm_layers(net)]
    return [key for key in keys if key in gradients]


class _Sketches:
    """Gradients of one network as vectors, in one order."""

    def __init__(self, places: list[tuple[str, str]], coordinates: int) -> None:
        self.places, self.coordinates = places, coordinates

    def __call__(self, gradients: Gradients) -> list[Floats]:
        return [sketch(host(gradients[place]), self.coordinates) for place in self.places]


def _minus(a: list[Floats], b: list[Floats]) -> list[Floats]:
    return [x - y for x, y in zip(a, b, strict=True)]


def _squares(vectors: list[Floats]) -> Floats:
    return np.array([np.einsum("i,i->", vector, vector) for vector in vectors])


def _unchanged(net: FQTModule) -> bool:
    """Tell whether the backward GEMMs since the last reset of the report were those without limits."""
    rows = [row for row in net.report() if row["gemm"] != "fprop"]
    dropped = any(net.hardware[row["layer"]].datapath_for(row["gemm"]).dropped_bits for row in rows)
    return not dropped and not any(row["altered"] for row in rows)


def measure_batch(
    net: FQTModule,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    number: int,
    plan: Plan,
    on_pass: Callable[[], None] = lambda: None,
) -> Part:
    """Return everything that batch `number` tells; the network's state stays as it is.

    images (N, C, H, W), labels (N,). `on_pass` is called after every backward pass. Raises TrainingStopped for NaN and
    infinity, naming layer, tensor and step.
    """
    net.reset_report()
    tape = Tape.record(net, images, labels, draw_of(number, _FORWARD))
    forward = net.report()
    with backward_as(net, False, all_ports(net)):
        gradients = tape.backward(draw_of(number, 0))
        sketches = _Sketches(places_of(gradients, net), plan.coordinates)
        reference = sketches(gradients)
        other = sketches(Tape.record(net, images, labels, draw_of(number, _FORWARD), True).backward(draw_of(number, 0)))
    layers = [layer for layer, gemm in sketches.places if gemm == "wgrad"]
    part = Part(
        {
            "reference": _squares(reference),
            "forward": _squares(_minus(reference, other)),
            "gradient": np.concatenate(reference[: len(layers)]),
        },
        {
            "places": [list(place) for place in sketches.places],
            "sizes": [len(vector) for vector in reference],
            "layers": len(layers),
        },
    )
    _probe(net, tape, number, plan, forward, part)
    on_pass()
    _add_repeats(net, tape, number, plan, (sketches, reference), part, on_pass)
    if plan.decomposition:
        wgrad = _Sketches(sketches.places[: len(layers)], plan.coordinates)
        _add_passes(net, tape, number, plan, (wgrad, reference[: len(layers)]), part, on_pass)
    return part


def _probe(net: FQTModule, tape: Tape, number: int, plan: Plan, forward: list[dict[str, object]], part: Part) -> None:
    """Measure the events of one repeat, the quantizers' own variance, and histograms."""
    meter = Meter(draw_of(number, _FIRST_OF_BOUNDS), plan.bounds)
    net.reset_report()
    tape.backward(draw_of(number, 0), meter)
    part.info["events"] = [*forward, *(row for row in net.report() if row["gemm"] != "fprop")]
    part.info["bounds"] = [[*key, *found] for key, found in meter.bounds.items()]
    part.info["counted"] = [[*key, logarithmic] for key, (_, _, logarithmic) in meter.counts.items()]
    for place, (codes, steps, _) in enumerate(meter.counts.values()):
        part.arrays |= {f"codes.{place}": codes, f"steps.{place}": steps}


def _add_repeats(
    net: FQTModule,
    tape: Tape,
    number: int,
    plan: Plan,
    reference: tuple[_Sketches, list[Floats]],
    part: Part,
    on_pass: Callable[[], None],
) -> None:
    sketches, exact = reference
    sizes = tuple(len(vector) for vector in exact)
    moments = {source: Moments(sizes, plan.block) for source in RANDOM_SOURCES}
    decomposed = Moments(sizes[: part.info["layers"]], plan.small_block)
    for repeat in plan.repeats:
        draw = draw_of(number, repeat)
        net.reset_report()
        given = sketches(tape.backward(draw))
        wide = given
        if not _unchanged(net):
            with backward_as(net, True, ()):
                wide = sketches(tape.backward(draw))
        quantization, hardware = _minus(wide, exact), _minus(given, wide)
        moments[QUANTIZATION].add(repeat, quantization)
        moments[BACKWARD].add(repeat, hardware)
        moments[ALL].add(repeat, _minus(given, exact))
        if repeat in plan.repeats[: plan.decomposition]:
            decomposed.add(repeat, quantization[: part.info["layers"]])
        on_pass()
    if plan.decomposition:
        part.put("pass 0", decomposed, plan.keep_sums)
    for source, found in moments.items():
        part.put(source, found, plan.keep_sums)


def _add_passes(
    net: FQTModule,
    tape: Tape,
    number: int,
    plan: Plan,
    reference: tuple[_Sketches, list[Floats]],
    part: Part,
    on_pass: Callable[[], None],
) -> None:
    """Add the passes of the decomposition, see fqtsim.analysis.decompose."""
    sketches, exact = reference
    layers = [layer for layer, _ in sketches.places]
    for count, floats in passes(layers):
        moments = Moments(tuple(len(vector) for vector in exact[:count]), plan.small_block)
        below = _Sketches(sketches.places[:count], sketches.coordinates)
        with backward_as(net, True, floats):
            for repeat in plan.repeats[: plan.decomposition]:
                moments.add(repeat, _minus(below(tape.backward(draw_of(number, repeat))), exact[:count]))
                on_pass()
        part.put(f"pass {count}", moments, plan.keep_sums)


def measure_reference(
    net: FQTModule, images: NDArray[np.float32], labels: NDArray[np.int64], number: int, coordinates: int
) -> Part:
    """Return R0's weight gradients of one batch, for the variance between batches."""
    tape = Tape.record(net, images, labels, draw_of(number, _FORWARD))
    with backward_as(net, False, all_ports(net)):
        gradients = tape.backward(draw_of(number, 0))
    places = [place for place in places_of(gradients, net) if place[1] == "wgrad"]
    return Part({"gradient": np.concatenate(_Sketches(places, coordinates)(gradients))})


def measure_variance(
    net: FQTModule,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    number: int,
    plan: Plan,
    on_pass: Callable[[], None] = lambda: None,
) -> Part:
    """Return the errors R1 - R0 of all weight gradients of one batch as one vector: a point of the curve."""
    tape = Tape.record(net, images, labels, draw_of(number, _FORWARD))
    with backward_as(net, False, all_ports(net)):
        gradients = tape.backward(draw_of(number, 0))
    places = [place for place in places_of(gradients, net) if place[1] == "wgrad"]
    sketches = _Sketches(places, plan.coordinates)
    exact = np.concatenate(sketches(gradients))
    moments = Moments((len(exact),), plan.block)
    with backward_as(net, True, ()):
        for repeat in plan.repeats:
            moments.add(repeat, [np.concatenate(sketches(tape.backward(draw_of(number, repeat)))) - exact])
            on_pass()
    part = Part()
    part.put("weights", moments, plan.keep_sums)
    return part
