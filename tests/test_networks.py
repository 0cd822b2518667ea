"""Networks that people have: torchvision's ResNet-18 and MobileNetV2, one's own function, and what does not convert."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import fqtsim
from fqtsim.cli import main
from fqtsim.data import DataInfo
from fqtsim.errors import InputError
from fqtsim.models import build_model, model_sha256
from fqtsim.train.capture import capture
from fqtsim.train.config import TrainConfig, build_trainer, resolve

CIFAR = DataInfo((3, 32, 32), 10)
DIGITS = DataInfo((1, 8, 8), 10)
IMAGENET = DataInfo((3, 224, 224), 1000)
LARGE = ("resnet18", "mobilenet_v2")


# --- ResNet-18 and MobileNetV2


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_689_512), ("mobilenet_v2", 3_504_872)])
def test_large_models_have_torchvisions_parameters(name: str, count: int) -> None:
    """The counts that torchvision publishes for its weights of 1000 classes."""
    assert sum(parameter.numel() for parameter in build_model(name, IMAGENET, 0).parameters()) == count


@pytest.mark.parametrize(
    ("name", "key", "shape"),
    [
        ("resnet18", "conv1.weight", (64, 3, 7, 7)),
        ("resnet18", "layer2.0.downsample.1.running_var", (128,)),
        ("resnet18", "layer4.1.bn2.num_batches_tracked", ()),
        ("resnet18", "fc.bias", (1000,)),
        ("mobilenet_v2", "features.0.0.weight", (32, 3, 3, 3)),
        ("mobilenet_v2", "features.1.conv.0.0.weight", (32, 1, 3, 3)),
        ("mobilenet_v2", "features.17.conv.2.weight", (320, 960, 1, 1)),
        ("mobilenet_v2", "features.17.conv.3.running_mean", (320,)),
        ("mobilenet_v2", "features.18.0.weight", (1280, 320, 1, 1)),
        ("mobilenet_v2", "classifier.1.weight", (1000, 1280)),
    ],
)
def test_large_models_have_torchvisions_names(name: str, key: str, shape: tuple[int, ...]) -> None:
    assert tuple(build_model(name, IMAGENET, 0).state_dict()[key].shape) == shape


@pytest.mark.parametrize(
    ("name", "info", "positions"),
    [
        ("resnet18", IMAGENET, 7),
        ("resnet18", DataInfo((3, 64, 64), 10), 2),
        ("resnet18", DataInfo((3, 63, 70), 10), 8),
        ("resnet18", CIFAR, 4),
        ("mobilenet_v2", IMAGENET, 7),
        ("mobilenet_v2", DataInfo((3, 64, 64), 10), 2),
        ("mobilenet_v2", CIFAR, 4),
    ],
)
def test_small_images_take_the_stem_that_keeps_them(name: str, info: DataInfo, positions: int) -> None:
    model = build_model(name, info, 0).eval()
    heights = []
    last = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)][-1]
    last.register_forward_hook(lambda module, inputs, out: heights.append(out.shape[2]))
    with torch.no_grad():
        model(torch.zeros(1, *info.shape))
    assert heights == [positions]


@pytest.mark.parametrize("name", LARGE)
def test_large_models_convert_unmodified(name: str) -> None:
    calls = capture(build_model(name, CIFAR, 0)).calls
    kinds = [call.op.kind for call in calls]
    expected = {
        "resnet18": {"conv2d": 20, "batch_norm": 20, "relu": 17, "add": 8, "adaptive_average_pool": 1, "flatten": 1,
                     "linear": 1},
        "mobilenet_v2": {"conv2d": 52, "batch_norm": 52, "relu6": 35, "add": 10, "adaptive_average_pool": 1,
                         "flatten": 1, "dropout": 1, "linear": 1},
    }[name]  # fmt: skip
    assert {kind: kinds.count(kind) for kind in set(kinds)} == expected
    depthwise = [call for call in calls if call.op.kind == "conv2d" and call.op.options.groups > 1]
    assert len(depthwise) == (17 if name == "mobilenet_v2" else 0)


@pytest.mark.parametrize("name", LARGE)
def test_converted_large_models_compute_what_torch_computes(name: str) -> None:
    model = build_model(name, CIFAR, 1).eval()
    x = torch.randn(2, *CIFAR.shape, generator=torch.Generator().manual_seed(0))
    net = fqtsim.fully_quantize(model, recipe="fp32", hardware="int8_acc32_wrap")
    with torch.no_grad():
        expected, logits = model(x), net(x)
    assert float(expected.abs().max()) > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LARGE)
def test_large_models_train_and_repeat(name: str) -> None:
    config = TrainConfig(
        model=name, data="digits", recipe="bhq5", hardware=("int8_acc20_tree4",), seed=2, steps=2, batch=4,
        set_recipe={"optimizer.lr": "0.01"},
    )  # fmt: skip
    resolved = resolve(config)
    x, y = torch.from_numpy(resolved.data.train_x[:4]), torch.from_numpy(resolved.data.train_y[:4])
    runs = []
    for _ in range(2):
        trainer = build_trainer(resolved)
        before = {name: value.detach().clone() for name, value in trainer.net.named_parameters()}
        losses = [float(trainer.step(x, y)) for _ in range(2)]
        assert np.isfinite(losses).all()
        still = [name for name, value in trainer.net.named_parameters() if torch.equal(value, before[name])]
        assert not still
        runs.append((losses, trainer.digest().hex, trainer.net.report()))
    assert runs[0] == runs[1]


# --- A function of the user's own

OWN = """
import torch
from torch import nn
from neighbour import WIDTH

