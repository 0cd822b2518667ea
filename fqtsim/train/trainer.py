"""Training step by step: the state after step t is a pure function of state, data, recipe, hardware and seed (S5)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fqtsim.errors import InputError, TrainingStopped
from fqtsim.recipe.spec import Optimizer, Schedule
from fqtsim.train.digest import Digest, state_digest
from fqtsim.train.loss import softmax_cross_entropy
from fqtsim.train.module import FQTModule
from fqtsim.train.operands import Array
from fqtsim.train.optimizer import Sgd, as_optimizer
from fqtsim.train.recorded import NextState, RecordedSteps, assign
from fqtsim.train.schedule import Rate, as_schedule

MOMENTUM = ".momentum"


class Trainer:
    """Softmax cross-entropy and SGD on a converted network.

    Without `optimizer` both rule and schedule are the recipe's; with it, no `schedule` means a constant rate.
    `total_steps` is the length of a cosine that does not say its own; with `steps_per_epoch` the rate changes at the
    start of epochs only.
    """

    def __init__(
        self,
        net: FQTModule,
        optimizer: Mapping[str, Any] | Optimizer | None = None,
        schedule: Mapping[str, Any] | Schedule | None = None,
        label_smoothing: float = 0.0,
        total_steps: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        self.net, self.label_smoothing = net, label_smoothing
        rule = as_optimizer(net.recipe.optimizer if optimizer is None else optimizer)
        if schedule is None:
            schedule = net.recipe.schedule if optimizer is None else {"name": "constant"}
        self.rate = Rate(rule.lr, as_schedule(schedule), total_steps, steps_per_epoch)
        self.sgd = Sgd(rule, set() if rule.decay_norm else net.norm_parameters())
        self.sgd.start(self._parameters(), net.backend.primitives)
        self._recorded: RecordedSteps | None = None
        self._before: list[torch.Tensor] = []

    @property
    def step_index(self) -> int:
        """Steps done."""
        return self.net.step_index

    @property
    def replayed_steps(self) -> int:
        """Steps that were replays of a recorded one: on a device, from the third of a batch's shape on."""
        return 0 if self._recorded is None else self._recorded.replayed

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.rate.at(self.step_index, self.net.backend.primitives.host))

    def step(self, x: torch.Tensor, labels: torch.Tensor) -> float:
        """Do one training step on a batch and return its mean loss.

        Raises TrainingStopped, naming layer, tensor and step, where a number is NaN or out of range; the state is
        then what it was before.
        """
        p = self.net.backend.primitives
        if p.on_device:  # where another backend may have left it on the host
            self.sgd.momentum = {name: p.array(v) for name, v in self.sgd.momentum.items()}
        buffers = list(self.net.buffers())
        before = self._kept(buffers)
        try:
            with p.faults.reading_once():
                targets, rate = _on_host(labels), self.rate.at(self.step_index, p.host)
                done = self._replayed(x, targets, rate) or self.next_state(x, targets, rate)
        except BaseException:
            assign(buffers, before)
            self.net.forget_backward()
            raise
        finally:
            self.net.zero_grad(set_to_none=True)
        parameters = dict(self.net.named_parameters())
        assign([parameters[name] for name in done.parameters], list(map(p.tensor, done.parameters.values())))
        if p.on_device:  # in place, since a recorded step reads it there
            assign([self.sgd.momentum[name] for name in done.momentum], list(done.momentum.values()))
        else:
            self.sgd.momentum = done.momentum
        self.net.step_index += 1
        self.net.end_step()
        return float(done.loss)

    def _kept(self, buffers: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return copies of the buffers, in memory that steps share."""
        same = len(buffers) == len(self._before) and all(
            one.shape == other.shape and one.device == other.device
            for one, other in zip(buffers, self._before, strict=True)
        )
        if same:
            assign(self._before, buffers)
        else:
            self._before = [buffer.clone() for buffer in buffers]
        return self._before

    def _replayed(self, x: torch.Tensor, labels: Array, rate: np.float32) -> NextState | None:
        """Return the next state by a recorded step; None where the backend records none, or not yet this one."""
        backend = self.net.backend
        if backend.recorder is None:
            return None
        if self._recorded is None or self._recorded.backend is not backend:
            self._recorded = RecordedSteps(self)
        return self._recorded.next_state(x, labels, rate)

    def next_state(
        self, x: torch.Tensor, labels: Array, rate: Array, tell: Callable[[tuple[int, ...]], None] | None = None
    ) -> NextState:
        """Return the loss, the new parameters and the new momentum; only running statistics have changed.

        labels and rate are of NumPy, or tensors of the device that were checked before. tell: told the logits' shape.
        """
        p, parameters = self.net.backend.primitives, dict(self.net.named_parameters())
        self.net.zero_grad(set_to_none=True)
        # On a device the logits stay where the batch is.
        logits = self.net(p.tensor(p.array(x)) if p.on_device else x)
        p.faults.enter("the loss", self.step_index)
        try:
            values = p.array(logits)
            if tell is not None:
                tell(tuple(values.shape))
            loss, gradient = softmax_cross_entropy(values, labels, self.label_smoothing, p)
            if not p.all_finite(loss):
                raise TrainingStopped("NaN or infinity")
        except TrainingStopped as error:
            raise TrainingStopped(f"step {self.step_index}: the loss: {error}") from None
        logits.backward(p.tensor(gradient))
        gradients = {
            name: p.array(parameter.grad) for name, parameter in parameters.items() if parameter.grad is not None
        }
        p.faults.enter("", self.step_index)
        try:
            weights = {name: p.array(parameter) for name, parameter in parameters.items()}
            return NextState(loss, *self.sgd.update(weights, gradients, rate, p))
        except TrainingStopped as error:
            raise TrainingStopped(f"step {self.step_index}: {error}") from None

    def _parameters(self) -> dict[str, Array]:
        p = self.net.backend.primitives
        return {name: p.array(parameter) for name, parameter in self.net.named_parameters()}

    def _state(self) -> dict[str, torch.Tensor]:
        """Return every tensor that a resumed run needs, by its name in the file."""
        state = {name: tensor.detach() for name, tensor in self.net.state_dict().items()}
        return state | {name + MOMENTUM: _live(v) for name, v in self.sgd.momentum.items()}

    def digest(self) -> Digest:
        """Return the digest of parameters, momentum, running statistics, step and seed (S5.10)."""
        return self._digest(self._state(), self.step_index)

    def _digest(self, state: Mapping[str, torch.Tensor], step: int) -> Digest:
        # num_batches_tracked is a count that no number depends on.
        arrays = {
            name: tensor.cpu().numpy() for name, tensor in state.items() if not name.endswith(".num_batches_tracked")
        }
        arrays["step"], arrays["seed"] = np.array([step], np.int64), np.array([self.net.seed], np.uint64)
        return state_digest(arrays, self.net.platform)

    def save(self, path: str | os.PathLike[str], notes: Mapping[str, str] | None = None) -> None:
        """Write the state as a safetensors file, in one move: a kill leaves the old file or the new one.

        `notes` are texts of the caller, kept in the file's metadata and not looked at by load().
        """
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self._state().items()}
        try:
            save_file(tensors, partial, metadata={**(notes or {}), **self._metadata()})
        except SafetensorError as error:
            raise InputError(
                f"{path}: cannot be written ({error}); check the folder and the space on its disk"
            ) from None
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue exactly from a saved state. Raises InputError for another network, seed, recipe or hardware."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; give a file that Trainer.save wrote")
        try:
            with safe_open(path, framework="pt") as file:
                metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{path}: not a safetensors file ({error}); give a file that Trainer.save wrote") from None
        self._check_metadata(path, metadata)
        self._check_tensors(path, tensors)
        step = int(metadata["step"])
        if self._digest(tensors, step).hex != metadata["digest"]:
            raise InputError(f"{path}: the tensors do not have the digest it states; the file is damaged, use another")
        for name, mine in self._state().items():
            mine.copy_(tensors[name])
        self.net.step_index = step
        self.net.forget_backward()

    def _metadata(self) -> dict[str, str]:
        hardware = {name: _plain(hw) for name, hw in self.net.hardware.items()}
        return {
            "format": "fqtsim-state-1",
            "step": str(self.step_index),
            "seed": str(self.net.seed),
            "recipe": _hash(_plain(self.net.recipe)),
            "hardware": _hash(hardware),
            "update": _hash([_plain(self.sgd.settings), self.rate.describe(), self.label_smoothing]),
            "digest": self.digest().hex,
        }

    def _check_metadata(self, path: Path, metadata: Mapping[str, str]) -> None:
        ours = self._metadata()
        if metadata.get("format") != ours["format"]:
            raise InputError(f"{path}: not a training state; give a file that Trainer.save wrote")
        if "digest" not in metadata or not metadata.get("step", "").isdecimal():
            raise InputError(f"{path}: does not state its step and digest; the file is damaged, use another")
        for key in ("seed", "recipe", "hardware", "update"):
            if metadata.get(key) != ours[key]:
                raise InputError(
                    f"{path}: {key} = {metadata.get(key)}: this run has {ours[key]}; resume with the same {key}"
                )

    def _check_tensors(self, path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
        ours = self._state()
        if ours.keys() != tensors.keys():
            name = min(ours.keys() ^ tensors.keys())
            where = "missing from the file" if name in ours else "not in this network or optimizer"
            raise InputError(f"{path}: tensor {name!r} is {where}; load it into the network that wrote it")
        for name, tensor in tensors.items():
            if tensor.shape != ours[name].shape or tensor.dtype != ours[name].dtype:
                raise InputError(
                    f"{path}: tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, not {ours[name].dtype} "
                    f"{tuple(ours[name].shape)}; load it into the network that wrote it"
                )


def _on_host(labels: Any) -> Array:
    return labels.detach().cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)


def _live(values: Array) -> torch.Tensor:
    """Return an array as the tensor whose memory it is."""
    return torch.from_numpy(values) if isinstance(values, np.ndarray) else values


def _plain(model: BaseModel) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def _hash(description: Any) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode("utf-8")).hexdigest()
