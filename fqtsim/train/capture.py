"""Follow a model's forward pass with torch.fx, so that models written the torchvision way convert unmodified.

Every operation becomes one of ours or an error that names it, its line in the model's source and what to write
instead. Two things that torch.fx alone would lose are kept: `+=` overwrites its left side, and a branch on
`self.training`.
"""

from __future__ import annotations

import inspect
import operator
import os
import sys
from types import TracebackType
from typing import Any

import torch
from torch import fx, nn

from fqtsim.errors import InputError
from fqtsim.train import capture_functions as functions
from fqtsim.train.capture_modules import STATEFUL, check_plain, known_type, module_op
from fqtsim.train.graph import Call, Captured, Op, Unsupported, Value

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PLACE = "fqtsim_place"


class _Proxy(fx.Proxy):
    """A value under recording; torch.fx records `+=` as `+`, which forgets that it overwrites."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Recorder(fx.Tracer):
    """Records a forward pass with the source line of each operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        builtin = type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        return builtin or known_type(m) is not None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta[_PLACE] = _calling_line()
        return node


def _is_model_code(filename: str) -> bool:
    return not filename.startswith((_TORCH, "<")) and filename != __file__


def _calling_line() -> str:
    """Return "file:line" of the innermost model code on the stack, or "" where torch's containers call each other."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _trace.__code__:
            return ""
        if _is_model_code(code.co_filename):
            return f"{code.co_filename}:{frame.f_lineno}"
        if frame.f_back is None:
            return ""
        frame = frame.f_back
    return ""


def _raising_line(trace: TracebackType | None) -> str:
    """Return "file:line" of the innermost model code that an exception passed through, or ""."""
    place = ""
    while trace is not None:
        if _is_model_code(trace.tb_frame.f_code.co_filename):
            place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _trace(module: nn.Module, training: bool) -> fx.Graph:
    flags = {m: m.training for m in module.modules()}
    module.train(training)
    try:
        return _Recorder().trace(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{_prefix(_raising_line(error.__traceback__))}{_why_not_followed(error)}") from error
    finally:
        for m, flag in flags.items():
            m.training = flag


def _why_not_followed(error: Exception) -> str:
    """Return the rule and the remedy for an exception of a forward pass whose tensors have no values yet."""
    text = str(error)
    for part, rule, remedy in _NOT_FOLLOWED:
        if part in text:
            return f"the forward pass cannot be followed: {rule}; {remedy}"
    return (
        f"the forward pass cannot be followed: {type(error).__name__}: {text.partition(chr(10))[0]}; "
        "correct that line; it runs once without values, to record which layers there are"
    )


_NO_BRANCHES = "write it without branches or loops that depend on tensors or their sizes"

#: Part of torch.fx's own message, what it means, and what to write instead.
_NOT_FOLLOWED = (
    ("inputs to control flow", "a branch depends on a tensor or its size", _NO_BRANCHES),
    ("cannot be iterated", "a loop over the parts of a tensor", _NO_BRANCHES),
    ("'len' is not supported", "len() of a tensor", "use x.size(0)"),
    ("as an integer", "a size of a tensor taken as a Python number", _NO_BRANCHES),
)


def _forward_line(module: nn.Module) -> str:
    """Return "file:line" of the model's forward, or "" where torch wrote it or nobody knows."""
    try:
        forward = inspect.unwrap(type(module).forward)
        file, line = inspect.getsourcefile(forward) or "", inspect.getsourcelines(forward)[1]
    except (OSError, TypeError):
        return ""
    return f"{file}:{line}" if _is_model_code(file) else ""


def _prefix(place: str) -> str:
    return f"{place}: " if place else ""


def capture(module: nn.Module) -> Captured:
    """Return the forward pass of a model as operations of ours.

    Raises InputError with the file and line of the first thing that has no form on the hardware.
    """
    if known_type(module) is not None:
        raise InputError(
            f"the network is a single {type(module).__name__}, which has no layer name; wrap it in torch.nn.Sequential"
        )
    try:
        check_plain(module)
    except Unsupported as error:
        raise InputError(str(error)) from None
    graph = _trace(module, training=True)
    captured = _Reader(module, graph).read()
    _check_same(graph, _trace(module, training=False))
    return captured


def _check_same(train: fx.Graph, evaluation: fx.Graph) -> None:
    """Raise InputError where training and evaluation record different operations."""
    ours, other = ([(n.op, str(n.target), str(n.args), str(n.kwargs)) for n in g.nodes] for g in (train, evaluation))
    if ours == other:
        return
    nodes = list(train.nodes)
    first = next((i for i, (a, b) in enumerate(zip(ours, other, strict=False)) if a != b), 0)
    raise InputError(
        f"{_prefix(nodes[first].meta.get(_PLACE, ''))}the forward pass differs between training and evaluation; "
        "leave self.training to torch.nn.Dropout and batch norm"
    )