class Net(nn.Module):
    def __init__(self, info):
        super().__init__()
        channels, height, width = info.shape
        self.conv = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.fc = nn.Linear(WIDTH, info.classes)

    def forward(self, x):
        x = nn.functional.relu6(self.conv(x)).mean([2, 3])
        return self.fc(x)

def make(info):
    return Net(info)

def wrong(info):
    return [1]

def fails(info):
    layers = {}
    return layers["stem"]

def leaves(info):
    raise SystemExit("no")

def without_argument():
    return None

def looped(info):
    class Looped(Net):
        def forward(self, x):
            return sum(self.conv(part) for part in x)
    return Looped(info)

SHAPE = (1, 2)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with my_net.py and what it imports, as the current one."""
    (tmp_path / "my_net.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "nowhere"))
    for name in ("my_net", "neighbour"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return tmp_path


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(OWN.splitlines(), 1) if text in line)


@pytest.mark.parametrize("name", ["my_net.py:make", "./my_net.py:make", "my_net:make", "my_net.py:Net"])
def test_own_network_is_built_from_file_module_or_class(own: Path, name: str) -> None:
    model = build_model(name, DIGITS, 3)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert [key for key, _ in model.named_parameters()] == ["conv.weight", "conv.bias", "fc.weight", "fc.bias"]


def test_own_network_is_seeded_and_leaves_torchs_generator_alone(own: Path) -> None:
    def bytes_of(seed: int) -> bytes:
        return b"".join(p.detach().numpy().tobytes() for p in build_model("my_net.py:make", DIGITS, seed).parameters())

    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = bytes_of(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert bytes_of(3) == first
    assert bytes_of(4) != first
    torch.manual_seed(3)
    assert torch.equal(nn.Conv2d(1, 4, 3).weight, build_model("my_net.py:make", DIGITS, 3).conv.weight)  # type: ignore[union-attr]


def test_own_network_has_a_hash_of_its_file(own: Path) -> None:
    before = model_sha256("my_net.py:make")
    assert before == model_sha256("my_net:make")
    assert model_sha256("cnn") is None
    (own / "my_net.py").write_text(OWN + "\n# changed\n", encoding="utf-8")
    assert model_sha256("my_net.py:make") not in (None, before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("other.py:make", "model = other.py:make: other.py: no such file; check the path, which starts at {folder}"),
        ("my_net.py:mkae", "model = my_net.py:mkae: {folder}/my_net.py has no function mkae; did you mean make?"),
        ("my_net.py:zzz", "model = my_net.py:zzz: {folder}/my_net.py has no function zzz; define it, or choose one of "
         "Net, make, wrong, fails, leaves, without_argument, looped"),
        ("my_net.py:", "model = my_net.py:: must be FILE.py:FUNCTION or package.module:FUNCTION; "
         "for example my_net.py:make"),
        ("no_such.thing:make", "model = no_such.thing:make: no module no_such; check the name, or write the path "
         "FILE.py:FUNCTION"),
        ("my_net.py:SHAPE", "model = my_net.py:SHAPE: SHAPE is tuple: must be a function of one argument, the shape of "
         "the data; write def make(info): return ..."),
        ("my_net.py:wrong", "{folder}/my_net.py:{def wrong}: model = my_net.py:wrong: returned list: must be a "
         "torch.nn.Module; return the network"),
        ("my_net.py:fails", "{folder}/my_net.py:{stem}: model = my_net.py:fails: KeyError: 'stem'; correct that line"),
        ("my_net.py:leaves", "{folder}/my_net.py:{raise}: model = my_net.py:leaves: SystemExit: no; correct that line"),
        ("my_net.py:without_argument", "{folder}/my_net.py:{def without_argument}: model = my_net.py:without_argument: "
         "cannot be called with one argument (too many positional arguments); write def make(info), where info.shape "
         "is (channels, height, width) and info.classes a number"),
    ],
)  # fmt: skip
def test_own_network_that_cannot_be_had(own: Path, name: str, message: str) -> None:
    for text in ("def wrong", "stem", "raise", "def without_argument"):
        message = message.replace(f"{{{text}}}", str(line_of(text)))
    with pytest.raises(InputError) as caught:
        build_model(name, DIGITS, 0)
    assert str(caught.value) == message.replace("{folder}", str(own))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("import torch\ndef make(info:\n    pass\n", "2: model = broken.py:make: SyntaxError: '(' was never closed"),
        ("x = 1\nimport nothing_of_this_name\n", "2: model = broken.py:make: ModuleNotFoundError: No module named"),
        ("\n\nx = 1 / 0\n", "3: model = broken.py:make: ZeroDivisionError: division by zero; correct that line"),
    ],
)
def test_own_file_that_cannot_be_imported(own: Path, content: str, what: str) -> None:
    (own / "broken.py").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        build_model("broken.py:make", DIGITS, 0)
    assert str(caught.value).startswith(f"{own}/broken.py:{what}")


def test_own_network_trains_and_crosschecks_from_the_command_line(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "my_net.py:make", "--recipe", "bhq8", "--steps", "2", "--batch", "8"]
    assert main(["train", *options, "--hardware", "int8_acc20_tree4", "--out", "run"]) == 0
    assert (own / "run" / "checkpoint.safetensors").is_file()
    assert main(["crosscheck", *options, "--hardware", "int8_acc32_wrap"]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_run_resumes_only_with_the_file_that_it_began_with(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["train", "--model", "my_net.py:make", "--recipe", "bhq8", "--steps", "2", "--batch", "8"]
    options += ["--hardware", "int8_acc20_tree4", "--out", "run"]
    assert main(options) == 0
    assert main([*options, "--resume"]) == 0
    with (own / "my_net.py").open("a", encoding="utf-8") as file:
        file.write("# edited\n")
    assert main([*options, "--resume"]) == 2
    assert "config.model_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(("function", "line"), [("fails", "stem"), ("looped", "for part in x")])
def test_own_network_that_fails_is_one_line_and_exit_2(
    own: Path, capsys: pytest.CaptureFixture[str], function: str, line: str
) -> None:
    options = ["--recipe", "bhq8", "--steps", "1", "--hardware", "int8_acc32_wrap", "--out", "run"]
    assert main(["train", "--model", f"my_net.py:{function}", *options]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert shown.splitlines()[-1].startswith(f"{own}/my_net.py:{line_of(line)}: ")
    assert not (own / "run").exists()


# --- What does not convert names its line


def network(forward: Callable[[Any, Any], Any], **modules: nn.Module) -> nn.Module:
    """Return a module with conv (3 to 8 channels), fc (8 to 10), the given modules and the given forward."""
    made = type("Net", (nn.Module,), {"forward": forward})()
    for name, module in {"conv": nn.Conv2d(3, 8, 3, padding=1), "fc": nn.Linear(8, 10), **modules}.items():
        made.add_module(name, module)
    return made


PASSING: dict[str, Callable[[Any, Any], Any]] = {
    "mean of dimensions": lambda self, x: self.fc(self.conv(x).mean([2, 3])),
    "mean by keyword": lambda self, x: self.fc(torch.mean(self.conv(x), dim=(-1, -2))),
    "pooling and view": lambda self, x: self.fc(F.adaptive_avg_pool2d(self.conv(x), 1).view(x.size(0), -1)),
    "pooling and flatten": lambda self, x: self.fc(torch.flatten(F.adaptive_avg_pool2d(self.conv(x), (1, 1)), 1)),
    "relu6": lambda self, x: self.fc(F.relu6(self.conv(x), inplace=True).mean((2, 3))),
    "identity": lambda self, x: self.fc(self.extra(self.conv(x)).mean((2, 3))),
    "max pooling": lambda self, x: self.fc(F.max_pool2d(self.conv(x), 8).flatten(1)),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_small_networks_write_converts_and_agrees_with_torch(name: str) -> None:
    model = network(PASSING[name], extra=nn.Identity())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = fqtsim.fully_quantize(model, recipe="fp32", hardware="int8_acc32_wrap")
    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-5)


def chunk(self: Any, x: Any) -> Any:
    first, second = self.conv(x).chunk(2, dim=1)
    return first + second


def split(self: Any, x: Any) -> Any:
    first, second = torch.split(self.conv(x), 4, dim=1)
    return first + second


def loop_over_batch(self: Any, x: Any) -> Any:
    return torch.stack([self.conv(image) for image in x])


def branch_on_size(self: Any, x: Any) -> Any:
    if x.shape[2] > 8:
        x = F.max_pool2d(x, 2)
    return self.conv(x)


def length(self: Any, x: Any) -> Any:
    return self.conv(x).view(len(x), -1)


def own_exception(self: Any, x: Any) -> Any:
    raise ValueError("width unknown")


def several(self: Any, x: Any) -> Any:
    return {"logits": self.conv(x)}


_JOIN = "give each branch a 1x1 Conv2d of its own and add the results"
_PARTS = "give each branch a 1x1 Conv2d of the whole tensor instead of a part of it"
_NO_BRANCHES = "write it without branches or loops that depend on tensors or their sizes"
_ORDER = "keep the dimensions (samples, channels, height, width)"
_NORM = "use a torch.nn.BatchNorm2d or torch.nn.BatchNorm1d submodule"

REFUSED: list[tuple[Callable[..., Any], str, str, str]] = [
    (chunk, ".chunk(", "Tensor.chunk", _PARTS),
    (split, "torch.split(", "torch.split", _PARTS),
    (loop_over_batch, "for image", "a loop over the parts of a tensor", _NO_BRANCHES),
    (branch_on_size, "if x", "a branch depends on a tensor or its size", _NO_BRANCHES),
    (length, "len(", "len() of a tensor", "use x.size(0)"),
    (own_exception, "raise", "ValueError: width unknown", "correct that line; it runs once without values"),
    (several, "def ", "the network returns {'logits': conv}", "return one tensor, the logits"),
    (lambda self, x: torch.cat([self.conv(x), x], 1), "cat", "torch.cat", _JOIN),
    (lambda self, x: self.conv(x).permute(0, 2, 3, 1), "permute", "Tensor.permute", _ORDER),
    (lambda self, x: torch.matmul(self.conv(x), x), "matmul", "torch.matmul", "use a torch.nn.Linear or"),
    (lambda self, x: self.extra(self.conv(x)), "extra", "layer 'extra' (GroupNorm)", "use torch.nn.BatchNorm2d"),
    (lambda self, x: F.group_norm(self.conv(x), 2), "group_norm", "torch.nn.functional.group_norm", _NORM),
    (lambda self, x: self.conv(x) * torch.sigmoid(x), "sigmoid", "torch.sigmoid", "leave a gate that multiplies"),
    (lambda self, x: self.conv(F.pad(x, (1, 1))), "pad", "torch.nn.functional.pad", "give the padding to the Conv2d"),
    (lambda self, x: self.conv(x).squeeze(), "squeeze", "Tensor.squeeze", "use torch.flatten(x, 1)"),
    (lambda self, x: self.conv(x)[:, :, 0, 0], "[:", "operator.getitem", "use torch.flatten(x, 1)"),
    (lambda self, x: self.conv(x).clamp(0, 6), "clamp", "Tensor.clamp", "use torch.nn.ReLU or torch.nn.ReLU6"),
    (lambda self, x: self.conv(x).sum((2, 3)), "sum", "Tensor.sum", "use x.mean((2, 3))"),
    (lambda self, x: self.conv(x.half()), "half", "Tensor.half", "the network runs in float32 on the CPU"),
    (lambda self, x: -self.conv(x), "-self", "operator.neg", "the sign of a branch can be folded"),
]  # fmt: skip


@pytest.mark.parametrize(("forward", "text", "what", "instead"), REFUSED, ids=[row[2].split(":")[0] for row in REFUSED])
def test_what_does_not_convert_names_its_line_and_what_to_write(
    forward: Callable[..., Any], text: str, what: str, instead: str
) -> None:
    with pytest.raises(InputError) as caught:
        capture(network(forward, extra=nn.GroupNorm(2, 8)))
    lines, first = inspect.getsourcelines(forward)
    number = first + next(i for i, source in enumerate(lines) if text in source)
    message = str(caught.value)
    assert message.startswith(f"{__file__}:{number}: ")
    assert what in message
    assert instead in message[message.index(what) :]


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (lambda m: nn.DataParallel(m), "spreads another one over devices; convert its .module"),
        (lambda m: torch.jit.trace(m, torch.zeros(1, 3, 8, 8)), "is compiled by torch.jit; convert the model"),
        (lambda m: torch.compile(m), "is compiled by torch.compile; convert the model it was made from"),
        (lambda m: fqtsim.fully_quantize(m, "bhq5", "int8_acc32_wrap"), "runs on the hardware already; convert"),
        (lambda m: m.to("meta"), "has weight on meta; move the model to the CPU with .cpu()"),
    ],
    ids=["DataParallel", "jit", "compile", "converted", "device"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_wrapped_around_a_model_is_named(wrapped: Callable[[Any], Any], message: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(InputError) as caught:
        capture(wrapped(model))
    assert message in str(caught.value)
