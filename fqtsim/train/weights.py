"""Weights from a file: a torch state dict, safetensors, or a training state of this project.

Nothing but tensors is ever unpickled. A file that does not fit the model is refused with every difference named, and
whatever is done to its tensors beside copying them is kept as a note for the user.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fqtsim.errors import InputError
from fqtsim.recipe.spec import PORTS
from fqtsim.train.digest import state_digest
from fqtsim.train.moving_range import SUFFIX
from fqtsim.train.trainer import MOMENTUM

#: What DistributedDataParallel and torch.compile put before every name.
PREFIXES = ("module.", "_orig_mod.")
#: Entries under which training scripts keep the state dict beside other things.
ENTRIES = ("state_dict", "model_state_dict", "model")
#: Types that become float32: float16 and bfloat16 exactly, float64 rounded to the nearest.
CONVERTED = (torch.float16, torch.bfloat16, torch.float64)
#: How the names of hindsight ranges end, which layers of this project have and modules of torch do not.
_RANGES = tuple(f".{port}{SUFFIX}" for port in PORTS)
#: Names that one list of an error message shows.
MOST_NAMES = 8


@dataclass(frozen=True)
class Weights:
    """The tensors of a file, on the CPU; those of other floating-point types are float32 already."""

    path: Path
    #: SHA-256 of the file.
    sha256: str
    tensors: Mapping[str, torch.Tensor]
    #: What was done to the tensors, one line each.
    notes: list[str]
    #: Hindsight ranges of a training state, by the name of their buffer.
    ranges: Mapping[str, torch.Tensor]

    def copy_into(self, model: torch.nn.Module) -> None:
        """Copy the tensors into the model's parameters and buffers; `num_batches_tracked` stays as it is.

        Raises InputError that lists what is missing, unexpected, of another shape or of another type.
        """
        ours = {name: tensor for name, tensor in model.state_dict().items() if not _is_count(name)}
        theirs = {name: tensor for name, tensor in self.tensors.items() if not _is_count(name)}
        theirs = self._without_prefixes(theirs, ours)
        problems = _differences(ours, theirs)
        if problems:
            raise InputError(
                f"{self.path}: does not fit the model: {'; '.join(problems)}; "
                "give the model that these weights were saved from"
            )
        for name, mine in ours.items():
            mine.copy_(theirs[name])

    def copy_ranges_into(self, net: torch.nn.Module) -> None:
        """Copy the hindsight ranges of a training state to those ports of a converted network that have one."""
        ours = {name: buffer for name, buffer in net.named_buffers() if name in self.ranges}
        for name, buffer in ours.items():
            buffer.copy_(self.ranges[name])
        if ours:
            self._note(f"took {len(ours)} hindsight ranges from it")

    def _without_prefixes(
        self, theirs: dict[str, torch.Tensor], ours: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        found = True
        while found and theirs:
            found = False
            for prefix in PREFIXES:
                if all(name.startswith(prefix) for name in theirs) and not all(n.startswith(prefix) for n in ours):
                    theirs = {name.removeprefix(prefix): tensor for name, tensor in theirs.items()}
                    self._note(f"left the prefix {prefix} out of every name")
                    found = True
        return theirs

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def read_weights(path: str | Path) -> Weights:
    """Return the tensors of a file and its SHA-256; the content tells the format, not the name.

    Raises InputError for no such file, a damaged file, anything but dense tensors in it, NaN and infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a torch state dict or a safetensors file of weights")
    with path.open("rb") as stream:
        start = stream.read(9)
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    notes: list[str] = []
    # A safetensors file is 8 bytes of length and a JSON object; zip archives and pickles have other bytes there.
    found = _read_safetensors(path, notes) if start[8:] == b"{" else _read_torch(path, notes)
    tensors = _converted(path, found, notes)
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise InputError(f"{path}: NaN or infinity in {_listed(broken)}, as float32; save finite weights")
    ranges = {name: tensor for name, tensor in tensors.items() if name.endswith(_RANGES)}
    return Weights(path, sha256, {name: tensors[name] for name in tensors if name not in ranges}, notes, ranges)


def _read_safetensors(path: Path, notes: list[str]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error}); the file is damaged, save it again") from None
    return _read_state(path, metadata, tensors, notes) if metadata.get("format") == "fqtsim-state-1" else tensors