class _Reader:
    """Turns recorded nodes into calls, one by one."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.meaning: dict[fx.Node, Any] = {}
        self.calls: list[Call] = []
        self.seen: dict[str, str] = {}
        #: Per value, the memory it lives in and how often that had been overwritten; per memory, the overwrites.
        self.memory: dict[Value, tuple[int, int]] = {Value(0): (0, 0)}
        self.overwritten: dict[int, tuple[int, str]] = {}

    def read(self) -> Captured:
        for node in self.graph.nodes:
            if node.op == "output":
                return self._finish(node)
            try:
                self.meaning[node] = self._read(node)
            except Unsupported as error:
                raise InputError(f"{self._place(node)}: {error.rule}; {error.remedy}") from None
        raise InputError(f"{_prefix(_forward_line(self.root))}the network has no output; return the logits")

    def _place(self, node: fx.Node) -> str:
        place = _forward_line(self.root) if node.op == "placeholder" else node.meta.get(_PLACE, "")
        return f"{_prefix(place)}{self._title(node)}"

    def _title(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"layer {node.target!r} ({type(self.root.get_submodule(str(node.target))).__name__})"
        if node.op == "call_method":
            return f"Tensor.{node.target}"
        if node.op == "call_function":
            return _function_name(node.target)
        return f"{node.target}"

    def _read(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            if str(node.target).startswith("_tensor_constant"):
                raise Unsupported("the forward pass uses a constant tensor", "put it into the bias of a layer")
            raise Unsupported("a parameter or buffer is used directly", "use it through a Linear, Conv2d or BatchNorm")
        args = fx.node.map_arg(node.args, lambda n: self.meaning[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self.meaning[n])
        result = self._apply(node, args, kwargs)
        return self._call(node, result) if isinstance(result, Op) else result

    def _placeholder(self, node: fx.Node) -> Value | None:
        if not self.meaning:
            return Value(0)
        if node.users:
            raise Unsupported("the forward pass takes more than one input", "give it one tensor of images or features")
        self.meaning[node] = None
        return None

    def _apply(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "call_module":
            return module_op(self.root.get_submodule(str(node.target)), *args, **kwargs)
        table: dict[Any, functions.Handler] = functions.FUNCTIONS if node.op == "call_function" else functions.METHODS
        handler = table.get(node.target)
        if handler is None:
            name = self._title(node)
            raise Unsupported("not a layer that runs on the hardware", functions.remedy_for(name))
        try:
            return handler(*args, **kwargs)
        except TypeError:
            raise Unsupported("called with arguments that have no meaning here", functions.SUPPORTED) from None

    def _call(self, node: fx.Node, op: Op) -> Value:
        for value in op.inputs:
            if not isinstance(value, Value):
                raise Unsupported("takes tensors of the network only", functions.SUPPORTED)
            self._check_current(value)
        module = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        if op.kind in STATEFUL:
            before = self.seen.setdefault(str(node.target), self._place(node))
            if before != self._place(node) or any(call.module is module for call in self.calls):
                raise Unsupported(
                    "called a second time in one step; a layer with parameters or dropout runs once",
                    "make a second layer",
                )
        output = Value(len(self.calls) + 1)
        self.calls.append(Call(op, output, str(node.target) if module else node.name, module, self._place(node)))
        self._remember(op, output, self._place(node))
        return output

    def _check_current(self, value: Value) -> None:
        """Refuse a value that an in-place operation has changed since: torch would see the new content."""
        memory, version = self.memory[value]
        overwrites, place = self.overwritten.get(memory, (0, ""))
        if version != overwrites:
            raise Unsupported(f"uses a tensor that was overwritten in place by {place}", "do that out of place")

    def _remember(self, op: Op, output: Value, place: str) -> None:
        memory, version = self.memory[op.inputs[0]]
        if op.inplace:
            self.overwritten[memory] = (version + 1, place)
            self.memory[output] = (memory, version + 1)
        elif op.view:
            self.memory[output] = (memory, version)
        else:
            self.memory[output] = (output.number, 0)

    def _finish(self, node: fx.Node) -> Captured:
        result = node.args[0]
        if not isinstance(result, fx.Node) or not isinstance(self.meaning[result], Value):
            raise InputError(
                f"{_prefix(_forward_line(self.root))}the network returns {result}; return one tensor, the logits"
            )
        output: Value = self.meaning[result]
        try:
            self._check_current(output)
        except Unsupported as error:
            raise InputError(f"the network's output: {error}") from None
        calls = _live(self.calls, output)
        self._check_all_used(calls)
        return Captured(calls, output)

    def _check_all_used(self, calls: tuple[Call, ...]) -> None:
        used = {call.module for call in calls}
        for name, module in self.root.named_modules():
            state = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if state and module not in used:
                raise InputError(
                    f"layer {name!r} ({type(module).__name__}): has {state[0][0]} but does not reach the network's "
                    "output; remove it from the model"
                )


def _live(calls: list[Call], output: Value) -> tuple[Call, ...]:
    """Return the calls that the output depends on, in order."""
    needed, kept = {output}, []
    for call in reversed(calls):
        if call.output in needed:
            needed.update(call.op.inputs)
            kept.append(call)
    return tuple(reversed(kept))


def _function_name(function: Any) -> str:
    """Return "torch.matmul" for a function of torch, "operator.mul" for a Python operator."""
    name = getattr(function, "__name__", str(function))
    for module, prefix in ((torch, "torch"), (torch.nn.functional, "torch.nn.functional")):
        if getattr(module, name, None) is function:
            return f"{prefix}.{name}"
    owner = getattr(function, "__module__", None) or ""
    return f"operator.{name}" if owner == "_operator" else f"{owner}.{name}".lstrip(".")
