"""The answer as files: the user's own text with other widths, which `fqtsim validate` accepts."""

from __future__ import annotations

import glob
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fqtsim.errors import InputError
from fqtsim.evaluate.shrink.edit import edited
from fqtsim.evaluate.shrink.space import RANDOM_BITS, Candidate, Space, narrowed, register_word
from fqtsim.hw.load import dump_hardware, find_file, hardware_names, hwconfigs_dir, parse_hardware
from fqtsim.hw.spec import Hardware
from fqtsim.strict_yaml import KeyPath, read, read_text
from fqtsim.train.rundir import write_text
from fqtsim.words import GEMMS

_MOST_NAME = 64


@dataclass(frozen=True)
class Original:
    """The hardware file that is shrunk."""

    #: As the user named it.
    name: str
    text: str
    #: Dotted key -> new value, as `--set hardware.KEY=V` gives them.
    overrides: Mapping[str, str]
    hardware: Hardware

    def changes(self) -> dict[KeyPath, object]:
        """Return the overrides by key path."""
        document = read(self.text, self.name).override(self.overrides, "hardware")
        return {path: document.value(path) for path in document.overrides}


def read_original(name: str, overrides: Mapping[str, str]) -> Original:
    """Return the file called by a shipped name or a path. Raises InputError."""
    path = find_file(name, hwconfigs_dir(), "hardware", hardware_names)
    text = read_text(path)
    return Original(name, text, overrides, parse_hardware(text, str(path), overrides or None))


def narrowed_text(
    original: Original, name: str, widths: Mapping[str, int], random_bits: int | None, remarks: Sequence[str]
) -> str:
    """Return the original's text with other widths by GEMM, a new name and remarks on top.

    Where its layout or an override cannot be kept, the text is written anew without its comments. Either way it
    loads to exactly that hardware.
    """
    wanted = narrowed(original.hardware, widths, random_bits)
    notes = "".join(f"# {line}".rstrip() + "\n" for line in remarks)
    head = _head(original.hardware, name, widths, random_bits)
    kept = "# Below is the text that was shrunk; its comments speak of the widths before.\n"
    changes = {**original.changes(), **head, **_width_changes(original.hardware, widths)}
    if random_bits is not None:
        changes["random", "bits"] = random_bits
    with suppress(ValueError):
        text = notes + kept + edited(original.text, changes)
        if _loads_to(text, wanted, name):
            return text
    update = {str(path[0]): value for path, value in head.items()}
    text = notes + dump_hardware(wanted.model_copy(update=update))
    if not _loads_to(text, wanted, name):
        raise InputError(f"{original.name}: cannot be written with other widths; report this with the file")
    return text


def _head(hardware: Hardware, name: str, widths: Mapping[str, int], random_bits: int | None) -> dict[KeyPath, object]:
    """Return what the file says of itself: what is narrower, and that nobody has built it."""
    now = [f"{gemm} {register_word(hardware, gemm, width)}" for gemm, width in widths.items()]
    now += [] if random_bits is None else [f"{random_bits} random bits"]
    source = hardware.source
    return {
        ("name",): name,
        ("summary",): f"{hardware.summary}; narrowed by fqtsim shrink to {', '.join(now)}",
        ("source",): source if source == "hypothetical" else f"{source}; but widths hypothetical, by fqtsim shrink",
        ("checked_against",): "nothing",
    }


def _width_changes(hardware: Hardware, widths: Mapping[str, int]) -> dict[KeyPath, object]:
    """Return the fewest changes of the file that give each GEMM its accumulator."""
    changes: dict[KeyPath, object] = {}
    inherit = []
    for gemm in GEMMS:
        change = getattr(hardware.gemms, gemm, None)
        if change is None or change.levels is None:
            inherit.append(gemm)
        elif gemm in widths:
            last = len(change.levels) - 1
            changes["gemms", gemm, "levels", last, "register"] = register_word(hardware, gemm, widths[gemm])
    words = {
        gemm: register_word(hardware, gemm, widths[gemm]) if gemm in widths
        else hardware.datapath_for(gemm).accumulator.register for gemm in inherit
    }  # fmt: skip
    if not words:
        return changes
    common = Counter(words.values()).most_common(1)[0][0]
    levels = [level.model_dump(mode="json", by_alias=True, exclude_none=True) for level in hardware.datapath.levels]
    if common != levels[-1]["register"]:
        changes["datapath", "levels", len(levels) - 1, "register"] = common
    for gemm, word in words.items():
        if word != common:
            changes["gemms", gemm, "levels"] = [*levels[:-1], {**levels[-1], "register": word}]
    return changes


def _loads_to(text: str, wanted: Hardware, name: str) -> bool:
    """Tell whether the text describes the same arithmetic under the new name."""
    try:
        found = parse_hardware(text, f"{name}.yaml")
    except InputError:
        return False
    same = all(found.datapath_for(gemm) == wanted.datapath_for(gemm) for gemm in GEMMS)
    return same and found.name == name and (found.output, found.random) == (wanted.output, wanted.random)


def write_answer(
    original: Original, space: Space, candidate: Candidate, out: Path, remarks: Sequence[str]
) -> tuple[Path, dict[str, Path]]:
    """Write OUT/<name>.yaml, and OUT/layers/<layer>.yaml by layer where layers differ; return their paths.

    The first has for each GEMM the widest accumulator of any layer.
    """
    bits = candidate.get(RANDOM_BITS)
    name = _name(original.hardware.name, "shrunk")
    shared = out / f"{name}.yaml"
    out.mkdir(parents=True, exist_ok=True)
    write_text(shared, narrowed_text(original, name, space.widest(candidate), bits, remarks))
    layers: dict[str, Path] = {}
    if space.per_layer:
        by_layer: dict[str, dict[str, int]] = {}
        for (layer, gemm), width in space.widths(candidate).items():
            by_layer.setdefault(layer, {})[gemm] = width
        (out / "layers").mkdir(exist_ok=True)
        for layer, widths in by_layer.items():
            layers[layer] = out / "layers" / f"{layer}.yaml"
            notes = [*remarks, f"This file is for layer {layer}."]
            text = narrowed_text(original, _name(original.hardware.name, layer), widths, bits, notes)
            write_text(layers[layer], text)
    return shared, layers


def _name(hardware: str, suffix: str) -> str:
    tail = "_" + re.sub("[^a-z0-9_]", "_", suffix.lower())
    return hardware[: _MOST_NAME - len(tail)] + tail if len(tail) < _MOST_NAME else (hardware + tail)[:_MOST_NAME]


def hardware_options(layers: Mapping[str, Path]) -> str:
    """Return the `--hardware` options that give each layer its file."""
    return " ".join(f"--hardware {shlex.quote(f'{glob.escape(layer)}={path}')}" for layer, path in layers.items())