def _read_state(
    path: Path, metadata: Mapping[str, str], tensors: dict[str, torch.Tensor], notes: list[str]
) -> dict[str, torch.Tensor]:
    """Return the weights of a training state that Trainer.save wrote, after checking its digest (S5.10)."""
    step, seed = metadata.get("step", ""), metadata.get("seed", "")
    # Trainer.save writes no type that converts; numpy could not even hold bfloat16.
    kept = {name: tensor for name, tensor in tensors.items() if not _is_count(name) and tensor.dtype not in CONVERTED}
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in kept.items()}
    if step.isdecimal() and seed.isdecimal() and int(seed) < 1 << 64:
        arrays |= {"step": np.array([int(step)], np.int64), "seed": np.array([int(seed)], np.uint64)}
    if state_digest(arrays).hex != metadata.get("digest"):
        raise InputError(f"{path}: the tensors do not have the digest it states; the file is damaged, use another")
    notes.append(f"read the weights of a training state at step {step}, without its momentum")
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith(MOMENTUM) and name.removesuffix(MOMENTUM) in tensors)
    }


def _read_torch(path: Path, notes: list[str]) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        others = _other_types(path)
        rule = (
            f"holds {others}, which would run code to load" if others else "neither safetensors nor a torch state dict"
        )
        raise InputError(f"{path}: {rule}; save the weights alone: torch.save(model.state_dict(), FILE)") from None
    except Exception as error:  # whatever a damaged archive makes torch raise, OSError for a seek among it
        line = (str(error).splitlines() or [""])[0].partition(".")[0] or type(error).__name__
        raise InputError(
            f"{path}: neither safetensors nor a torch state dict ({line}); save the weights again"
        ) from None
    return _state_dict(path, content, notes)


def _other_types(path: Path) -> str:
    """Return the names of what a torch file holds beside tensors, as far as torch can tell without loading it."""
    try:
        return _listed(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    except ValueError:
        return ""


def _state_dict(path: Path, content: Any, notes: list[str]) -> dict[str, torch.Tensor]:
    """Return the state dict that a torch file holds, at its top or under one of the usual names."""
    if isinstance(content, dict):
        entry = next((name for name in ENTRIES if isinstance(content.get(name), dict)), None)
        if entry is not None:
            others = _listed([str(name) for name in content if name != entry])
            notes.append(f"took the entry {entry!r}" + (f" and left {others} out" if others else ""))
            content = content[entry]
    if not isinstance(content, dict) or not content:
        kind = "an empty one" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise InputError(f"{path}: {kind}: must be a state dict; save it with torch.save(model.state_dict(), FILE)")
    wrong = [str(name) for name, value in content.items() if not (isinstance(name, str) and torch.is_tensor(value))]
    if wrong:
        raise InputError(f"{path}: {_listed(wrong)}: must be named tensors; save model.state_dict() alone")
    return {name: tensor.detach() for name, tensor in content.items()}


def _converted(path: Path, tensors: Mapping[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """Return the tensors with other floating-point types as float32."""
    wrong = [
        name
        for name, tensor in tensors.items()
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta
    ]
    if wrong:
        raise InputError(f"{path}: {_listed(wrong)}: must be dense tensors with values; save an ordinary float32 model")
    for kind in CONVERTED:
        count = sum(tensor.dtype == kind for tensor in tensors.values())
        if count:
            exactly = ", rounded" if kind == torch.float64 else ""
            notes.append(f"converted {count} tensor{'s'[: count > 1]} from {_name(kind)} to float32{exactly}")
    return {name: tensor.float() if tensor.dtype in CONVERTED else tensor for name, tensor in tensors.items()}


def _differences(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[str]:
    """Return what keeps `theirs` from being the state of the model, in words."""
    missing, unexpected = [n for n in ours if n not in theirs], [n for n in theirs if n not in ours]
    problems = []
    for word, names, others in (("missing", missing, unexpected), ("unexpected", unexpected, missing)):
        if names:
            problems.append(f"{word} {_listed([_with_nearest(name, others) for name in names])}")
    shared = [(name, ours[name], theirs[name]) for name in ours if name in theirs]
    shapes = [f"{name} {_size(its)}, not {_size(mine)}" for name, mine, its in shared if mine.shape != its.shape]
    types = [
        f"{name} {_name(its.dtype)}, not {_name(mine.dtype)}" for name, mine, its in shared if mine.dtype != its.dtype
    ]
    for word, texts in (("of another shape", shapes), ("of another type", types)):
        if texts:
            problems.append(f"{word} {_listed(texts)}")
    return problems


def _with_nearest(name: str, others: list[str]) -> str:
    close = get_close_matches(name, others, n=1, cutoff=0.6)
    return f"{name} (nearest: {close[0]})" if close else name


def _listed(texts: list[str]) -> str:
    more = len(texts) - MOST_NAMES
    return ", ".join(texts[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _is_count(name: str) -> bool:
    """Tell whether a name is of batch norm's count of batches, which no number depends on."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _size(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
